"""`objectives:` a list of weighted objectives, told apart by `type`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from llmdistill.config.self_distillation import SelfDistillationConfig, SelfDistillationObjective
from llmdistill.config.structure import MappedConfig, StructureObjective
from llmdistill.config.weighting import ScheduleConfig, TextObjectiveConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TemperedConfig(TextObjectiveConfig):
    """A divergence between the teacher's distribution and the student's."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Softmax temperature on both sides; the value is multiplied by its square. Any but 1 must be captured."""
    temperature_schedule: ScheduleConfig | None = None
    """Factor of the temperature that changes while the training runs; needs `train.soft_labels: live`."""

    @model_validator(mode="after")
    def _temperature_stays_positive(self) -> Self:
        schedule = self.temperature_schedule
        if schedule is not None and min(schedule.start, schedule.end) <= 0.0:
            raise ValueError("temperature_schedule: start and end must be above 0")
        return self


class DivergenceConfig(TemperedConfig):
    """A divergence that any tail policy but `ground_truth` fits."""

    tail: Literal["bucket", "renormalize", "none"] = "bucket"
    """What stands for the tokens outside the stored top k. `bucket`: one outcome on both sides for all of them;
    `renormalize`: both sides are rescaled to the kept tokens; `none`: nothing, so that values may be negative."""


class ForwardKLConfig(TemperedConfig):
    """KL(teacher ‖ student)."""

    type: Literal["forward_kl"]
    """Name of the objective."""
    tail: Literal["bucket", "ground_truth", "renormalize", "none"] = "bucket"
    """As in other divergences; and `ground_truth`: the actual token counts in full where it is outside of the top k,
    which is unbiased on text that the teacher sampled at temperature 1 with top_p 1."""


class ReverseKLConfig(DivergenceConfig):
    """KL(student ‖ teacher)."""

    type: Literal["reverse_kl"]
    """Name of the objective."""
    support: Literal["teacher", "student"] = "teacher"
    """Whose ids count one by one. `teacher`: the stored ones, or all of them with a live teacher; `student`: the
    student's own most likely ones, with one outcome for all others; needs `train.soft_labels: live`."""
    student_top_k: PositiveInt = 64
    """How many ids of `support: student`."""

    @model_validator(mode="after")
    def _top_k_belongs_to_the_students_support(self) -> Self:
        if "student_top_k" in self.model_fields_set and self.support != "student":
            raise ValueError("student_top_k: counts the ids of support: student; set that too, or leave it out")
        return self


class JSDConfig(DivergenceConfig):
    """Generalised Jensen-Shannon divergence, with the mixture β·teacher + (1-β)·student."""

    type: Literal["jsd"]
    """Name of the objective."""
    beta: Share = 0.5
    """Share of the teacher; 0 means the forward KL, 1 the reverse KL."""


class SkewForwardKLConfig(DivergenceConfig):
    """KL(teacher ‖ α·teacher + (1-α)·student)."""

    type: Literal["skew_forward_kl"]
    """Name of the objective."""
    alpha: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Skew; 0 is the forward KL."""


class SkewReverseKLConfig(DivergenceConfig):
    """KL(student ‖ (1-α)·teacher + α·student)."""

    type: Literal["skew_reverse_kl"]
    """Name of the objective."""
    alpha: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Skew; 0 is the reverse KL."""


class AdaptiveKLConfig(TemperedConfig):
    """Forward KL where the teacher's head differs, reverse KL where its tail does."""

    type: Literal["adaptive_kl"]
    """Name of the objective."""
    tail: Literal["bucket", "renormalize"] = "bucket"
    """As in other divergences."""
    head_mass: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Probability up to which the most likely tokens are the head."""


class TotalVariationConfig(DivergenceConfig):
    """Half the sum of the absolute differences."""

    type: Literal["total_variation"]
    """Name of the objective."""


class AlphaBetaConfig(DivergenceConfig):
    """One family over forward KL (1, 0), reverse KL (0, 1) and Hellinger (½, ½)."""

    type: Literal["alpha_beta"]
    """Name of the objective."""
    alpha: float = Field(default=0.5, ge=0.0)
    """Power on the teacher's side."""
    beta: float = Field(default=0.5, ge=0.0)
    """Power on the student's side."""

    @model_validator(mode="after")
    def _one_is_positive(self) -> Self:
        if self.alpha == 0.0 and self.beta == 0.0:
            raise ValueError("alpha and beta are both 0; use 1 and 0 for the forward KL, or 0.5 and 0.5")
        return self


