"""The training loop of one rank."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from llmdistill.cache.order import StepPlan, plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import earlier_student
from llmdistill.errors import DataError, TrainingError
from llmdistill.objectives.balance import balanced_factors
from llmdistill.objectives.terms import weight_at
from llmdistill.student.creation import load_student
from llmdistill.student.trainable import require_trainable
from llmdistill.trainer.checkpoint import (
    CheckpointState,
    latest_checkpoint,
    load_checkpoint,
    needs_reshaping,
    read_state,
    remove_universal,
    require_same_training,
    save_checkpoint,
    universal_checkpoint,
)
from llmdistill.trainer.data import Step, read_ahead
from llmdistill.trainer.engine import initialize
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.metrics import MetricsFile
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.states import StateNeeds

_MEASURE_EVERY = 10
"""Logged steps between two with gradient norms per objective, which cost one more pass over the logits each."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_MOST_SKIPPED = 50
"""Steps in a row that may overflow in fp16 before the training gives up."""


def make_plan(reader: CacheReader, job: TrainJob) -> StepPlan:
    """The steps of a training, the same on every rank.

    Raises:
        DataError: no training record, no supervised row, or a record longer than a packed sequence.

    """
    records, _ = reader.split(job.held_out)
    if not len(records) or not reader.row_counts[records].sum():
        raise DataError("the cache holds no training record with supervised tokens", where=str(job.cache))
    longest = int(reader.token_counts[records].max())
    if longest > job.train.sequence_length:
        raise DataError(
            f"the longest record has {longest} tokens, train.sequence_length is {job.train.sequence_length}",
            where=str(job.cache),
            fix=f"use a train.sequence_length of at least {longest}",
        )
    sequences_per_step = job.train.tokens_per_step // job.train.sequence_length
    return plan_steps(
        reader.token_counts, records, job.train.epochs, job.train.seed, job.train.sequence_length, sequences_per_step
    )


def first_and_total_steps(job: TrainJob) -> tuple[int, int]:
    """Steps that are done already, and steps in all; raises as `make_plan` does."""
    total = len(make_plan(CacheReader(job.cache), job))
    checkpoint = latest_checkpoint(job.checkpoints)
    return (read_state(checkpoint).step if checkpoint else 0), total


def run_training(job: TrainJob, last_step: int | None = None) -> None:
    """Train to the end, from the newest checkpoint; the process group exists already. Ends with a checkpoint.

    Args:
        job: what to train.
        last_step: end after this step instead, without a checkpoint; for measurements.

    Raises:
        DataError: data or checkpoint do not fit.
        TrainingError: the loss is not finite.

    """
    reader = CacheReader(job.cache)
    plan = make_plan(reader, job)
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    training, _ = reader.split(job.held_out)
    keys = [reader.keys[number] for number in training]

    factors: dict[str, float] = {}

    def state(step: int) -> CheckpointState:
        return CheckpointState(step, len(plan), num_ranks, job.train.zero_stage, job.identity(keys), dict(factors))

    first = 0
    checkpoint = latest_checkpoint(job.checkpoints)
    if checkpoint is not None:
        found = read_state(checkpoint)
        require_same_training(found, state(found.step), checkpoint)
        first = found.step
        factors.update(found.factors)
    if first == len(plan):
        return
    module = make_module(job, reader.spec.vocabulary_size)
    engine = _engine(module, job, len(plan), checkpoint)
    metrics = MetricsFile(job.metrics, job.name, first) if rank == 0 else None
    steps = read_ahead(reader, plan, first, rank, num_ranks, job.train.micro_batch_size, job.train.sequence_length)
    for step in steps:
        values = _run_step(engine, step, job, num_ranks, len(plan), factors)
        done = step.number + 1
        last = done == len(plan)
        evaluated = job.train.eval_steps is not None and (done % job.train.eval_steps == 0 or last)
        if evaluated:
            values |= evaluate_held_out(engine, reader, job, rank, num_ranks)
        if metrics and (done % job.train.logging_steps == 0 or last or evaluated):
            metrics.write(done, {"total_steps": len(plan), **values})
        if done % job.train.save_steps == 0 or last:
            save_checkpoint(engine, job.checkpoints, state(done), job.train.save_total_limit)
        if done == last_step:
            break
    engine.destroy()


def _engine(module: DistillationModule, job: TrainJob, total_steps: int, checkpoint: Path | None) -> Any:
    """The engine, at the checkpoint if there is one: of this number of workers or of another."""
    if checkpoint is None:
        return initialize(module, job.train, total_steps)
    if not needs_reshaping(read_state(checkpoint), torch.distributed.get_world_size()):
        engine = initialize(module, job.train, total_steps)
        load_checkpoint(engine, checkpoint)
        return engine
    universal = universal_checkpoint(checkpoint)
    engine = initialize(module, job.train, total_steps, universal=True)
    load_checkpoint(engine, universal)
    remove_universal(universal)
    return engine


