"""Bootstrap confidence intervals over records.

Rows of one record share a prompt and a context, so they are no independent draws: whole records are resampled with
replacement, and a statistic is computed anew from the resampled sums. Percentile intervals. Source: Efron and
Tibshirani 1993, chapters 13 and 8.6 (clusters).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL = 0.95
_CHUNK_BYTES = 64 << 20

Statistic = Callable[[np.ndarray], np.ndarray]
"""From sums [..., M] over some records to a value [...]."""


class Bootstrap:
    """The same resamples for every statistic and every model, so that differences between models are paired.

    Args:
        records: how many there are.
        resamples: how often they are drawn.
        seed: of the draws.

    """

    def __init__(self, records: int, resamples: int, seed: int = 0) -> None:
        self.records, self.resamples, self.seed = records, resamples, seed
        generator = np.random.default_rng(seed)
        # How often each record was drawn; 65,535 is far beyond what a count of mean 1 reaches.
        self._counts_BS = np.empty((resamples, records), np.uint16)
        for row in self._counts_BS:
            row[:] = np.bincount(generator.integers(0, records, records), minlength=records)

    def totals(self, sums_SM: np.ndarray) -> np.ndarray:
        """Sums over each resample, [B, M], of sums per record [S, M]."""
        step = max(_CHUNK_BYTES // (8 * max(len(sums_SM), 1)), 1)
        parts = [
            self._counts_BS[start : start + step].astype(np.float64) @ sums_SM
            for start in range(0, len(self._counts_BS), step)
        ]
        return np.concatenate(parts)

    def interval(self, sums_SM: np.ndarray, statistic: Statistic) -> tuple[float, float] | None:
        """The interval of a statistic.

        Returns:
            None where fewer than two records have rows (nothing varies then), or no resample has a value.

        """
        if np.count_nonzero(np.abs(sums_SM).sum(axis=1)) < 2:
            return None
        return percentiles(statistic(self.totals(sums_SM)))


def percentiles(values_B: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of a statistic's resampled values; resamples without one (0/0) are left out."""
    finite_B = values_B[np.isfinite(values_B)]
    if not len(finite_B):
        return None
    low, high = np.percentile(finite_B, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def record_sums(record_R: np.ndarray, values_RM: np.ndarray, records: int) -> np.ndarray:
    """Sums per record, float64 [S, M], of values per row [R, M]."""
    return np.stack([np.bincount(record_R, weights=column, minlength=records) for column in values_RM.T], axis=1)


def ratio(totals_M: np.ndarray) -> np.ndarray:
    """Σ value / Σ rows, of sums (value, rows) [..., 2]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: np.ndarray = totals_M[..., 0] / totals_M[..., 1]
    return quotient


def exp_ratio(totals_M: np.ndarray) -> np.ndarray:
    """exp(Σ value / Σ rows): a perplexity, of cross-entropies."""
    with np.errstate(over="ignore"):
        exponential: np.ndarray = np.exp(ratio(totals_M))
    return exponential
