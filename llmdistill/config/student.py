"""`student:` the model that is trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from llmdistill.config.base import Section

OTHER_TOKENIZER = (
    "use a student of the teacher's family or student.from_teacher; or sequence-level distillation on the teacher's"
    " text in the student's own tokens: student.tokenizer: own, with sequence_ce (hard_ce on scored data) or"
    " likelihood_matching, which matches the probabilities of whole pieces of text"
)
"""Ways out where the student's tokenizer is not the teacher's."""

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def _parameters(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", value.strip().upper())
        if match is None:
            raise ValueError(f"'{value}' is not a number of parameters; write 60M, 1.7B or 60000000")
        return round(float(match[1]) * _SUFFIXES[match[2]])
    return value


class CalibrationConfig(Section):
    """Records of the cache on which importance is measured, by the teacher itself."""

    records: PositiveInt = 32
    """How many training records, always the same ones of a cache."""
    tokens: PositiveInt = 512
    """Tokens that are used of each, from its start."""


class FromTeacherConfig(Section):
    """A student cut out of the teacher. Sizes that are not given stay as they are."""

    parameters: Annotated[PositiveInt, BeforeValidator(_parameters)] | None = None
    """Parameters of the student (`60M`, `1.7B`), embeddings included. Its shape is chosen within 5 %, around the sizes
    that are given beside it; the table of choices is shown."""
    layers: PositiveInt | tuple[NonNegativeInt, ...] | None = None
    """Number of decoder layers, or a list of the teacher's layers to keep (the first is 0)."""
    choose_layers: Literal["uniform", "first_last", "block_influence", "divergence"] = "uniform"
    """Which layers stay, where only their number is given: `uniform` at equal distances, first and last included;
    `first_last` half from the start and half from the end; `block_influence` those that change their input most;
    `divergence` drops, one after the other, the layer without which the teacher's distributions change least."""
    hidden_size: PositiveInt | None = None
    """Channels of the residual stream."""
    num_attention_heads: PositiveInt | None = None
    """Query heads; their size stays."""
    num_key_value_heads: PositiveInt | None = None
    """Key-value heads; not given, whole groups of query heads are dropped with theirs."""
    intermediate_size: PositiveInt | None = None
    """Neurons of the feed-forward layers."""
    experts: PositiveInt | None = None
    """Experts of each layer of a mixture of experts: those that the router chooses most."""
    dense_experts: PositiveInt | None = None
    """Make a dense student of a mixture of experts: so many of each layer's most used experts, side by side, become its
    feed-forward layer."""
    calibration: CalibrationConfig = CalibrationConfig()
    """For everything that is chosen by importance."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        given = self.model_dump(exclude={"choose_layers", "calibration"}, exclude_none=True)
        if not given:
            raise ValueError(f"give a size, one of {', '.join(sorted(set(type(self).model_fields) - _CHOICES))}")
        if self.experts is not None and self.dense_experts is not None:
            raise ValueError("experts keeps a mixture, dense_experts makes a dense model: give one of them")
        if isinstance(self.layers, tuple) and self.choose_layers != "uniform":
            raise ValueError("layers is a list, so there is nothing for choose_layers to choose")
        return self

    @property
    def cuts_width(self) -> bool:
        """Whether anything but the layers is cut."""
        return bool(self.model_dump(exclude=_CHOICES | {"layers"}, exclude_none=True))

    @property
    def measures(self) -> bool:
        """Whether anything is chosen by importance, for which records of the cache are read."""
        return self.cuts_width or self.choose_layers in ("block_influence", "divergence")


_CHOICES = {"choose_layers", "calibration"}


class LoRAConfig(Section):
    """Low-rank adapters, with peft's names: only they are trained, and the export has them merged into the weights."""

    r: PositiveInt = 16
    """Rank of the adapters."""
    lora_alpha: PositiveInt = 32
    """The adapters' product is scaled by `lora_alpha` / `r`."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapters' inputs; each worker draws its own, so losses then depend on the number of workers."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: `all-linear` (all but the head), or ends of their names such as `q_proj`."""


class StudentConfig(Section):
    """Where the student's first weights come from: exactly one of `from_teacher`, `model` and `config`."""

    from_teacher: FromTeacherConfig | None = None
    """Cut out of the teacher."""
    model: str | None = None
    """A Hugging Face folder or hub id."""
    tokenizer: Literal["teacher", "own"] = "teacher"
    """`teacher`: the student reads and writes the teacher's tokens, and a `model` with other ones is refused. `own`: it
    keeps the tokenizer and the chat template of its `model`; the teacher's text is tokenized again for it, and
    objectives that compare distributions token by token are refused."""
    config: dict[str, Any] | str | None = None
    """Random weights: the keys of a Hugging Face config (`model_type` and sizes), or a folder with a config.json."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights; null: all weights."""
    seed: int = 0
    """Of random weights, and of rows that a vocabulary lacks."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the student's files, here and after the training; `auto` is that of its origin (bfloat16 for
    `config`)."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.from_teacher, self.model, self.config)) != 1:
            raise ValueError("give exactly one of student.from_teacher, student.model and student.config")
        if self.tokenizer == "own" and self.model is None:
            raise ValueError(
                "student.tokenizer: own is the tokenizer of student.model; a student that is cut out of the teacher, or"
                " of random weights, has the teacher's"
            )
        if self.config is not None and self.lora is not None:
            raise ValueError("student.lora: adapters on random weights that are never trained; leave it out")
        if isinstance(self.config, dict) and not isinstance(self.config.get("model_type"), str):
            raise ValueError("student.config needs a model_type, for example llama")
        return self
