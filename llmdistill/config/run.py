"""The whole configuration: one YAML file describes a run."""

from __future__ import annotations

import difflib
from typing import Annotated, Self

from pydantic import Field, model_validator

from llmdistill.config.base import Section
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.evaluate import EvaluateConfig
from llmdistill.config.export import ExportConfig
from llmdistill.config.likelihood_matching import LikelihoodMatchingConfig
from llmdistill.config.objectives import (
    AnyObjective,
    AuxiliaryObjective,
    earlier_student,
    needs_teacher,
    require_captured,
    require_sequence_level,
    require_text,
)
from llmdistill.config.prompts import MAIN_TEACHER, PromptsConfig
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.self_distillation import SelfDistillationConfig
from llmdistill.config.student import StudentConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.config.train import TrainConfig
from llmdistill.config.tune import TuneConfig

TeacherName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class RunConfig(Section):
    """One run, from prompts to report."""

    output: str
    """The run's folder; relative paths start at the working directory."""
    prompts: PromptsConfig
    """What the teacher is asked about."""
    teacher: TeacherConfig
    """The model that is distilled. With several, the one whose tokenizer and chat template make the prompts and from
    whose layers `student.from_teacher` takes; it answers the sources that name no teacher."""
    teachers: dict[TeacherName, TeacherConfig] = Field(default_factory=dict)
    """Further teachers by name, for `prompts.sources[].teachers`. Their tokenizers give the same ids as the first's."""
    capture: CaptureConfig = CaptureConfig()
    """What is kept of its distributions."""
    student: StudentConfig
    """The model that is trained."""
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    """What it is trained on."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    rounds: RoundsConfig | None = None
    """With what the student writes itself, in rounds; null: on the cache alone."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured."""
    export: ExportConfig = ExportConfig()
    """The folder that comes out."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""
    tune: TuneConfig | None = None
    """What `llmdistill tune` searches; null: its defaults. A run does not look at it."""

    @model_validator(mode="after")
    def _distinct_objectives(self) -> Self:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"each type of objective may stand once in objectives for each text, found {names}")
        return self

    @model_validator(mode="after")
    def _balanced_objectives_are_comparable(self) -> Self:
        inner = [objective.type for objective in self.objectives if isinstance(objective, AuxiliaryObjective)]
        if self.train.balance_objectives and inner:
            raise ValueError(
                f"train.balance_objectives: the gradient of {inner[0]} is by other states and cannot be held against"
                " those by the logits; set its weight by hand, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_are_not_looked_into(self) -> Self:
        inner = [
            objective.type
            for objective in self.objectives
            if isinstance(objective, AuxiliaryObjective)
            and not isinstance(objective, (SelfDistillationConfig, LikelihoodMatchingConfig))
        ]
        if self.train.torch_compile and inner:
            raise ValueError(
                f"train.torch_compile: {inner[0]} reads or changes states inside of the student by hooks, which a"
                " compiled graph does not run; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _best_model_has_a_known_metric(self) -> Self:
        known = ["eval_loss", *(f"eval_{objective.name}" for objective in self.objectives)]
        if self.train.metric_for_best_model not in known:
            raise ValueError(f"train.metric_for_best_model: must be one of {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _rounds_say_how_long(self) -> Self:
        train = self.train
        if self.rounds is None:
            return self
        for name, given in (("max_steps", train.max_steps is not None), ("wait_for_cache", train.wait_for_cache)):
            if given:
                raise ValueError(
                    f"train.{name}: rounds.count × rounds.steps say how long the training is; leave it out"
                )
        if train.select is not None:
            raise ValueError("train.select: chooses from a cache that is complete; leave it out, or the rounds")
        if self.capture.hidden_layers:
            raise ValueError("capture.hidden_layers: the student's text has none; leave them out, or the rounds")
        if self.cluster.autoscaling:
            raise ValueError(
                "cluster.autoscaling: rounds use teachers and trainers in turn, and a cluster that scales to one of"
                " them would not hold the other; use a cluster of a fixed size, or leave the rounds out"
            )
        return self

    @model_validator(mode="after")
    def _objectives_see_their_text(self) -> Self:
        sampling = None if self.rounds is None else (self.rounds.sampling.temperature, self.rounds.sampling.top_p)
        require_text(self.objectives, sampling)
        return self

    @model_validator(mode="after")
    def _the_average_is_kept(self) -> Self:
        if earlier_student(self.objectives) == "ema" and self.train.ema_decay is None:
            raise ValueError(
                "self_distillation.model: ema needs train.ema_decay, for example 0.999; or name a model folder"
            )
        return self

    @model_validator(mode="after")
    def _teachers_and_sources_fit(self) -> Self:
        if MAIN_TEACHER in self.teachers:
            raise ValueError(f"teachers.{MAIN_TEACHER}: this is the name of the section {MAIN_TEACHER}; choose another")
        known = [MAIN_TEACHER, *self.teachers]
        for number, source in enumerate(self.prompts.sources):
            for name in source.teachers:
                if name not in known:
                    nearest = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}"
                    raise ValueError(f"prompts.sources.{number}.teachers.{name}: there is no such teacher; {hint}")
        for name in self.teachers:
            if name not in self.asked_teachers:
                raise ValueError(f"teachers.{name}: no source names it; add it to prompts.sources[].teachers")
        return self

    @model_validator(mode="after")
    def _a_live_teacher_is_one(self) -> Self:
        if set(self.asked_teachers) == {MAIN_TEACHER}:
            return self
        live = {
            "train.soft_labels: live": self.train.soft_labels == "live",
            "objectives on inner states": needs_teacher(self.objectives),
            "capture.hidden_layers": bool(self.capture.hidden_layers),
            "rounds": self.rounds is not None,
        }
        for what in [what for what, asked in live.items() if asked]:
            raise ValueError(
                f"{what}: these are states or scores of one model, and {', '.join(self.asked_teachers)} answer the"
                f" prompts; let the section {MAIN_TEACHER} answer all of them, or keep to soft labels of the cache"
            )
        return self

    @model_validator(mode="after")
    def _weighted_sources_exist(self) -> Self:
        labels = list(dict.fromkeys(source.known_as for source in self.prompts.sources))
        for label in self.train.source_weights:
            if label not in labels:
                raise ValueError(
                    f"train.source_weights: no source is called '{label}'; they are called {', '.join(labels)}"
                    " (prompts.sources[].label)"
                )
        return self

    @model_validator(mode="after")
    def _hidden_states_can_be_captured(self) -> Self:
        if self.capture.hidden_layers and self.teacher.engine != "huggingface":
            raise ValueError(
                f"capture.hidden_layers: the {self.teacher.engine} engine gives no hidden states; use teacher.engine:"
                " huggingface, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _a_server_gives_top_k(self) -> Self:
        temperatures = self.capture.spec_fields()["temperatures"]
        servers = [one for one in self.asked_teachers.values() if one.engine == "openai"]
        if servers and (self.capture.kind != "top_k" or temperatures):
            wanted = f"kind: {self.capture.kind}" if self.capture.kind != "top_k" else f"temperatures: {temperatures}"
            raise ValueError(
                f"capture.{wanted}: a server gives the most likely tokens and their log-probabilities, and neither"
                " samples of its distribution, statistics at other temperatures nor hidden states; use capture.kind:"
                " top_k without temperatures, or teacher.engine: vllm or huggingface"
            )
        return self

    @model_validator(mode="after")
    def _tokenizers_allow_it(self) -> Self:
        if self.student.tokenizer == "teacher":
            return self
        require_sequence_level(self.objectives)
        if len(self.asked_teachers) > 1:
            raise ValueError(
                "student.tokenizer: own has one teacher's text tokenized again, and the sources name"
                f" {', '.join(self.asked_teachers)}; let one answer all, or use student.tokenizer: teacher"
            )
        if self.rounds is not None:
            raise ValueError(
                "rounds: the teacher scores the student's tokens, and with student.tokenizer: own they are not its own;"
                " leave the rounds out, or use student.tokenizer: teacher"
            )
        if self.train.select is not None:
            raise ValueError(
                "train.select: goes by what the cache says of each token, and the records that a student with"
                " student.tokenizer: own is trained on say it of chunks; leave it out"
            )
        if self.train.soft_labels == "live":
            raise ValueError(
                "train.soft_labels: live gives distributions over the teacher's vocabulary, which a student with"
                " student.tokenizer: own does not have; use train.soft_labels: cache"
            )
        if self.train.wait_for_cache:
            raise ValueError(
                "train.wait_for_cache: the text is tokenized again when the teacher's cache is complete; leave it out,"
                " or use student.tokenizer: teacher"
            )
        return self

    @model_validator(mode="after")
    def _objectives_are_captured(self) -> Self:
        for teacher in self.asked_teachers.values():
            require_captured(
                self.objectives,
                kind=self.capture.kind,
                temperatures=self.capture.temperatures,
                mode=self.prompts.mode,
                sampling=(teacher.sampling.temperature, teacher.sampling.top_p),
                live=self.train.soft_labels == "live",
            )
        return self

    @property
    def asked_teachers(self) -> dict[str, TeacherConfig]:
        """The teachers that answer prompts, by name: `teacher` first, then those of `teachers` in their order."""
        asked = {name for source in self.prompts.sources for name in source.answered_by}
        return {name: one for name, one in {MAIN_TEACHER: self.teacher, **self.teachers}.items() if name in asked}
