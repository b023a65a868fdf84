"""`train:` how the student is trained; names follow transformers' TrainingArguments where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmdistill.config.base import Section
from llmdistill.errors import ConfigError


class TrainConfig(Section):
    """Optimisation, batch shape, sharding and checkpoints."""

    epochs: PositiveInt = 1
    """Passes over the training records."""
    lr: PositiveFloat = 3.0e-4
    """Peak learning rate of AdamW."""
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps in which the rate climbs from 0 to `lr`; then it follows half a cosine."""
    min_lr_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Where the cosine ends, as a share of `lr`."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """On matrices only; never on norms and biases."""
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's first moment."""
    adam_beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """AdamW's second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this global norm."""
    balance_objectives: bool = False
    """Every tenth logged step, set factors of the weights (`<type>_balance`) so that the gradients of the objectives by
    the logits stand in the ratio of the weights."""
    soft_labels: Literal["cache", "live"] = "cache"
    """Where the teacher's distributions come from. `live`: the frozen teacher runs beside the student on every worker
    and gives its whole distribution, on the tokens of the cache; slower, exact, and at any temperature. Objectives on
    hidden states, attention and relations bring the teacher along in either case."""
    sequence_length: PositiveInt = 1024
    """Tokens of a packed sequence; longer records are refused."""
    micro_batch_size: PositiveInt = 1
    """Packed sequences per worker and forward pass."""
    tokens_per_step: PositiveInt = 8192
    """Token slots of an optimizer step over all workers:
    workers × micro_batch_size × sequence_length × accumulation."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu` keeps the optimizer's states in main memory (ZeRO 1 to 3)."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Keys of DeepSpeed's own configuration, for what has no setting here; they win and are shown when the training
    starts. Batch sizes are not among them."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16` and `fp16` keep float32 master weights; `fp16` scales the loss and skips steps that overflow."""
    workers: PositiveInt = 1
    """Training processes, one GPU each (or one core without GPUs)."""
    max_restarts: NonNegativeInt = 2
    """How often Ray starts the workers again, at the newest checkpoint, when one has died."""
    eval_steps: PositiveInt | None = None
    """Evaluate the objectives on the held-out records every so many steps (`eval_<type>` in metrics.jsonl); null:
    never."""
    save_steps: PositiveInt = 50
    """A checkpoint every so many steps, and at the end."""
    save_total_limit: PositiveInt = 2
    """Older checkpoints are removed."""
    logging_steps: PositiveInt = 1
    """Steps between two lines of metrics.jsonl."""
    seed: int = 0
    """Order of the samples."""

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Self:
        assert self.accumulation_steps  # raises where it does not divide
        return self

    @model_validator(mode="after")
    def _deepspeed_keys(self) -> Self:
        owned = {
            "train_batch_size": "tokens_per_step",
            "train_micro_batch_size_per_gpu": "micro_batch_size",
            "gradient_accumulation_steps": "tokens_per_step",
            "optimizer": "lr and its neighbours",
            "scheduler": "warmup_ratio and min_lr_ratio",
        }
        for key in self.deepspeed:
            if key in owned:
                raise ValueError(f"train.deepspeed.{key}: follows from train.{owned[key]}; set that instead")
        automatic = [".".join(path) for path, value in _leaves(self.deepspeed) if value == "auto"]
        if automatic:
            raise ValueError(f"train.deepspeed.{automatic[0]}: auto is a word of other programs; give the value")
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("train.offload_optimizer: needs a train.zero_stage of at least 1")
        return self

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per worker and optimizer step.

        Raises:
            ConfigError: the batch sizes do not divide.

        """
        slots = self.workers * self.micro_batch_size * self.sequence_length
        if self.tokens_per_step % slots:
            lower, upper = self.tokens_per_step // slots * slots, -(-self.tokens_per_step // slots) * slots
            raise ConfigError(
                f"tokens_per_step {self.tokens_per_step} is not a multiple of workers {self.workers} × "
                f"micro_batch_size {self.micro_batch_size} × sequence_length {self.sequence_length} = {slots}",
                where="train.tokens_per_step",
                fix=f"use {' or '.join(str(value) for value in (lower, upper) if value)}",
            )
        return self.tokens_per_step // slots


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