def make_module(job: TrainJob, vocabulary_size: int) -> DistillationModule:
    """The student with its objectives, and the live teacher where one is needed; on the rank's device.

    Raises:
        ConfigError: a model that the objectives cannot use.

    """
    dtype, needs = _DTYPES[job.train.precision], StateNeeds.of(job.objectives)
    student = load_student(job.init, dtype, needs.attention_implementation)
    require_trainable(student, f"the student {job.init}")
    student.train()
    if job.train.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def frozen(folder: Path | None, needs: StateNeeds) -> LiveTeacher | None:
        return None if folder is None else LiveTeacher.load(folder, dtype, vocabulary_size, needs).to(device)

    teacher, earlier = frozen(job.teacher, needs), frozen(earlier_student(job.objectives), StateNeeds())
    live_logits = job.train.soft_labels == "live"
    return DistillationModule(student, vocabulary_size, job.objectives, teacher, live_logits, earlier)


@torch.no_grad()
def evaluate_held_out(engine: Any, reader: CacheReader, job: TrainJob, rank: int, num_ranks: int) -> dict[str, float]:
    """Mean of each objective over the supervised rows of the held-out records, the same on every rank."""
    _, records = reader.split(job.held_out)
    rows = int(reader.row_counts[records].sum())
    if not rows:
        raise DataError(
            "there is no held-out record with supervised tokens",
            where=str(job.cache),
            fix="raise prompts.held_out, or leave train.eval_steps out",
        )
    size, length = job.train.micro_batch_size, job.train.sequence_length
    plan = plan_steps(reader.token_counts, records, 1, job.train.seed, length, num_ranks * size)
    sums = torch.zeros(len(job.objectives), device=engine.device)
    engine.eval()
    for step in read_ahead(reader, plan, 0, rank, num_ranks, size, length):
        for micro_batch in step.micro_batches:
            sums += engine(micro_batch.to(engine.device))[1]
    engine.train()
    torch.distributed.all_reduce(sums)
    return {f"eval_{job.objectives[i].type}": value / rows for i, value in enumerate(sums.tolist())}


def _run_step(
    engine: Any, step: Step, job: TrainJob, num_ranks: int, total_steps: int, factors: dict[str, float]
) -> dict[str, Any]:
    """One optimizer step; with `train.balance_objectives` a measured one sets `factors` for those after it."""
    started = time.monotonic()
    learning_rate = engine.optimizer.param_groups[0]["lr"]
    progress = step.number / max(total_steps - 1, 1)
    measure = (step.number + 1) % (_MEASURE_EVERY * job.train.logging_steps) == 0
    sums = torch.zeros(2, len(job.objectives), device=engine.device)
    # DeepSpeed averages gradients over ranks and micro-batches; the factor turns that into the sum over the step's
    # rows divided by their number, so that neither ranks nor accumulation weigh in.
    factor = num_ranks * len(step.micro_batches) / max(step.global_rows, 1)
    for micro_batch in step.micro_batches:
        total, *micro_sums = engine(micro_batch.to(engine.device), progress, measure, factors)
        engine.backward(total * factor)
        engine.step()
        sums += torch.stack(micro_sums)
    torch.distributed.all_reduce(sums)
    plain: dict[str, float] = {objective.type: weight_at(objective, progress) for objective in job.objectives}
    weights = {name: weight * factors.get(name, 1.0) for name, weight in plain.items()}
    values, norms = (sums[0] / max(step.global_rows, 1)).tolist(), (sums[1].sqrt() / max(step.global_rows, 1)).tolist()
    loss = sum(weight * value for weight, value in zip(weights.values(), values, strict=True))
    if not math.isfinite(loss):
        raise TrainingError(f"the loss of step {step.number + 1} is {loss}", fix="lower train.lr")
    skipped = _skipped_steps(engine, step.number + 1)
    balance = {f"{name}_balance": factor for name, factor in factors.items()}
    if job.train.balance_objectives and measure:
        factors.update(balanced_factors(dict(zip(plain, norms, strict=True)), plain))
    seconds = time.monotonic() - started + step.wait_seconds
    return {
        "loss": loss,
        **dict(zip(weights, values, strict=True)),
        **{f"{name}_weighted": weights[name] * value for name, value in zip(weights, values, strict=True)},
        **{f"{name}_grad_norm": weights[name] * norm for name, norm in zip(weights, norms, strict=True) if measure},
        **balance,
        "learning_rate": learning_rate,
        "grad_norm": float(engine.get_global_grad_norm() or 0.0),
        **({"skipped_steps": skipped} if job.train.precision == "fp16" else {}),
        "rows": step.global_rows,
        "tokens": step.global_tokens,
        "tokens_per_second": step.global_tokens / seconds,
        "step_seconds": seconds,
        "data_wait_seconds": step.wait_seconds,
    }


def _skipped_steps(engine: Any, step: int) -> int:
    """Optimizer steps that DeepSpeed skipped so far, because fp16 gradients overflowed.

    Raises:
        TrainingError: the last `_MOST_SKIPPED` in a row.

    """
    skipped = int(engine.skipped_steps)
    if skipped != getattr(engine, "skipped_before", 0):
        engine.skipped_before, engine.skipped_in_a_row = skipped, getattr(engine, "skipped_in_a_row", 0) + 1
    else:
        engine.skipped_in_a_row = 0
    if engine.skipped_in_a_row >= _MOST_SKIPPED:
        raise TrainingError(
            f"{_MOST_SKIPPED} steps in a row overflowed in fp16, the last is step {step}",
            fix="use train.precision: bf16",
        )
    return skipped
