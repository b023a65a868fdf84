"""`capture:` what is kept of the teacher's distributions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from llmdistill.config.base import Section


class CaptureConfig(Section):
    """What is kept at each supervised position."""

    kind: Literal["top_k", "sampled", "head_tail"] = "top_k"
    """`top_k`: the k most likely tokens and their log-probabilities. `sampled`: tokens drawn with replacement, right on
    average. `head_tail`: the most likely tokens exactly and draws from the rest, right on average with less noise."""
    top_k: int = Field(default=64, ge=1, le=1024)
    """`top_k`: entries kept per position."""
    draws: int = Field(default=50, ge=1, le=1024)
    """`sampled`: draws per position. `head_tail`: as many for each unit of probability outside of the head."""
    head_mass: float = Field(default=0.9, gt=0.0, lt=1.0)
    """`head_tail`: the head ends where it holds this much probability, …"""
    head_size: int = Field(default=8, ge=1, le=1024)
    """… or this many tokens."""
    temperatures: tuple[Annotated[float, Field(gt=0.0)], ...] = ()
    """Temperatures other than 1 that objectives use. The log-sum-exp at each of them is kept per position, with
    which a divergence at that temperature is exact for `top_k`."""
    logprobs: Literal["u4", "u8", "u12", "f16"] = "u8"
    """How log-probabilities are stored: companded to 4, 8 or 12 bits, or as float16 (docs/format.md has the errors)."""
    compression: Literal["none", "zstd"] = "none"
    """`zstd` makes shards about a quarter smaller; a cache may hold both."""
    hidden_layers: tuple[NonNegativeInt, ...] = ()
    """Layers whose hidden states are kept; 0 is the embedding's output. Needs `teacher.engine: huggingface`."""
    hidden_format: Literal["bf16", "int8"] = "bf16"
    """How hidden states are stored; `int8` has a scale per position."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name, values in (("temperatures", self.temperatures), ("hidden_layers", self.hidden_layers)):
            if len(set(values)) < len(values):
                raise ValueError(f"each value may stand once in {name}, found {list(values)}")
        return self

    def spec_fields(self) -> dict[str, Any]:
        """The fields of `types.CaptureSpec` that this section decides; those of other kinds are 0."""
        return {
            "kind": self.kind,
            "top_k": self.top_k if self.kind == "top_k" else 0,
            "draws": 0 if self.kind == "top_k" else self.draws,
            "head_mass": self.head_mass if self.kind == "head_tail" else 0.0,
            "head_size": self.head_size if self.kind == "head_tail" else 0,
            "temperatures": tuple(sorted(set(self.temperatures) - {1.0})),
            "logprobs": self.logprobs,
            "hidden_layers": tuple(sorted(self.hidden_layers)),
            "hidden_format": self.hidden_format,
        }
