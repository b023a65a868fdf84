"""The module that DeepSpeed wraps: the student, its head and the objectives in one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.config.likelihood_matching import LikelihoodMatchingConfig
from llmdistill.config.objectives import AnyObjective, AuxiliaryObjective, PolicyGradientConfig
from llmdistill.config.self_distillation import ContrastiveConfig, DeepSupervisionConfig
from llmdistill.objectives.chunked_head import chunked_head, chunked_values
from llmdistill.objectives.likelihood_matching import matched_head
from llmdistill.objectives.policy_gradient import later_advantages
from llmdistill.objectives.targets import HeadTargets, TeacherTargets
from llmdistill.objectives.terms import Term, make_terms, policy_gradient_values, weight_at
from llmdistill.student.head import logit_softcap
from llmdistill.trainer.data import MicroBatch
from llmdistill.trainer.flops import ModelFlops, StepFlops
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.self_distillation import SelfDistillationObjectives, Views, part_of
from llmdistill.trainer.states import StateNeeds, States, forward_states, squared_gradient
from llmdistill.trainer.structure import StructureObjectives

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Passes:
    """What the models say of a micro-batch."""

    student: States
    teacher: States | None = None
    """Of the live teacher, where there is one."""
    views: Views | None = None
    """See `SelfDistillationObjectives.views`."""
    earlier: HeadTargets | None = None
    """Logits of the earlier student, where there is one."""


class DistillationModule(nn.Module):
    """Student in, sums of the objectives out.

    Args:
        student: a causal language model.
        vocabulary_size: the real vocabulary; rows of the head beyond it do not exist for the objectives.
        objectives: as configured.
        teacher: the live teacher, where an objective needs its states or its logits.
        live_logits: the live teacher's logits take the place of the stored rows.
        earlier: an earlier student, where an objective learns from one.

    """

    def __init__(
        self,
        student: PreTrainedModel,
        vocabulary_size: int,
        objectives: tuple[AnyObjective, ...],
        teacher: LiveTeacher | None = None,
        live_logits: bool = False,
        earlier: LiveTeacher | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objectives = ObjectivesHead(student, vocabulary_size, objectives, teacher)
        self.needs = StateNeeds.of(objectives)
        self._teacher = teacher
        self.earlier = earlier
        self._live_logits = live_logits
        self.register_state_dict_post_hook(_without_frozen)

    def head_weight(self) -> nn.Parameter:
        """The head's weight [V, D], whole outside of ZeRO-3."""
        weight: nn.Parameter = self.student.get_output_embeddings().weight
        return weight

    def model_flops(self) -> StepFlops:
        """Of all models; before ZeRO-3 takes the weights apart."""
        configured = self.objectives.configured
        return StepFlops(
            ModelFlops.of(self.student),
            views=2 * sum(isinstance(one, ContrastiveConfig) for one in configured),
            heads=sum(len(one.layers) for one in configured if isinstance(one, DeepSupervisionConfig)),
            teacher=ModelFlops.of(self._teacher.model) if self._teacher else None,
            teacher_head=self._live_logits,
            earlier=ModelFlops.of(self.earlier.model) if self.earlier else None,
        )

    def forward(
        self,
        batch: MicroBatch,
        progress: float = 1.0,
        measure_gradients: bool = False,
        factors: Mapping[str, float] | None = None,
    ) -> Sums:
        """See `ObjectivesHead.forward`."""
        states = forward_states(self.student, batch.token_ids_BT, batch.positions_BT, self.needs)
        # Every rank runs the student as often as the others, whether it has rows or not: under ZeRO-3 a pass is a
        # conversation of all of them.
        views = self.objectives.own.views(self.student, batch, progress)
        teacher_states = self._teacher.states(batch) if self._teacher and batch.has_rows else None
        targets: TeacherTargets | None
        if self._live_logits and teacher_states is not None:
            assert self._teacher is not None
            targets = self._teacher.targets(teacher_states, batch)
        else:
            targets = batch.targets(self.objectives.vocabulary_size)
        earlier = self.earlier.targets(self.earlier.states(batch), batch) if self.earlier and batch.has_rows else None
        passes = Passes(states, teacher_states, views, earlier)
        sums: Sums = self.objectives(passes, self.head_weight(), targets, batch, progress, measure_gradients, factors)
        return sums


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave out of checkpoints what is not trained, tied weights under both of their names."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


