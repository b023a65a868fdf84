"""The whole configuration: one YAML file describes a run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from llmdistill.config.base import Section
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.evaluate import EvaluateConfig
from llmdistill.config.export import ExportConfig
from llmdistill.config.objectives import (
    AnyObjective,
    AuxiliaryObjective,
    earlier_student,
    require_captured,
    require_text,
)
from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.student import StudentConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.config.train import TrainConfig
from llmdistill.config.tune import TuneConfig


class RunConfig(Section):
    """One run, from prompts to report."""

    output: str
    """The run's folder; relative paths start at the working directory."""
    prompts: PromptsConfig
    """What the teacher is asked about."""
    teacher: TeacherConfig
    """The model that is distilled."""
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
    def _best_model_has_a_known_metric(self) -> Self:
        known = ["eval_loss", *(f"eval_{objective.name}" for objective in self.objectives)]
        if self.train.metric_for_best_model not in known:
            raise ValueError(f"train.metric_for_best_model: must be one of {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _rounds_say_how_long(self) -> Self:
        train = self.train
        if self.rounds is None:
            asked = [objective.name for objective in self.objectives if getattr(objective, "text", "all") == "student"]
            if asked:
                raise ValueError(f"objectives: {asked[0]} looks at the student's own text, and only `rounds` make any")
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
        if self.teacher.engine == "openai" and (self.capture.kind != "top_k" or temperatures):
            wanted = f"kind: {self.capture.kind}" if self.capture.kind != "top_k" else f"temperatures: {temperatures}"
            raise ValueError(
                f"capture.{wanted}: a server gives the most likely tokens and their log-probabilities, and neither"
                " samples of its distribution, statistics at other temperatures nor hidden states; use capture.kind:"
                " top_k without temperatures, or teacher.engine: vllm or huggingface"
            )
        return self

    @model_validator(mode="after")
    def _objectives_are_captured(self) -> Self:
        sampling = self.teacher.sampling
        require_captured(
            self.objectives,
            kind=self.capture.kind,
            temperatures=self.capture.temperatures,
            mode=self.prompts.mode,
            sampling=(sampling.temperature, sampling.top_p),
            live=self.train.soft_labels == "live",
        )
        return self
