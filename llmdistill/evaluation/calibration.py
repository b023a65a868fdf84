"""Is a model right as often as it is sure? Expected calibration error and the reliability curve.

Rows fall into bins of equal width by the model's confidence, the probability of its most likely token. In a calibrated
model the share of rows whose most likely token is the actual one equals the mean confidence of the bin.

    ECE = Σ_bins rows(bin)/rows · |accuracy(bin) - confidence(bin)|

Source: Guo et al. 2017, arXiv 1706.04599, equations 1 to 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
"""As in the paper."""


def bin_columns(confidence_R: np.ndarray, correct_R: np.ndarray) -> np.ndarray:
    """float64 [R, 3·BINS]: a row's 1, confidence and correctness in the columns of its bin; sum them over rows."""
    # Bins are (low, high]: confidence 1 belongs to the last one.
    bin_R = np.clip(np.ceil(confidence_R * BINS).astype(int) - 1, 0, BINS - 1)
    columns = np.zeros((len(bin_R), 3, BINS))
    columns[np.arange(len(bin_R)), :, bin_R] = np.stack([np.ones(len(bin_R)), confidence_R, correct_R], axis=1)
    return columns.reshape(len(bin_R), 3 * BINS)


def expected_calibration_error(totals_M: np.ndarray) -> np.ndarray:
    """ECE [...] of summed `bin_columns` [..., 3·BINS]."""
    rows, confidence, correct = np.split(totals_M, 3, axis=-1)
    with np.errstate(invalid="ignore"):
        error: np.ndarray = np.abs(correct - confidence).sum(axis=-1) / rows.sum(axis=-1)
    return error


def reliability(totals_M: np.ndarray) -> list[dict[str, Any]]:
    """The bins that hold rows, of summed `bin_columns` [3·BINS]."""
    rows, confidence, correct = np.split(totals_M, 3)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "rows": int(rows[number]),
            "confidence": float(confidence[number] / rows[number]),
            "accuracy": float(correct[number] / rows[number]),
        }
        for number in range(BINS)
        if rows[number]
    ]