class TAIDConfig(TemperedConfig):
    """Forward KL to a target that moves from the student to the teacher."""

    type: Literal["taid"]
    """Name of the objective."""
    tail: Literal["bucket", "renormalize"] = "bucket"
    """As in other divergences."""
    start: Share = 0.4
    """Where the target stands at the first step: 0 is the student, 1 the teacher."""
    until: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the steps after which the target is the teacher."""


class HardCEConfig(TextObjectiveConfig):
    """Cross-entropy of the student on the tokens of the data; needs `prompts.mode: score`."""

    type: Literal["hard_ce"]
    """Name of the objective."""


class SequenceCEConfig(TextObjectiveConfig):
    """Cross-entropy of the student on the tokens of the response."""

    type: Literal["sequence_ce"]
    """Name of the objective."""


class ZLossConfig(TextObjectiveConfig):
    """Square of the student's log-normaliser, which keeps its logits small."""

    type: Literal["z_loss"]
    """Name of the objective."""
    weight: float = Field(default=1.0e-4, gt=0.0)
    """Factor in the total."""


class PolicyGradientConfig(TextObjectiveConfig):
    """KL(student ‖ teacher) as a policy gradient on text that the student drew at temperature 1.

    Needs the teacher's log-probability of the actual token alone. The gradient averages to that of the divergence and
    the value, log q - log p of the actual token, to the divergence.
    """

    type: Literal["policy_gradient"]
    """Name of the objective."""
    text: Literal["all", "student"] = "student"
    """As in other objectives; `all` is for a cache that holds nothing but the student's text under other names."""
    discount: Share = 0.0
    """Weight of the advantage of each later token of the record against that of the one before it. 0: a token answers
    for itself alone; 1: for all that follows. Above 0 the head is run twice."""


LogitObjective = (
    ForwardKLConfig
    | ReverseKLConfig
    | JSDConfig
    | SkewForwardKLConfig
    | SkewReverseKLConfig
    | AdaptiveKLConfig
    | TotalVariationConfig
    | AlphaBetaConfig
    | TAIDConfig
    | HardCEConfig
    | SequenceCEConfig
    | ZLossConfig
    | PolicyGradientConfig
)
AuxiliaryObjective = StructureObjective | SelfDistillationObjective
"""What needs more than the student's logits and the teacher's distributions."""
AnyObjective = Annotated[LogitObjective | AuxiliaryObjective, Field(discriminator="type")]


def require_captured(
    objectives: Sequence[AnyObjective],
    kind: str,
    temperatures: Sequence[float],
    mode: str,
    sampling: tuple[float, float],
    live: bool = False,
) -> None:
    """Refuse objectives that need what the capture does not hold.

    Args:
        objectives: as configured.
        kind: `top_k`, `sampled` or `head_tail`.
        temperatures: of the stored log-sum-exps; 1 needs none.
        mode: `generate` or `score`.
        sampling: temperature and top_p of the teacher's text.
        live: whole distributions of a live teacher take the place of the captured ones.

    Raises:
        ValueError: names the key, the reason and the ways out.

    """
    for number, objective in enumerate(objectives):
        where = f"objectives.{number}"
        if isinstance(objective, HardCEConfig) and mode != "score":
            raise ValueError(
                f"{where}.type: hard_ce is the cross-entropy on the data's own tokens, and with prompts.mode generate"
                " there are only the teacher's; use sequence_ce, or prompts.mode: score"
            )
        if isinstance(objective, TemperedConfig) and live:
            if "tail" in objective.model_fields_set:
                raise ValueError(
                    f"{where}.tail: the distributions of a live teacher are whole and have no tail; leave it out, or"
                    " use train.soft_labels: cache"
                )
        elif isinstance(objective, TemperedConfig):
            if isinstance(objective, ReverseKLConfig) and objective.support == "student":
                raise ValueError(
                    f"{where}.support: the capture holds the teacher's most likely ids, and not p of the student's; use"
                    " support: teacher, or train.soft_labels: live"
                )
            _require_temperature(objective, where, kind, temperatures)
            if kind == "top_k":
                _require_policy(objective, where, mode, sampling)
            else:
                _require_entries(objective, where, kind)


