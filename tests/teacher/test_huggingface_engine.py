"""The transformers engine: the same rows as vLLM's, seeded text, hidden states."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.hidden import SidecarFile
from llmdistill.cache.index import shard_folder
from llmdistill.cache.shard import write_shard
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import load_student
from llmdistill.teacher.halving import in_halves
from llmdistill.teacher.huggingface_engine import HuggingFaceEngine
from llmdistill.types import CaptureSpec, Record, Request

TEXTS = ["The capital of France is Paris.", "Two and two", "Water boils at a hundred degrees, and ice"]


def ask(folder: Path, capture: CaptureConfig, requests: list[Request], **sampling: float) -> list[Record]:
    teacher = TeacherConfig.model_validate(
        {"model": "x", "dtype": "float32", "max_model_len": 100, "sampling": {"max_new_tokens": 8, **sampling}}
    )
    engine = HuggingFaceEngine(folder, teacher, capture, 49152, 2, cores=(0,))

    async def run() -> list[Record]:
        await engine.start()
        return list(await asyncio.gather(*(engine.answer(request) for request in requests)))

    records = asyncio.run(run())
    engine.stop()
    return records


def scoring(tokenizer) -> list[Request]:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return [
        Request(bytes([n] * 16), tuple(i), f"a:{n}", supervised=(False, *[True] * (len(i) - 1)))
        for n, i in enumerate(ids)
    ]


@pytest.mark.parametrize("kind", ["top_k", "sampled", "head_tail"])
def test_rows_equal_those_of_vllm(kind: str, vllm_capture, teacher_folder: Path, tokenizer) -> None:
    config = CaptureConfig(kind=kind, top_k=16, temperatures=(2.0,))
    requests = scoring(tokenizer)
    for ours, theirs in zip(ask(teacher_folder, config, requests), vllm_capture(config, requests), strict=True):
        for name in ("actual_logprobs_R", "entropy_R", "logsumexp_RJ"):
            np.testing.assert_allclose(getattr(ours.rows, name), getattr(theirs.rows, name), atol=1e-3)
        if kind == "top_k":
            np.testing.assert_allclose(ours.rows.logprobs_RK, theirs.rows.logprobs_RK, atol=1e-3)
        else:
            ids, others = set(ours.rows.ids_E.tolist()), set(theirs.rows.ids_E.tolist())
            assert len(ids ^ others) < 0.1 * len(ids | others), "the same seeds draw the same tokens"


def test_hidden_states_are_those_of_the_rows_and_reach_the_sidecar(tiny_teacher: Path, tokenizer, tmp_path) -> None:
    config = CaptureConfig(top_k=4, hidden_layers=(4, 0, 2))
    records = ask(tiny_teacher, config, scoring(tokenizer))
    model = load_student(tiny_teacher, torch.float32).eval()
    for record in records:
        with torch.inference_mode():
            ids = torch.from_numpy(record.token_ids_N).long().unsqueeze(0)
            states = model(ids, output_hidden_states=True).hidden_states
        expected = torch.stack([states[layer][0, :-1] for layer in (0, 2, 4)])
        np.testing.assert_allclose(record.hidden_LRD, expected.numpy(), atol=1e-4)
    spec = CaptureSpec(
        "score",
        vocabulary_size=49152,
        teacher="t",
        tokenizer="k",
        engine="huggingface",
        dtype="float32",
        **config.spec_fields(),
    )
    name = write_shard(shard_folder(tmp_path), records, spec, "transformers").name
    assert set(SidecarFile(shard_folder(tmp_path), name).read(0)) == {0, 2, 4}


def test_a_layer_that_is_not_there_is_refused(tiny_teacher: Path, tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the layers 0 \(embedding\) … 4, found \[5\]"):
        ask(tiny_teacher, CaptureConfig(hidden_layers=(5,)), scoring(tokenizer))


def test_text_depends_on_its_seed_and_not_on_its_company(tiny_teacher: Path, tokenizer) -> None:
    requests = [
        dataclasses.replace(request, seed=n % 2, supervised=None, key=bytes([n] * 16))
        for n, request in enumerate(scoring(tokenizer) * 2)
    ]
    together = ask(tiny_teacher, CaptureConfig(top_k=4), requests, temperature=1.0, top_p=0.9)
    (alone,) = ask(tiny_teacher, CaptureConfig(top_k=4), requests[1:2], temperature=1.0, top_p=0.9)
    assert alone.token_ids_N.tolist() == together[1].token_ids_N.tolist()
    assert together[0].token_ids_N.tolist() != together[3].token_ids_N.tolist(), "another seed"
    for request, record in zip(requests, together, strict=True):
        response = record.token_ids_N[record.supervised_N]
        assert record.token_ids_N[~record.supervised_N].tolist() == list(request.token_ids)
        assert (record.finish_reason == "length") == (len(response) == 8 and response[-1] != 2)
        assert len(record.rows.actual_logprobs_R) == len(response)


def test_greedy_text_is_the_most_likely(tiny_teacher: Path, tokenizer) -> None:
    requests = [dataclasses.replace(request, seed=1, supervised=None) for request in scoring(tokenizer)]
    for record in ask(tiny_teacher, CaptureConfig(top_k=4), requests, temperature=0.0):
        assert record.rows.ids_RK[:, 0].tolist() == record.token_ids_N[record.supervised_N].tolist()


def test_a_batch_that_does_not_fit_is_halved_and_one_request_is_named() -> None:
    sizes = []

    def work(requests: Sequence[Request]) -> list[int]:
        sizes.append(len(requests))
        if sum(len(request.token_ids) for request in requests) > 20:
            raise torch.OutOfMemoryError
        return [len(request.token_ids) for request in requests]

    requests = [Request(bytes(16), tuple(range(length)), "a") for length in (5, 6, 21, 7, 3)]
    answers = in_halves(requests, work)
    assert [answer for answer in answers if not isinstance(answer, ValueError)] == [5, 6, 7, 3]
    assert str(answers[2]) == "out of memory for 21 tokens alone"
    assert sizes == [5, 2, 3, 1, 2]


def test_hidden_states_need_an_engine_that_has_them() -> None:
    config = {
        "output": "o",
        "prompts": {"sources": [{"path": "p.jsonl"}]},
        "teacher": {"model": "x"},
        "capture": {"hidden_layers": [1]},
        "student": {"model": "y"},
        "objectives": [{"type": "forward_kl"}],
    }
    with pytest.raises(ValueError, match=r"the vllm engine gives no hidden states; use teacher.engine: huggingface"):
        RunConfig.model_validate(config)
    config["teacher"]["engine"] = "huggingface"  # type: ignore[index]
    assert RunConfig.model_validate(config).capture.hidden_layers == (1,)
