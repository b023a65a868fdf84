"""What the cache knows of the teacher at the rows of one record, as the metrics need it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmdistill.cache.reader import StoredRecord
from llmdistill.objectives.targets import TopKTargets, WeightedTargets
from llmdistill.types import CaptureSpec


@dataclass(frozen=True)
class TeacherSide:
    """The teacher's distributions at R rows; which forms are there depends on the kind of capture."""

    actual_ids_R: torch.Tensor
    """int64 [R]: the tokens that really follow."""
    actual_logprobs_R: torch.Tensor
    """float32 [R]: their log-probabilities."""
    entropy_R: torch.Tensor
    """float32 [R]: entropy in nats; NaN where the engine could not tell."""
    head: TopKTargets | None
    """The exact most likely entries and the mass of the rest: `top_k`, `head_tail`."""
    weighted: WeightedTargets | None
    """Entries that are right on average: `sampled`, `head_tail`."""
    on_policy: bool
    """The teacher drew the text from its own distribution (temperature 1, top_p 1), so that a mean over the actual
    tokens is a mean over p."""

    def rows(self, start: int, stop: int) -> TeacherSide:
        """The rows start … stop - 1."""
        return TeacherSide(
            self.actual_ids_R[start:stop],
            self.actual_logprobs_R[start:stop],
            self.entropy_R[start:stop],
            None if self.head is None else self.head.rows(start, stop),
            None if self.weighted is None else self.weighted.rows(start, stop),
            self.on_policy,
        )


def teacher_side(record: StoredRecord) -> TeacherSide:
    """Decode the rows of a record, on the CPU."""
    rows, spec = record.rows, record.rows.spec
    actual_ids_R = record.token_ids_N[record.supervised_N]
    ids_RK, logprobs_RK = rows.decode(spec.vocabulary_size)
    head = weighted = None
    if spec.kind == "top_k":
        head = TopKTargets(actual_ids_R=actual_ids_R, ids_RK=ids_RK, logprobs_RK=logprobs_RK, mass_R=rows.mass_R)
    else:
        counts = rows.columns.get("head_counts")
        weighted = WeightedTargets(
            actual_ids_R=actual_ids_R,
            ids_RK=ids_RK,
            weights_RK=logprobs_RK.exp(),
            entropy_R=rows.entropy_R,
            head_counts_R=None if counts is None else counts.long(),
        )
        head = weighted.head() if spec.kind == "head_tail" else None
    return TeacherSide(actual_ids_R, rows.actual_logprobs_R, rows.entropy_R, head, weighted, on_policy(spec))


def chunks_by_row(record: StoredRecord) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probability of a record's chunks: float32 [R], each at the row that it ends with, 0 elsewhere.

    And bool [R]: the row's chunk has one.
    """
    ends_R, logprobs_E = record.rows.chunk_ends_R, record.rows.chunk_logprobs_E
    logprobs_R = torch.zeros(len(ends_R)).masked_scatter(ends_R, logprobs_E)
    return logprobs_R, ~logprobs_E.isnan()[ends_R.cumsum(0) - ends_R.long()]


def on_policy(spec: CaptureSpec) -> bool:
    """See `TeacherSide.on_policy`; never of `chunks`, which hold no tokens that the teacher drew."""
    if spec.kind == "chunks":
        return False
    return spec.mode == "generate" and spec.sampling.get("temperature") == 1 and spec.sampling.get("top_p", 1) == 1
