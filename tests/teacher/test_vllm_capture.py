"""The worker extension in a real vLLM engine, against a plain forward pass in float32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import load_student
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.vllm_engine import VLLMEngine, plan_columns
from llmdistill.types import HeadTailRows, Record, Request, SampledRows

TEXT = "The capital of France is Paris, and the capital of Italy is"
TEMPERATURES = (0.5, 2.0)
KINDS = [CaptureConfig(kind=kind, temperatures=TEMPERATURES) for kind in ("top_k", "sampled", "head_tail")]
Exact = Callable[[Record], torch.Tensor]


def requests(token_ids: list[int], count: int, first: int = 0) -> list[Request]:
    supervised = (False,) + (True,) * (len(token_ids) - 1)
    numbers = range(first, first + count)
    return [Request(n.to_bytes(16, "little"), tuple(token_ids), f"a:{n}", supervised=supervised) for n in numbers]


@pytest.fixture(scope="module")
def exact(teacher_folder: Path) -> Exact:
    """float64 [R, V]: log-probabilities of a record's rows."""
    model = load_student(teacher_folder, torch.float32).eval()

    @torch.inference_mode()
    def forward(record: Record) -> torch.Tensor:
        logits = model(torch.from_numpy(record.token_ids_N).long().unsqueeze(0)).logits[0]
        return logits.double().log_softmax(dim=-1)[np.flatnonzero(record.supervised_N) - 1]

    return forward


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_statistics_of_scored_and_generated_rows(config, vllm_capture, tokenizer, exact: Exact) -> None:
    token_ids = tokenizer(TEXT)["input_ids"]
    generate = Request(b"g" * 16, tuple(token_ids), "a:0", seed=3)
    records = vllm_capture(config, [*requests(token_ids, 1), generate, *requests(token_ids[:6], 1, first=7)])
    for record in records:
        exact_RV = exact(record)
        actual_R = torch.from_numpy(record.token_ids_N[record.supervised_N]).long()
        actual_logprobs_R = exact_RV.gather(1, actual_R.unsqueeze(1))[:, 0].numpy()
        assert np.abs(record.rows.actual_logprobs_R - actual_logprobs_R).max() < 1e-3
        assert np.abs(record.rows.entropy_R + (exact_RV.exp() * exact_RV).sum(1).numpy()).max() < 1e-3
        for column, temperature in enumerate(TEMPERATURES):
            reference_R = (exact_RV / temperature).logsumexp(1).numpy()
            assert np.abs(record.rows.logsumexp_RJ[:, column] - reference_R).max() < 1e-3


def test_draws_of_the_engine_follow_the_full_distribution(vllm_capture, tokenizer, exact: Exact) -> None:
    token_ids = tokenizer(TEXT)["input_ids"]
    config, asked = CaptureConfig(kind="sampled"), 120
    records = vllm_capture(config, requests(token_ids, asked))
    p_RV = exact(records[0]).exp().numpy()
    counts_RV = np.zeros_like(p_RV)
    for record in records:
        assert isinstance(record.rows, SampledRows)
        np.add.at(
            counts_RV, (np.repeat(np.arange(len(p_RV)), record.rows.entries_R), record.rows.ids_E), record.rows.counts_E
        )
    expected_RV = p_RV * asked * config.draws
    statistic, degrees = 0.0, 0
    for counts_V, expected_V in zip(counts_RV, expected_RV, strict=True):
        often = expected_V >= 5
        pooled = np.append(expected_V[often], expected_V[~often].sum())
        found = np.append(counts_V[often], counts_V[~often].sum())
        statistic += ((found - pooled) ** 2 / pooled).sum()
        degrees += len(pooled) - 1
    assert degrees > 50
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


def test_heads_are_the_most_likely_tokens_and_tails_are_others(vllm_capture, tokenizer, exact: Exact) -> None:
    token_ids = tokenizer(TEXT)["input_ids"]
    (record,) = vllm_capture(CaptureConfig(kind="head_tail"), requests(token_ids, 1))
    rows, exact_RV = record.rows, exact(record)
    assert isinstance(rows, HeadTailRows)
    first = 0
    for r, (heads, tails) in enumerate(zip(rows.heads_R.tolist(), rows.tails_R.tolist(), strict=True)):
        ids = rows.ids_E[first : first + heads + tails]
        assert len(set(ids.tolist())) == heads + tails
        likely = exact_RV[r].topk(heads)
        assert ids[:heads].tolist() == likely.indices.tolist()
        assert likely.values.exp()[:-1].sum() < 0.9
        assert heads == 8 or likely.values.exp().sum() >= 0.9
        first += heads + tails


def test_a_record_has_the_same_draws_alone_and_in_company(vllm_capture, tokenizer) -> None:
    token_ids = tokenizer(TEXT)["input_ids"]
    config = CaptureConfig(kind="sampled")
    asked = [*requests(token_ids, 1), Request(b"g" * 16, tuple(token_ids), "a:0", seed=3)]
    others = [*requests(token_ids[:5], 3, first=20), Request(b"h" * 16, tuple(token_ids[:7]), "a:0", seed=4)]
    alone = [vllm_capture(config, [request])[0] for request in asked]
    together = vllm_capture(config, [*others, *asked])[len(others) :]
    for first, second in zip(alone, together, strict=True):
        assert first.token_ids_N.tolist() == second.token_ids_N.tolist()
        # Sums in another order move the few draws that lie on a border.
        ids, again = set(first.rows.ids_E.tolist()), set(second.rows.ids_E.tolist())
        assert len(ids ^ again) < 0.1 * len(ids | again)


def test_what_a_gpu_engine_is_asked_for(monkeypatch: pytest.MonkeyPatch, teacher_folder: Path) -> None:
    plain, sampled = CaptureConfig(), CaptureConfig(kind="sampled")
    assert not plan_columns(plain, 100, head=100, on_cpu=False).statistics
    assert plan_columns(plain, 100, head=128, on_cpu=False).statistics
    assert plan_columns(CaptureConfig(temperatures=(2.0,)), 100, head=100, on_cpu=False).statistics
    assert plan_columns(plain, 100, head=100, on_cpu=True) == Columns.of(plain, 100)

    teacher = TeacherConfig(model="x")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ConfigError, match="needs vLLM's V1 model runner") as caught:
        VLLMEngine(teacher_folder, teacher, sampled, 49152, cores=())
    assert "unset VLLM_USE_V2_MODEL_RUNNER" in str(caught.value)

    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    arguments = VLLMEngine(teacher_folder, teacher, CaptureConfig(top_k=500), 49152, cores=()).arguments()
    assert arguments["max_logprobs"] == 500, "more than vLLM's own limit of 20"
    assert arguments["enable_prefix_caching"] is False, "cached prompts have no log-probabilities"
    assert arguments["logprobs_mode"] == "raw_logprobs", "temperature 1, whatever is sampled at"
    assert arguments["trust_remote_code"] is False
    assert arguments["max_num_batched_tokens"] == 2048, "bounds vLLM's float32 log-softmax of prompts"
    engine = VLLMEngine(teacher_folder, teacher, sampled, 49152, cores=())
    arguments = engine.arguments()
    assert arguments["worker_extension_cls"] == "llmdistill.teacher.vllm_worker.WorkerExtension"
    for seed in (None, 5):
        parameters = engine._parameters(Request(bytes(16), (1, 2), "a", seed=seed))
        assert parameters.flat_logprobs and not parameters.detokenize, "a tenth of the time that objects and text take"
        assert (parameters.prompt_logprobs or parameters.logprobs) == arguments["max_logprobs"] == 26