class ObjectivesHead(nn.Module):
    """No weights of its own but the projectors; ZeRO-3 gathers the head's weight around its forward pass."""

    def __init__(
        self,
        student: PreTrainedModel,
        vocabulary_size: int,
        objectives: tuple[AnyObjective, ...],
        teacher: LiveTeacher | None,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.configured = objectives
        self.structure = StructureObjectives(objectives, student, None if teacher is None else teacher.model)
        self._softcap = logit_softcap(student)
        self.own = SelfDistillationObjectives(objectives, student, vocabulary_size)

    def forward(
        self,
        passes: Passes,
        weight_VD: torch.Tensor,
        targets: TeacherTargets | None,
        batch: MicroBatch,
        progress: float,
        measure_gradients: bool,
        factors: Mapping[str, float] | None,
    ) -> Sums:
        """Sums over the supervised rows of the batch.

        Args:
            passes: what the models say.
            weight_VD: the head, whole.
            targets: the teacher's distributions of the supervised rows; None where there are no rows.
            batch: tells which slots are supervised.
            progress: of the training, for schedules: 0 at the first step, 1 at the last.
            measure_gradients: whether the third result is filled; it costs a pass over the logits per objective.
            factors: see `make_terms`.

        Returns:
            a differentiable scalar Σ_objective weight · Σ_rows value, the detached Σ_rows value per objective, and the
            squared norm of its gradient per objective (zeros where it is not asked for): by the logits, or by the inner
            states that the objective compares. Without supervised rows all are 0 and the scalar still reaches every
            weight, with gradient 0.

        """
        states = passes.student
        hidden_RD = states.final_BTD.flatten(0, 1)[batch.row_slots_R]
        if targets is None:
            nothing = hidden_RD.new_zeros(len(self.configured), dtype=torch.float32)
            reached = hidden_RD.sum() + weight_VD.sum() + sum(view.sum() for view in passes.views or ())
            return reached * 0.0 + self.structure.nothing(), nothing, nothing
        targets = self._with_later_advantages(hidden_RD, weight_VD, targets, batch)
        terms = make_terms(self.configured, progress, factors)
        parts = self._logit_parts(hidden_RD, weight_VD, targets, terms, measure_gradients)
        if self.structure.mapped:
            assert passes.teacher is not None
            for name, value in self.structure(states, passes.teacher, batch).items():
                square = squared_gradient(value, states.inner) if measure_gradients else None
                parts[name] = value, value.detach(), square
        parts |= self._matched(hidden_RD, weight_VD, targets, batch, measure_gradients)
        parts |= self.own.parts(states, weight_VD, batch, passes.views, passes.earlier, measure_gradients)
        return _weighted(parts, self.configured, progress)

    def _with_later_advantages(
        self, hidden_RD: torch.Tensor, weight_VD: torch.Tensor, targets: TeacherTargets, batch: MicroBatch
    ) -> TeacherTargets:
        """Where a row answers for later ones of its record, which may lie in another chunk of the head."""
        found = [objective for objective in self.configured if isinstance(objective, PolicyGradientConfig)]
        discounts = {objective.discount for objective in found} - {0.0}
        if not discounts:
            return targets
        gaps_R = chunked_values(
            hidden_RD, weight_VD, targets, policy_gradient_values, self.vocabulary_size, self._softcap
        )
        later = {discount: later_advantages(-gaps_R, batch.records_R(), discount) for discount in discounts}
        return dataclasses.replace(targets, later_advantages=later)

    def _matched(
        self,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets: TeacherTargets,
        batch: MicroBatch,
        measure: bool,
    ) -> dict[str, Any]:
        """Likelihood matching, where it is configured."""
        wanted = next((one for one in self.configured if isinstance(one, LikelihoodMatchingConfig)), None)
        if wanted is None:
            return {}
        assert batch.rows is not None
        sums = matched_head(
            hidden_RD,
            weight_VD,
            batch.actual_ids_R,
            batch.rows.chunk_ends_R,
            batch.rows.chunk_logprobs_E,
            wanted.temperature,
            self.vocabulary_size,
            measure,
            self._softcap,
            targets.row_weights_R,
        )
        return {wanted.type: part_of(sums)}

    def _logit_parts(
        self,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets: TeacherTargets,
        terms: list[Term],
        measure: bool,
    ) -> dict[str, Any]:
        """Of all objectives on logits: the total, weighted already, under "" and their values under their names."""
        if not terms:
            return {"": ((hidden_RD.sum() + weight_VD.sum()) * 0.0, None, None)}
        sums = chunked_head(hidden_RD, weight_VD, targets, terms, self.vocabulary_size, measure, softcap=self._softcap)
        parts: dict[str, Any] = {"": (sums.total, None, None)}
        for number, term in enumerate(terms):
            square = None if sums.squared_gradients is None else sums.squared_gradients[number]
            parts[term.name] = None, sums.values[number], square
        return parts


def _weighted(parts: dict[str, Any], objectives: Sequence[AnyObjective], progress: float) -> Sums:
    total = parts[""][0]
    for objective in objectives:
        if isinstance(objective, AuxiliaryObjective):
            total = total + weight_at(objective, progress) * parts[objective.name][0]
    values = torch.stack([parts[objective.name][1].to(total.dtype) for objective in objectives])
    squares = [parts[objective.name][2] for objective in objectives]
    found = [torch.zeros_like(total) if square is None else square.to(total.dtype) for square in squares]
    return total, values, torch.stack(found).detach()
