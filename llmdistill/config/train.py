"""`train:` how the student is trained; names follow transformers' TrainingArguments where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmdistill.config.base import Section
from llmdistill.config.selection import SelectConfig
from llmdistill.errors import ConfigError

FREE_TO_CHANGE = frozenset(
    {
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "eval_steps",
        "workers",
        "min_workers",
        "micro_batch_size",
        "max_restarts",
        "gradient_checkpointing",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "offload_optimizer",
        "deepspeed",
        "report_to",
        "max_skipped_share",
        "watchdog_timeout_s",
        "wait_for_cache",
        "cache_timeout_s",
        "load_best_model_at_end",
        "metric_for_best_model",
        "early_stopping_patience",
    }
)
"""Settings that change how a training runs and not what comes out."""


class TrainConfig(Section):
    """Optimisation, batch shape, sharding and checkpoints."""

    epochs: PositiveInt = 1
    """Passes over the training records."""
    max_steps: PositiveInt | None = None
    """End after so many optimizer steps, even within an epoch; learning rate and schedules of the objectives run over
    them. null: at the end of the epochs."""
    wait_for_cache: bool = False
    """Begin while the fleet still fills the cache, and wait for it where it is slower. How many steps there will be is
    not known then: `max_steps` says it, and training ends earlier where the epochs are done before."""
    cache_timeout_s: PositiveFloat = 3600.0
    """With `wait_for_cache`: how long the fleet may write nothing before the training ends."""
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
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keep a moving average of the weights with this decay a step (0.999 averages over about a thousand steps) and
    export it; null: export the weights themselves."""
    balance_objectives: bool = False
    """Every tenth logged step, set factors of the weights (`<type>_balance`) so that the gradients of the objectives by
    the logits stand in the ratio of the weights."""
    soft_labels: Literal["cache", "live"] = "cache"
    """Where the teacher's distributions come from. `live`: the frozen teacher runs beside the student on every worker
    and gives its whole distribution, on the tokens of the cache; slower, exact, and at any temperature. Objectives on
    hidden states, attention and relations bring the teacher along in either case."""
    source_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """How much the rows of a source weigh in the loss: its `label` → weight; 1 for the others. The loss is
    Σ weight·value / Σ weight over the supervised rows of the global step."""
    select: SelectConfig | None = None
    """Train on a share of the records only; null: on all of them."""
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
    torch_compile: bool = False
    """Compile the student's blocks with `torch.compile`, at ZeRO stages 0 to 2 and for objectives on logits. The first
    steps take longer."""
    torch_compile_backend: str | None = None
    """Of `torch.compile`; null: inductor, which needs Triton on GPUs and a C++ compiler without them."""
    torch_compile_mode: str | None = None
    """Of `torch.compile`: `default`, `reduce-overhead`, `max-autotune`; null: default."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16` and `fp16` keep float32 master weights; `fp16` scales the loss and skips steps that overflow."""
    workers: PositiveInt = 1
    """Training processes, one GPU each (or one core without GPUs)."""
    min_workers: PositiveInt | None = None
    """Fewest workers that a training may go on with where nodes are lost: of the numbers of which the batch is a
    multiple, each start takes the largest that the cluster holds. null: always `workers`."""
    max_restarts: NonNegativeInt = 2
    """How often Ray starts the workers again, at the newest checkpoint, when one has died."""
    eval_steps: PositiveInt | None = None
    """Evaluate the objectives on the held-out records every so many steps (`eval_<type>` in metrics.jsonl); null:
    never."""
    load_best_model_at_end: bool = False
    """Export the checkpoint with the best held-out value instead of the last one. It is written whenever an evaluation
    is better than all before, and never removed."""
    metric_for_best_model: str = "eval_loss"
    """`eval_loss`, the weighted sum, or `eval_<type>` of an objective; lower is better."""
    early_stopping_patience: PositiveInt | None = None
    """End after so many evaluations in a row that are not better than the best; null: never."""
    save_steps: PositiveInt = 50
    """A checkpoint every so many steps, and at the end."""
    save_total_limit: PositiveInt = 2
    """Older checkpoints are removed, but for the best."""
    logging_steps: PositiveInt = 1
    """Steps between two lines of metrics.jsonl."""
    report_to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where the lines of metrics.jsonl go besides TensorBoard, which always has them. The packages are not installed
    with llmdistill and take project, server and keys from their own environment variables."""
    max_skipped_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """A step whose loss or gradient is not finite on any worker is skipped on all. More of the last 100 steps than this
    share end the training; 0: the first one does. In fp16 an overflow that only lowers the loss scale does not count,
    but 50 in a row do."""
    watchdog_timeout_s: PositiveFloat | None = 540.0
    """The training ends when a worker showed no sign of life for so long: waits for its data, is in one forward and
    backward pass, in one collective or in a checkpoint. The default is just below NCCL's own ten minutes, so that the
    message says which worker waits for what; null: never."""
    seed: int = 0
    """Order of the samples."""

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Self:
        assert self.accumulation_steps  # raises where it does not divide
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"train.min_workers: {self.min_workers} is more than train.workers {self.workers}")
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

    @model_validator(mode="after")
    def _checkpoints_are_whole(self) -> Self:
        if dict(_leaves(self.deepspeed)).get(("zero_optimization", "offload_optimizer", "device")) == "nvme":
            raise ValueError(
                "train.deepspeed.zero_optimization.offload_optimizer: with nvme DeepSpeed leaves the states out of its"
                " checkpoints and copies its swap files beside them, which nothing can export or split anew; use"
                " train.offload_optimizer: cpu"
            )
        if "writer" in (self.deepspeed.get("checkpoint") or {}):
            raise ValueError(
                "train.deepspeed.checkpoint.writer: a checkpoint gets its name when its files are there, and these"
                " writers may end later, or give up without a word; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _compiled(self) -> Self:
        if self.torch_compile and self.zero_stage == 3:
            raise ValueError(
                "train.torch_compile: ZeRO-3 gathers the weights of each layer in hooks that a compiled graph does not"
                " run; use a train.zero_stage of at most 2"
            )
        if not self.torch_compile and (self.torch_compile_backend or self.torch_compile_mode):
            raise ValueError("train.torch_compile_backend, train.torch_compile_mode: need train.torch_compile")
        return self

    @model_validator(mode="after")
    def _evaluations(self) -> Self:
        wanted = {
            "load_best_model_at_end": self.load_best_model_at_end,
            "early_stopping_patience": self.early_stopping_patience is not None,
        }
        for name in [name for name, asked in wanted.items() if asked]:
            if self.eval_steps is None:
                raise ValueError(f"train.{name}: needs train.eval_steps")
            if self.wait_for_cache:
                raise ValueError(f"train.{name}: the held-out records of a cache that grows are not always the same")
        return self

    @model_validator(mode="after")
    def _growing_caches_need_a_length(self) -> Self:
        if self.wait_for_cache and self.max_steps is None:
            raise ValueError(
                "train.wait_for_cache: needs train.max_steps, since nobody knows yet how long the epochs are"
            )
        if self.wait_for_cache and self.select is not None:
            raise ValueError(
                "train.select: chooses among all records, and with train.wait_for_cache they are not there yet; leave"
                " one of the two out"
            )
        return self

    @property
    def selected_share(self) -> float:
        """Share of the training records that is trained on."""
        return 1.0 if self.select is None else self.select.keep

    def worker_counts(self) -> list[int]:
        """Numbers of workers that the training may run on, the largest first."""
        slots = self.tokens_per_step // (self.micro_batch_size * self.sequence_length)
        return [n for n in range(self.workers, (self.min_workers or self.workers) - 1, -1) if slots % n == 0]

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
