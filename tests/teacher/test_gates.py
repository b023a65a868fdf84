"""No record is committed that does not answer the request that was sent."""

import asyncio
import dataclasses

import numpy as np
import pytest

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import EngineError
from llmdistill.teacher.fake_engine import FakeEngine
from llmdistill.teacher.gates import check_record
from llmdistill.types import CaptureSpec, Record, Request

SCORE = Request(b"s" * 16, (5, 6, 7, 8), "a:1", supervised=(False, False, True, True))
GENERATE = Request(b"g" * 16, (5, 6), "a:2", seed=3)
TEACHER = TeacherConfig.model_validate({"model": "x", "sampling": {"max_new_tokens": 5}})


def answer(request: Request, kind: str = "top_k") -> tuple[Record, CaptureSpec]:
    config = CaptureConfig(kind=kind, top_k=4)
    spec = CaptureSpec(
        "score", vocabulary_size=50, teacher="", tokenizer="", engine="", dtype="", **config.spec_fields()
    )
    return asyncio.run(FakeEngine(TEACHER, config, 50, 2).answer(request)), spec


@pytest.mark.parametrize("kind", ["top_k", "sampled", "head_tail"])
@pytest.mark.parametrize("request_", [SCORE, GENERATE], ids=["score", "generate"])
def test_a_right_answer_passes(kind: str, request_: Request) -> None:
    record, spec = answer(request_, kind)
    check_record(request_, record, spec)


def with_rows(record: Record, **changes: np.ndarray) -> Record:
    return dataclasses.replace(record, rows=dataclasses.replace(record.rows, **changes))


def spoiled(record: Record) -> dict[str, Record]:
    rows = record.rows
    nothing = np.zeros(4, bool)
    empty = dataclasses.replace(
        rows,
        ids_RK=rows.ids_RK[:0],
        logprobs_RK=rows.logprobs_RK[:0],
        actual_logprobs_R=rows.actual_logprobs_R[:0],
        entropy_R=None,
    )
    nan = np.array([np.nan, -1.0], np.float32)
    return {
        "another prompt": dataclasses.replace(record, token_ids_N=np.array([5, 9, 7, 8], np.int32)),
        "another prompt than the one sent": dataclasses.replace(record, key=b"x" * 16),
        "4 tokens were to be scored, it has 5": dataclasses.replace(
            record, token_ids_N=np.array([5, 6, 7, 8, 9], np.int32), supervised_N=np.array([0, 0, 1, 1, 0], bool)
        ),
        "rows for other tokens": dataclasses.replace(record, supervised_N=np.array([False, True, True, False])),
        "rows for other tokens than": dataclasses.replace(record, supervised_N=nothing, rows=empty),
        "sum to": with_rows(record, logprobs_RK=rows.logprobs_RK * 0),
        "the probabilities": with_rows(record, logprobs_RK=rows.logprobs_RK * np.nan),
        "not a number": with_rows(record, actual_logprobs_R=nan),
        "an entropy": with_rows(record, entropy_R=nan),
    }


@pytest.mark.parametrize("message", list(spoiled(answer(SCORE)[0])))
def test_a_wrong_answer_is_refused(message: str) -> None:
    record, spec = answer(SCORE)
    with pytest.raises(EngineError, match=message) as caught:
        check_record(SCORE, spoiled(record)[message], spec)
    assert caught.value.where == "a:1"


def test_a_response_without_tokens_is_refused() -> None:
    record, spec = answer(GENERATE)
    rows = record.rows
    empty = dataclasses.replace(
        record,
        token_ids_N=np.array([5, 6], np.int32),
        supervised_N=np.zeros(2, bool),
        rows=dataclasses.replace(
            rows,
            ids_RK=rows.ids_RK[:0],
            logprobs_RK=rows.logprobs_RK[:0],
            actual_logprobs_R=rows.actual_logprobs_R[:0],
            entropy_R=None,
        ),
    )
    with pytest.raises(EngineError, match="0 tokens are supervised, it has 0 rows"):
        check_record(GENERATE, empty, spec)
