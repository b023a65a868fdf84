"""Some rows with both sides, and everything that several objectives would otherwise compute again."""

from __future__ import annotations

import torch

from llmdistill.objectives.student_logprobs import StudentLogprobs, student_logprobs
from llmdistill.objectives.support import Support, Tail, common_support, floored
from llmdistill.objectives.targets import DenseTargets, HeadTargets, TeacherTargets, WeightedTargets


class Rows:
    """The rows that are computed at one time; each normaliser over the vocabulary is computed once.

    Args:
        logits_RV: the student's logits over the real vocabulary.
        targets: the teacher's side of the same rows.

    """

    def __init__(self, logits_RV: torch.Tensor, targets: TeacherTargets) -> None:
        self.logits_RV = logits_RV
        self.targets = targets.dense() if isinstance(targets, HeadTargets) else targets
        self._students: dict[float, StudentLogprobs] = {}
        self._supports: dict[tuple[float, Tail], Support] = {}

    def student(self, temperature: float = 1.0) -> StudentLogprobs:
        """The student's log-probabilities at a temperature."""
        if temperature not in self._students:
            self._students[temperature] = student_logprobs(self.logits_RV, self.targets, temperature)
        return self._students[temperature]

    def teacher_actual(self) -> torch.Tensor:
        """The teacher's log-probability of the actual token [R], at temperature 1, in the student's precision."""
        if isinstance(self.targets, DenseTargets):
            teacher_RV = self.support(1.0, "bucket").teacher_RE
            return teacher_RV.gather(1, self.targets.actual_ids_R.unsqueeze(1)).squeeze(1)
        assert self.targets.actual_logprobs_R is not None, "needs the teacher's log-probability of the actual token"
        return floored(self.targets.actual_logprobs_R.to(self.student().actual_R.dtype))

    def support(self, temperature: float, tail: Tail) -> Support:
        """Both distributions over the same outcomes; of weighted targets, over their exact head and a tail."""
        key = (temperature, tail)
        if key not in self._supports:
            if isinstance(self.targets, WeightedTargets):
                head = self.targets.head()
                student = student_logprobs(self.logits_RV, head, temperature)
                self._supports[key] = common_support(student, head, temperature, tail)
            else:
                self._supports[key] = common_support(self.student(temperature), self.targets, temperature, tail)
        return self._supports[key]
