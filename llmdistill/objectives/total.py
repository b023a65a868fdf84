"""The weighted total of a step, and the one place where values per row are reduced.

total = Σ_objective weight · Σ_rows T² · row weight · value / (Σ row weight of the whole step)

An objective that looks at some text only has the value 0 on all other rows.

The denominator is over the supervised rows of all ranks and all micro-batches, and their number where nothing weighs
them; whoever knows the whole step passes it in, so that neither ranks nor accumulation change the result. T² stands
here and nowhere else: the gradient of a softmax at temperature T is 1/T² of the one at 1, and the factor keeps the
balance of the objectives (Hinton et al. 2015, arXiv 1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmdistill.objectives.rows import Rows
from llmdistill.objectives.targets import TeacherTargets
from llmdistill.objectives.terms import Term


def row_values(logits_RV: torch.Tensor, targets: TeacherTargets, terms: Sequence[Term]) -> torch.Tensor:
    """T² · row weight · value of each term and row: float32 or better [len(terms), R]."""
    rows = Rows(logits_RV, targets)
    values = [_on_its_text(term, term.values(rows) * term.temperature**2, targets.student_rows_R) for term in terms]
    if targets.row_weights_R is not None:
        values = [value_R * targets.row_weights_R for value_R in values]
    return torch.stack(values)


def _on_its_text(term: Term, values_R: torch.Tensor, student_rows_R: torch.Tensor | None) -> torch.Tensor:
    if term.text == "all":
        return values_R
    assert student_rows_R is not None, "the targets do not say who wrote the rows"
    return torch.where(student_rows_R if term.text == "student" else ~student_rows_R, values_R, 0)


def row_sums(logits_RV: torch.Tensor, targets: TeacherTargets, terms: Sequence[Term]) -> torch.Tensor:
    """Σ_rows of `row_values`: [len(terms)]."""
    return row_values(logits_RV, targets, terms).sum(dim=1)


def weighted_total(sums: torch.Tensor, terms: Sequence[Term], global_rows: int) -> torch.Tensor:
    """The scalar to differentiate, from `row_sums`.

    Args:
        sums: [len(terms)].
        terms: in the same order.
        global_rows: supervised rows of the whole optimizer step; a step without any has the total 0.

    """
    return (sums * sums.new_tensor([term.weight for term in terms])).sum() / max(global_rows, 1)
