"""What a record must satisfy before it is committed: it answers the request sent, and its rows are possible."""

from __future__ import annotations

import numpy as np

from llmdistill.cache.rows import segment_sums
from llmdistill.errors import EngineError
from llmdistill.types import CaptureSpec, ChunkRows, HeadTailRows, Record, Request, SampledRows, TopKRows

_MASS_TOLERANCE = 1e-4
"""float32 log-softmax may overshoot by some units in the last place."""


def check_record(request: Request, record: Record, spec: CaptureSpec) -> None:
    """Refuse a record that is not the answer to this request.

    Raises:
        EngineError: other token ids than those sent, another number of rows, probabilities that sum to more than 1, or
            NaN.

    """
    fault = _fault(request, record, spec)
    if fault:
        raise EngineError(f"the engine's answer cannot be right: {fault}", where=request.source)


def _fault(request: Request, record: Record, spec: CaptureSpec) -> str:
    sent = len(request.token_ids)
    if record.key != request.key or record.token_ids_N[:sent].tolist() != list(request.token_ids):
        return "it belongs to another prompt than the one sent"
    if request.seed is None and len(record.token_ids_N) != sent:
        return f"{sent} tokens were to be scored, it has {len(record.token_ids_N)}"
    wanted_N = np.arange(len(record.token_ids_N)) >= sent if request.seed is not None else np.array(request.supervised)
    if record.supervised_N.tolist() != wanted_N.tolist():
        return "it has rows for other tokens than asked for"
    rows = record.rows
    assert not isinstance(rows, ChunkRows), "an engine gives rows"
    count = len(rows.actual_logprobs_R)
    if not wanted_N.any() or count != wanted_N.sum():
        return f"{int(wanted_N.sum())} tokens are supervised, it has {count} rows"
    if isinstance(rows, TopKRows):
        mass_R = np.exp(rows.logprobs_RK, dtype=np.float64).sum(axis=1)
    elif isinstance(rows, HeadTailRows):
        mass_R = segment_sums(np.exp(rows.head_logprobs_H, dtype=np.float64), rows.heads_R)
    else:
        assert isinstance(rows, SampledRows)
        mass_R = segment_sums(rows.counts_E, rows.entries_R) / spec.draws
    # Written so that NaN fails too.
    if not (mass_R <= 1 + _MASS_TOLERANCE).all():
        return f"the probabilities of a row sum to {mass_R.max():.6g}"
    if not (rows.actual_logprobs_R <= _MASS_TOLERANCE).all():
        return "the log-probability of a token is above 0 or not a number"
    if rows.entropy_R is not None and not np.isfinite(rows.entropy_R).all():
        return "an entropy is not a number"
    return ""
