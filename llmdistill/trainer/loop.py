"""The training loop of one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import earlier_student
from llmdistill.student.adapters import add_adapters
from llmdistill.student.creation import load_student
from llmdistill.student.trainable import require_trainable
from llmdistill.trainer.average import follow_average, load_sharded_average
from llmdistill.trainer.checkpoint import (
    CheckpointState,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    require_same_training,
    save_checkpoint,
)
from llmdistill.trainer.course import Stretch, identity_of_records, stretches, total_steps
from llmdistill.trainer.data import Step, read_ahead
from llmdistill.trainer.engine import initialize
from llmdistill.trainer.held_out import best_so_far, evaluate_held_out
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.signs import Signs, clear_signs
from llmdistill.trainer.source_weights import record_weights, require_sources
from llmdistill.trainer.states import StateNeeds
from llmdistill.trainer.step import Stepper
from llmdistill.trainer.trackers import TrainingLog
from llmdistill.trainer.universal import needs_reshaping, remove_universal, universal_checkpoint

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def first_and_total_steps(job: TrainJob) -> tuple[int, int]:
    """Steps that are done already, and steps in all; raises as `make_plan` does."""
    total = total_steps(job)
    checkpoint = latest_checkpoint(job.checkpoints)
    return (read_state(checkpoint).step if checkpoint else 0), total


def run_training(job: TrainJob, last_step: int | None = None) -> None:
    """Train to the end, from the newest checkpoint; the process group exists already. Ends with a checkpoint.

    Args:
        job: what to train.
        last_step: end after this step instead, without a checkpoint; for measurements.

    Raises:
        DataError: data or checkpoint do not fit.
        TrainingError: too many steps were not finite.

    """
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank == 0:
        clear_signs(job.signs)
    torch.distributed.barrier()
    with Signs(job.signs, rank, num_ranks, job.train.watchdog_timeout_s) as signs:
        _Training(job, signs).run(last_step)


class _Training:
    def __init__(self, job: TrainJob, signs: Signs) -> None:
        self._job, self._signs = job, signs
        self._rank, self._num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._total = total_steps(job)
        self._last = job.pause or self._total
        """The step that this call ends with, and a checkpoint."""
        self._done = 0
        self._saved = 0
        self._factors: dict[str, float] = {}
        self._best = best_so_far(job.train, None)
        self._identity: dict[str, Any] = {}
        self._engine: Any = None
        self._log: TrainingLog | None = None

    def run(self, last_step: int | None) -> None:
        job = self._job
        course = stretches(job, self._rank, lambda: self._signs.mark("cache", self._done + 1))
        stretch = next(course)
        if not job.train.wait_for_cache:
            require_sources(stretch.reader, job.train.source_weights, job.cache)
        checkpoint = self._continue(stretch.reader)
        if self._done >= self._last or self._best.ends(job.train):
            return
        # Before any model is loaded: a service that is missing is said at once.
        self._log = TrainingLog(job, self._done) if self._rank == 0 else None
        try:
            self._train(stretch, course, checkpoint, last_step)
        finally:
            if self._log:
                self._log.close()

    def _train(
        self, stretch: Stretch, course: Iterator[Stretch], checkpoint: Path | None, last_step: int | None
    ) -> None:
        module = make_module(self._job, stretch.reader.spec.vocabulary_size)
        flops = module.model_flops()
        self._engine = _engine(module, self._job, self._total, checkpoint)
        average = module.earlier.model if module.earlier and earlier_student(self._job.objectives) == "ema" else None
        if average and checkpoint is not None:
            follow_average(average, module.student, self._engine)
        stepper = Stepper(self._engine, self._job, self._total, self._factors, flops, self._signs)
        self._signs.mark("data", self._done + 1)
        for step, reader in self._steps(stretch, course):
            values = stepper.run(step)
            if average:
                follow_average(average, module.student, self._engine)
            self._done = step.number + 1
            last = self._close(values, reader)
            stepper.skips.check()
            if last or self._done == last_step:
                break
            self._signs.mark("data", self._done + 1)
        if self._saved < self._done != last_step:
            # The epochs of a growing cache were done before train.max_steps.
            self._save()
        self._engine.destroy()

    def _continue(self, reader: CacheReader) -> Path | None:
        """Take over what the newest checkpoint says; None where there is none."""
        job = self._job
        self._identity = job.identity(identity_of_records(job, reader))
        checkpoint = latest_checkpoint(job.checkpoints)
        if checkpoint is not None:
            found = read_state(checkpoint)
            require_same_training(found, self._state(), checkpoint)
            self._done = self._saved = found.step
            self._factors.update(found.factors)
            self._best = best_so_far(job.train, found.best)
        self._signs.mark("start", self._done + 1)
        return checkpoint

    def _steps(self, stretch: Stretch, course: Iterator[Stretch]) -> Iterator[tuple[Step, CacheReader]]:
        """The steps that are left, with the reader of their records."""
        size, length = self._job.train.micro_batch_size, self._job.train.sequence_length
        following: Stretch | None = stretch
        while following is not None:
            plan, before, waited = following.plan, following.first, following.wait_seconds
            weights = record_weights(following.reader, self._job.train.source_weights)
            first = max(self._done - before, 0)
            for step in read_ahead(following.reader, plan, first, self._rank, self._num_ranks, size, length, weights):
                if before + step.number == self._total:
                    return
                wait, waited = step.wait_seconds + waited, 0.0
                yield dataclasses.replace(step, number=before + step.number, wait_seconds=wait), following.reader
            following = next(course, None)

    def _close(self, values: dict[str, Any], reader: CacheReader) -> bool:
        """Evaluate, log and save where the settings ask for it; whether this was the last step."""
        train, done = self._job.train, self._done
        last = done == self._last
        evaluated = train.eval_steps is not None and (done % train.eval_steps == 0 or last)
        if evaluated:
            self._signs.mark("evaluation", done)
            found = evaluate_held_out(self._engine, reader, self._job, self._signs, done)
            self._best = self._best.after(done, found[train.metric_for_best_model])
            values |= found
        last = last or self._best.ends(train)
        if self._log and (done % train.logging_steps == 0 or last or evaluated or "not_finite" in values):
            self._log.write(done, {"total_steps": self._total, **values})
        if done % train.save_steps == 0 or last or (train.load_best_model_at_end and self._best.step == done):
            self._save()
        return last

    def _save(self) -> None:
        self._signs.mark("checkpoint", self._done)
        save_checkpoint(self._engine, self._job.checkpoints, self._state(), self._job.train.save_total_limit)
        self._saved = self._done

    def _state(self) -> CheckpointState:
        keeps = self._job.train.load_best_model_at_end or self._job.train.early_stopping_patience is not None
        return CheckpointState(
            self._done,
            self._total,
            self._num_ranks,
            self._job.train.zero_stage,
            self._identity,
            dict(self._factors),
            asdict(self._best) if keeps else None,
        )


def _engine(module: DistillationModule, job: TrainJob, total_steps: int, checkpoint: Path | None) -> Any:
    """The engine, at the checkpoint if there is one: of this number of workers or of another."""
    if checkpoint is None:
        return initialize(module, job.train, total_steps)
    if not needs_reshaping(read_state(checkpoint), torch.distributed.get_world_size()):
        engine = initialize(module, job.train, total_steps)
        load_checkpoint(engine, checkpoint)
        return engine
    average = job.train.ema_decay is not None
    universal = universal_checkpoint(checkpoint, average)
    engine = initialize(module, job.train, total_steps, universal=True)
    load_checkpoint(engine, universal)
    if average and job.train.zero_stage == 3:
        load_sharded_average(engine, universal)
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
    if job.lora:
        add_adapters(student, job.lora, job.train.seed)
    student.train()
    if job.train.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if job.train.torch_compile:
        # In place, so that no name changes; the head and the objectives keep their own way of saving memory.
        backend, mode = job.train.torch_compile_backend, job.train.torch_compile_mode
        student.base_model.compile(backend=backend or "inductor", mode=mode)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def frozen(folder: Path | None, needs: StateNeeds) -> LiveTeacher | None:
        return None if folder is None else LiveTeacher.load(folder, dtype, vocabulary_size, needs).to(device)

    past = earlier_student(job.objectives)
    folder = job.init if past == "ema" else None if past is None else Path(past)
    teacher, earlier = frozen(job.teacher, needs), frozen(folder, StateNeeds())
    if past == "ema" and earlier and job.lora:
        add_adapters(earlier.model, job.lora, job.train.seed)
        earlier.model.requires_grad_(False).to(device).eval()  # type: ignore[arg-type]
    live_logits = job.train.soft_labels == "live"
    return DistillationModule(student, vocabulary_size, job.objectives, teacher, live_logits, earlier)