def _require_temperature(objective: TemperedConfig, where: str, kind: str, temperatures: Sequence[float]) -> None:
    value = objective.temperature
    if objective.temperature_schedule is not None:
        raise ValueError(
            f"{where}.temperature_schedule: stored rows are exact at the captured temperatures only; use a fixed"
            " one of these, or train.soft_labels: live"
        )
    if value == 1.0:
        return
    if kind != "top_k":
        raise ValueError(
            f"{where}.temperature: {kind} entries are right on average at temperature 1 only, not at {value:g}; use 1.0"
        )
    if value not in temperatures:
        raise ValueError(
            f"{where}.temperature: {value:g} needs the teacher's log-sum-exp at that temperature, and only"
            f" {', '.join(f'{held:g}' for held in sorted({1.0, *temperatures}))} is captured;"
            f" add {value:g} to capture.temperatures, or use 1.0"
        )


def _require_policy(objective: AnyObjective, where: str, mode: str, sampling: tuple[float, float]) -> None:
    if not isinstance(objective, ForwardKLConfig) or objective.tail != "ground_truth":
        return
    ways_out = "use tail: bucket, or prompts.mode: generate with teacher.sampling.temperature 1 and top_p 1"
    if mode != "generate" or sampling != (1.0, 1.0):
        found = f"sampling at temperature {sampling[0]:g} and top_p {sampling[1]:g}" if mode == "generate" else mode
        raise ValueError(
            f"{where}.tail: ground_truth is unbiased only on text that the teacher sampled from its own distribution,"
            f" found {found}; {ways_out}"
        )
    if objective.temperature != 1.0:
        raise ValueError(
            f"{where}.tail: ground_truth holds at temperature 1 only, not at {objective.temperature:g}; use tail:"
            " bucket, or temperature 1.0"
        )
    if objective.text == "student":
        raise ValueError(
            f"{where}.tail: ground_truth is unbiased only on tokens that the teacher drew, not on the student's; use"
            " tail: bucket, or text: teacher"
        )


def _require_entries(objective: AnyObjective, where: str, kind: str) -> None:
    if isinstance(objective, ForwardKLConfig):
        if "tail" in objective.model_fields_set:
            raise ValueError(
                f"{where}.tail: {kind} entries cover the whole distribution on average and have no tail; leave it out,"
                " or use capture.kind: top_k"
            )
    elif kind == "sampled":
        raise ValueError(
            f"{where}.type: {objective.type} is not linear in the teacher's probabilities, so random draws give it no"
            " unbiased value; use forward_kl, or capture.kind: head_tail or top_k"
        )


def require_text(objectives: Sequence[AnyObjective], rounds: tuple[float, float] | None) -> None:
    """Refuse objectives on text that there is not, or that was drawn otherwise than they need.

    Args:
        objectives: as configured.
        rounds: temperature and top_p at which the student writes; None where it writes nothing.

    Raises:
        ValueError: names the key, the reason and the ways out.

    """
    for number, objective in enumerate(objectives):
        where = f"objectives.{number}"
        if not isinstance(objective, TextObjectiveConfig):
            continue
        if objective.text == "student" and rounds is None:
            raise ValueError(
                f"{where}.text: no record is the student's without rounds; add the section rounds, or use another text"
            )
        if isinstance(objective, PolicyGradientConfig) and rounds not in (None, (1.0, 1.0)):
            raise ValueError(
                f"{where}.type: policy_gradient is right on tokens that the student drew from its own distribution; use"
                " rounds.sampling with temperature 1 and top_p 1, or reverse_kl"
            )
        by_truth = isinstance(objective, ForwardKLConfig) and objective.tail == "ground_truth"
        if by_truth and objective.text != "teacher" and rounds is not None:
            raise ValueError(
                f"{where}.tail: ground_truth is unbiased only on tokens that the teacher drew, and rounds bring the"
                " student's; use text: teacher, or tail: bucket"
            )


def needs_teacher(objectives: Sequence[AnyObjective]) -> bool:
    """Whether an objective compares inner states of the teacher, so that it must run beside the student."""
    return any(isinstance(objective, MappedConfig) for objective in objectives)


def earlier_student(objectives: Sequence[AnyObjective]) -> str | None:
    """What an objective learns from besides the teacher: a model folder, or `ema`."""
    found = [objective.model for objective in objectives if isinstance(objective, SelfDistillationConfig)]
    return found[0] if found else None
