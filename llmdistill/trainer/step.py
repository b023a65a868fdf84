"""One optimizer step of one rank, and what is said of it."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from llmdistill.objectives.balance import balanced_factors
from llmdistill.objectives.terms import weight_at
from llmdistill.trainer.data import Step
from llmdistill.trainer.flops import StepFlops, peak_flops
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.signs import Signs
from llmdistill.trainer.skipping import SkipLimit, find_cause, guard_plain_optimizer, poisoned

_MEASURE_EVERY = 10
"""Logged steps between two with gradient norms per objective, which cost one more pass over the logits each."""


class Stepper:
    """Runs the steps of a training.

    Args:
        engine: DeepSpeed's.
        job: the training.
        total_steps: of the whole training.
        factors: of the weights, where objectives are balanced; set by measured steps for those after them.
        flops: of the models.
        signs: told what begins.

    """

    def __init__(
        self,
        engine: Any,
        job: TrainJob,
        total_steps: int,
        factors: dict[str, float],
        flops: StepFlops,
        signs: Signs,
    ) -> None:
        self._engine, self._job, self._total_steps, self._factors = engine, job, total_steps, factors
        self._flops, self._signs = flops, signs
        self._peak = peak_flops(job.train.precision)
        self.skips = SkipLimit(job.train)
        """To be checked when a step has been logged."""
        self._names: list[str] = [objective.name for objective in job.objectives]

    def run(self, step: Step) -> dict[str, Any]:
        """One step; returns its values for the log, the same on every rank but for times and memory."""
        started = time.monotonic()
        engine, number = self._engine, step.number + 1
        learning_rate = engine.optimizer.param_groups[0]["lr"]
        progress = step.number / max(self._total_steps - 1, 1)
        measure = number % (_MEASURE_EVERY * self._job.train.logging_steps) == 0
        before = engine.skipped_steps
        values_MO, squares_O = self._accumulate(step, progress, measure)
        sums = torch.stack([values_MO.sum(0), squares_O])
        torch.distributed.all_reduce(sums)
        plain: dict[str, float] = {objective.name: weight_at(objective, progress) for objective in self._job.objectives}
        weights = {name: weight * self._factors.get(name, 1.0) for name, weight in plain.items()}
        weight = step.global_weight
        values, norms = (sums[0] / weight).tolist(), (sums[1].sqrt() / weight).tolist()
        skipped = find_cause(step, values_MO, self._names) if engine.skipped_steps != before else None
        self.skips.note(number, skipped)
        balance = {f"{name}_balance": factor for name, factor in self._factors.items()}
        if self._job.train.balance_objectives and measure and skipped is None:
            self._factors.update(balanced_factors(dict(zip(plain, norms, strict=True)), plain))
        return {
            "loss": sum(weight * value for weight, value in zip(weights.values(), values, strict=True)),
            **dict(zip(weights, values, strict=True)),
            **{f"{name}_weighted": weights[name] * value for name, value in zip(weights, values, strict=True)},
            **{f"{name}_grad_norm": weights[name] * norm for name, norm in zip(weights, norms, strict=True) if measure},
            **balance,
            "learning_rate": learning_rate,
            "grad_norm": float(engine.get_global_grad_norm() or 0.0),
            "skipped_steps": int(engine.skipped_steps),
            **({} if skipped is None else skipped.values()),
            **self._speed(step, time.monotonic() - started + step.wait_seconds),
        }

    def _accumulate(self, step: Step, progress: float, measure: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward, backward, optimizer; values [micro-batches, objectives] and squared gradient norms [objectives]."""
        engine = self._engine
        values, squares = [], torch.zeros(len(self._names), device=engine.device)
        # DeepSpeed averages gradients over ranks and micro-batches; the factor turns that into the sum over the step's
        # rows divided by their weight (1 each: their number), so that neither ranks nor accumulation weigh in.
        num_ranks = torch.distributed.get_world_size()
        factor = num_ranks * len(step.micro_batches) / step.global_weight
        self._signs.mark("compute", step.number + 1)
        for micro_batch in step.micro_batches:
            total, micro_values, micro_squares = engine(micro_batch.to(engine.device), progress, measure, self._factors)
            engine.backward(total * poisoned(factor, total, micro_values))
            values.append(micro_values.float())
            squares += micro_squares
            if len(values) == len(step.micro_batches):
                self._signs.mark("collective", step.number + 1)
                guard_plain_optimizer(engine)
            engine.step()
        return torch.stack(values), squares

    def _speed(self, step: Step, seconds: float) -> Mapping[str, float]:
        flops = self._flops.of(step.global_lengths_S, step.global_rows)
        workers = torch.distributed.get_world_size()
        share = {} if self._peak is None else {"model_flops_utilization": flops / seconds / (self._peak * workers)}
        return {
            "rows": step.global_rows,
            "tokens": step.global_tokens,
            "tokens_per_second": step.global_tokens / seconds,
            "step_seconds": seconds,
            "data_wait_seconds": step.wait_seconds,
            "data_wait_share": step.wait_seconds / seconds,
            "model_flops_per_second": flops / seconds,
            **share,
            "peak_memory_bytes": _peak_memory(),
        }


def _peak_memory() -> int:
    """The most that this rank held so far: on its GPU, or in main memory where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
