"""The objectives on the held-out records, and the best checkpoint by one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from llmdistill.cache.order import plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.config.train import TrainConfig
from llmdistill.errors import DataError
from llmdistill.objectives.terms import weight_at
from llmdistill.trainer.data import read_ahead, weight_of
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.signs import Signs
from llmdistill.trainer.source_weights import record_weights


@torch.no_grad()
def evaluate_held_out(engine: Any, reader: CacheReader, job: TrainJob, signs: Signs, step: int) -> dict[str, float]:
    """Mean of each objective over the supervised rows of the held-out records, and their weighted sum `eval_loss`.

    The same on every rank. Objectives weigh what they do at the end of the training, and rows what their sources do.

    Args:
        engine: DeepSpeed's.
        reader: the cache.
        job: the training.
        signs: told of every batch.
        step: after which it happens.

    Raises:
        DataError: no held-out record has supervised tokens.

    """
    _, records = reader.split(job.held_out)
    rows = int(reader.row_counts[records].sum())
    if not rows:
        raise DataError(
            "there is no held-out record with supervised tokens",
            where=str(job.cache),
            fix="raise prompts.held_out, or leave train.eval_steps out",
        )
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size, length = job.train.micro_batch_size, job.train.sequence_length
    plan = plan_steps(reader.token_counts, records, 1, job.train.seed, length, num_ranks * size)
    weights = record_weights(reader, job.train.source_weights)
    sums = torch.zeros(len(job.objectives), device=engine.device)
    engine.eval()
    for part in read_ahead(reader, plan, 0, rank, num_ranks, size, length, weights):
        signs.mark("evaluation", step)
        for micro_batch in part.micro_batches:
            sums += engine(micro_batch.to(engine.device))[1]
    engine.train()
    torch.distributed.all_reduce(sums)
    means = (sums / weight_of(reader, records, weights)).tolist()
    values = {f"eval_{job.objectives[i].name}": value for i, value in enumerate(means)}
    loss = sum(weight_at(objective, 1.0) * value for objective, value in zip(job.objectives, means, strict=True))
    return {"eval_loss": loss, **values}


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: str
    step: int = 0
    """Optimizer steps that were done then; 0: none was finite yet."""
    value: float | None = None
    evaluations_since: int = 0
    """Evaluations after it, none of them better."""

    def after(self, step: int, value: float) -> Best:
        """The record when a further evaluation is known."""
        if math.isfinite(value) and (self.value is None or value < self.value):
            return Best(self.metric, step, value)
        return Best(self.metric, self.step, self.value, self.evaluations_since + 1)

    def ends(self, train: TrainConfig) -> bool:
        """Whether `train.early_stopping_patience` is at its end."""
        return train.early_stopping_patience is not None and self.evaluations_since >= train.early_stopping_patience


def best_so_far(train: TrainConfig, record: dict[str, Any] | None) -> Best:
    """The record of a checkpoint; a new one where there is none, or one of another metric.

    Args:
        train: the settings.
        record: `CheckpointState.best`.

    """
    if record is not None and record["metric"] == train.metric_for_best_model:
        return Best(**record)
    return Best(train.metric_for_best_model)
