"""How a teacher's row travels from the engine to the records: one fixed layout of (id, value) columns.

vLLM carries, for each token, a list of integer ids and a list of float32 values of equal length; elsewhere they are
token ids and log-probabilities. `capture.py` fills both lists on the device, this file reads them in the front end, and
both take the layout from `Columns`. Column by column:

    column        id                       value
    0             the actual token         its log-probability
    1             STATISTIC                entropy in nats
    2 … J+1       STATISTIC                log Σ_v exp(logprob_v/τ), for each extra temperature
    then, for the kind
    top_k         an id                    its log-probability, most likely first                        (top_k columns)
    sampled       draw 2j                  draw 2j+1, an id as well                                (⌈draws/2⌉ columns)
    head_tail     an id, or NOTHING        its log-probability, most likely first              (head_size columns), then
                  draw 2j, or NOTHING      draw 2j+1, or NOTHING                                    (⌈draws/2⌉ columns)

Draws of a row are sorted, so that equal ones lie side by side and are counted here. An id below 2^24 is exact in
float32. An engine without a way in (`statistics=False`) sends `top_k` without the columns 1 … J+1, as plain vLLM does.
No id of a real token is negative, so output of plain vLLM can never be taken for a filled layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmdistill.config.capture import CaptureConfig
from llmdistill.errors import EngineError
from llmdistill.types import HeadTailRows, SampledRows, TeacherRows, TopKRows

STATISTIC = -1
"""Id of the columns whose value is a statistic of the whole distribution."""
NOTHING = -2
"""Id, or value in the place of an id, where a row has fewer entries than columns."""
LARGEST_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class Columns:
    """The layout for one capture."""

    kind: str
    vocabulary_size: int
    """Ids are below this; the distribution is the softmax over these ids."""
    top_k: int = 0
    draws: int = 0
    head_mass: float = 0.0
    head_size: int = 0
    temperatures: tuple[float, ...] = ()
    statistics: bool = True

    def __post_init__(self) -> None:
        assert self.vocabulary_size <= LARGEST_VOCABULARY
        assert self.statistics or (self.kind == "top_k" and not self.temperatures)
        # A layout comes to the worker as plain lists and dicts.
        object.__setattr__(self, "temperatures", tuple(self.temperatures))

    @staticmethod
    def of(capture: CaptureConfig, vocabulary_size: int, statistics: bool = True) -> Columns:
        """The layout of a configured capture."""
        fields = capture.spec_fields()
        return Columns(
            vocabulary_size=vocabulary_size,
            statistics=statistics,
            **{name: fields[name] for name in ("kind", "top_k", "draws", "head_mass", "head_size", "temperatures")},
        )

    @property
    def before_entries(self) -> int:
        """Columns before the first entry."""
        return 2 + len(self.temperatures) if self.statistics else 1

    @property
    def pairs(self) -> int:
        """Columns that hold draws, two each."""
        return -(-self.draws // 2)

    @property
    def width(self) -> int:
        """Columns beside the actual token: the number of log-probabilities that an engine is asked for."""
        return self.before_entries - 1 + self.top_k + self.head_size + self.pairs

    def rows(self, ids_RW: np.ndarray, values_RW: np.ndarray) -> TeacherRows:
        """Rows from filled columns.

        Args:
            ids_RW: int32 [R, 1 + width].
            values_RW: float32 [R, 1 + width].

        Raises:
            ValueError: the actual token is none of the vocabulary, or the teacher computed NaN.
            EngineError: the columns are not laid out as above.

        """
        statistics = slice(1, self.before_entries)
        if not (ids_RW[:, statistics] == STATISTIC).all():
            raise EngineError("the engine sent log-probabilities where entropies were asked for", fix=_NOT_IN_FORCE)
        if (ids_RW[:, 0] >= self.vocabulary_size).any():
            raise ValueError(f"token {ids_RW[:, 0].max()} is none of the tokenizer's {self.vocabulary_size}")
        if np.isnan(values_RW).any():
            raise ValueError("the teacher's log-probabilities are not numbers")
        values_RS = values_RW[:, statistics]
        common: dict[str, Any] = {
            "actual_logprobs_R": values_RW[:, 0],
            "entropy_R": values_RS[:, 0] if self.statistics else None,
            "logsumexp_RJ": values_RS[:, 1:] if self.temperatures else None,
        }
        ids_RE, values_RE = ids_RW[:, self.before_entries :], values_RW[:, self.before_entries :]
        if self.kind == "top_k":
            self._check_entries(ids_RE, values_RE, np.ones_like(ids_RE, bool))
            return TopKRows(ids_RE, values_RE, **common)
        heads = self.head_size
        draws_RN = np.stack([ids_RE[:, heads:], values_RE[:, heads:].astype(np.int32)], axis=2)
        draws_RN = draws_RN.reshape(len(ids_RE), -1)[:, : self.draws]
        first_RN, counts_E = self._runs(draws_RN)
        entries_R = first_RN.sum(axis=1, dtype=np.int32)
        if self.kind == "sampled":
            return SampledRows(draws_RN[first_RN], counts_E, entries_R, **common)
        head_RH = ids_RE[:, :heads] != NOTHING
        self._check_entries(ids_RE[:, :heads], values_RE[:, :heads], head_RH)
        entries = np.concatenate([ids_RE[:, :heads], draws_RN], axis=1)
        return HeadTailRows(
            ids_E=entries[np.concatenate([head_RH, first_RN], axis=1)],
            heads_R=head_RH.sum(axis=1, dtype=np.int32),
            tails_R=entries_R,
            head_logprobs_H=values_RE[:, :heads][head_RH],
            tail_counts_F=counts_E,
            **common,
        )

    def _check_entries(self, ids_RK: np.ndarray, logprobs_RK: np.ndarray, valid_RK: np.ndarray) -> None:
        if ((ids_RK < 0) | (ids_RK >= self.vocabulary_size))[valid_RK].any():
            raise EngineError(f"the engine's most likely tokens are not all of the {self.vocabulary_size} known ones")
        # Written so that NaN fails too.
        if not ((np.diff(logprobs_RK, axis=1) <= 0) | ~valid_RK[:, 1:]).all():
            raise EngineError("the engine's most likely tokens are not in falling order")

    def _runs(self, draws_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a new id starts, and how often each of these was drawn."""
        valid_RN = draws_RN != NOTHING
        drawn = draws_RN[valid_RN]
        complete = valid_RN.all() if self.kind == "sampled" else not (valid_RN[:, 1:] & ~valid_RN[:, :-1]).any()
        in_order = (np.diff(draws_RN, axis=1) >= 0) | ~valid_RN[:, 1:]
        if not complete or not in_order.all() or ((drawn < 0) | (drawn >= self.vocabulary_size)).any():
            raise EngineError(f"the engine's draws are not {self.draws} sorted ids a row", fix=_NOT_IN_FORCE)
        first_RN = valid_RN.copy()
        first_RN[:, 1:] &= draws_RN[:, 1:] != draws_RN[:, :-1]
        starts = np.flatnonzero(first_RN[valid_RN])
        return first_RN, np.diff(starts, append=len(drawn)).astype(np.int32)


_NOT_IN_FORCE = "the capture is not in force in the engine; please report it with the engine's version"
