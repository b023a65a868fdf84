"""The groups of rows that results are broken down by: source, position in the response, entropy of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSITION_EDGES = (1, 4, 16, 64, 256)
ENTROPY_EDGES = (0.1, 0.5, 1.0, 2.0, 4.0)
_POSITIONS = ("0", "1–3", "4–15", "16–63", "64–255", "256 and on")
_ENTROPIES = ("below 0.1", "0.1–0.5", "0.5–1", "1–2", "2–4", "4 and more")

Groups = dict[str, np.ndarray]
"""Name → bool [R], in the order of display; groups without rows are left out."""


def by_position(record_R: np.ndarray) -> Groups:
    """By the position in the response, 0 being the first supervised token of its record."""
    starts_R = np.concatenate([[True], record_R[1:] != record_R[:-1]])
    first_R = np.maximum.accumulate(np.where(starts_R, np.arange(len(record_R)), 0))
    return _by_edges(np.arange(len(record_R)) - first_R, POSITION_EDGES, _POSITIONS)


def by_entropy(entropy_R: np.ndarray) -> Groups:
    """By the entropy of the teacher's distribution, in nats."""
    return _by_edges(entropy_R, ENTROPY_EDGES, _ENTROPIES)


def by_source(record_R: np.ndarray, sources: Sequence[str]) -> Groups:
    """By the source of the record; `sources` has one name for each record."""
    names, number_S = np.unique(np.array(sources), return_inverse=True)
    return _filled({str(name): number_S[record_R] == number for number, name in enumerate(names)})


def _by_edges(values_R: np.ndarray, edges: Sequence[float], names: Sequence[str]) -> Groups:
    group_R = np.searchsorted(np.array(edges, np.float64), values_R, side="right")
    return _filled({name: group_R == number for number, name in enumerate(names)})


def _filled(groups: Groups) -> Groups:
    return {name: rows_R for name, rows_R in groups.items() if rows_R.any()}
