"""A real vLLM engine against Hugging Face's forward pass: the whole path of one record, and its alignment."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.evaluation.heldout import measure_model
from llmdistill.objectives.rows import Rows
from llmdistill.objectives.targets import TopKTargets
from llmdistill.objectives.terms import forward_kl_values
from llmdistill.student.creation import load_student
from llmdistill.types import CaptureSpec, Record, Request

SPEC = CaptureSpec("generate", "top_k", 64, 49152, "t", "k", "vllm", "float32", {})


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture(scope="module")
def generated(vllm_ask, tokenizer) -> list[Record]:
    prompts = ["What is the capital of France?", "Name three colours.", "What is 2 + 2?"]
    ids = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False)
        for p in prompts
    ]
    requests = [Request(key(n), tuple(i), f"a:{n}", seed=n) for n, i in enumerate(ids * 2)]
    return vllm_ask(requests)


@pytest.fixture(scope="module")
def scored(vllm_ask, generated) -> list[Record]:
    requests = [
        Request(key(100 + n), tuple(r.token_ids_N.tolist()), f"b:{n}", supervised=tuple(r.supervised_N.tolist()))
        for n, r in enumerate(generated)
    ]
    return vllm_ask(requests)


@pytest.fixture(scope="module")
def model(teacher_folder: Path):
    return load_student(teacher_folder, torch.float32).eval()


def test_generated_records_end_as_they_should(generated: list[Record], tokenizer) -> None:
    for record in generated:
        response = record.token_ids_N[record.supervised_N]
        assert (record.finish_reason == "stop") == (response[-1] == tokenizer.eos_token_id)
        assert len(response) <= 24
        assert tokenizer.eos_token_id not in response[:-1]
        assert not record.supervised_N[0]
        assert record.rows.ids_RK.shape == (len(response), 64)


def test_generated_and_scored_rows_agree_with_a_plain_forward_pass(generated, scored, model) -> None:
    for record in generated + scored:
        with torch.inference_mode():
            logits = model(torch.from_numpy(record.token_ids_N).long().unsqueeze(0)).logits[0]
        expected = logits.log_softmax(dim=-1)[np.flatnonzero(record.supervised_N) - 1]
        found = torch.from_numpy(record.rows.logprobs_RK)
        at_ids = expected.gather(1, torch.from_numpy(record.rows.ids_RK).long())
        assert (found - at_ids).abs().max() < 2e-3
        actual = torch.from_numpy(record.token_ids_N[record.supervised_N]).long()
        actual_logprobs = expected.gather(1, actual.unsqueeze(1))[:, 0]
        assert (torch.from_numpy(record.rows.actual_logprobs_R) - actual_logprobs).abs().max() < 2e-3
        assert (found - expected.topk(64).values).abs().max() < 2e-3


def test_a_seed_decides_a_response(vllm_ask, generated) -> None:
    (again,) = vllm_ask(
        [Request(key(1), tuple(generated[1].token_ids_N[~generated[1].supervised_N].tolist()), "c:1", seed=1)]
    )
    assert again.token_ids_N.tolist() == generated[1].token_ids_N.tolist()


def test_student_equal_to_teacher_is_at_zero_and_a_shift_by_one_is_far_away(
    generated, scored, tmp_path: Path, model
) -> None:
    """The self-test of the whole path: engine → rows → quantised shard → decoding → divergence."""
    write_shard(shard_folder(tmp_path), generated + scored, SPEC, "vllm")
    write_index(tmp_path)
    reader = CacheReader(tmp_path)
    values = measure_model(model, reader, np.arange(len(reader))).values
    assert 0 <= values["kl"].mean() < 1e-3
    assert values["top1_agreement"].mean() > 0.98

    record = reader.read(0)
    with torch.inference_mode():
        logits = model(record.token_ids_N.unsqueeze(0)).logits[0]
    slots = record.supervised_N.nonzero()[:, 0] - 1
    ids, logprobs = record.rows.decode(49152)
    actual = record.token_ids_N[slots + 1]
    targets = TopKTargets(actual_ids_R=actual, ids_RK=ids, logprobs_RK=logprobs, mass_R=record.rows.mass_R)
    aligned = forward_kl_values(Rows(logits[slots], targets)).mean()
    shifted = forward_kl_values(Rows(logits[slots - 1], targets)).mean()
    assert aligned < 1e-3
    assert shifted > 1.0


def test_a_request_that_is_too_long_is_refused_alone(vllm_ask) -> None:
    with pytest.raises(ValueError, match="512"):
        vllm_ask([Request(key(900), tuple(range(3, 603)), "d:1", seed=1)])
    (fine,) = vllm_ask([Request(key(901), (1, 50, 60), "d:2", seed=1)])
    assert fine.supervised_N.any()
