"""Both sides of a few rows, from plain probabilities or random logits."""

from __future__ import annotations

import torch

from llmdistill.objectives.targets import DenseTargets, TopKTargets

FLOAT = torch.float64


def top_k(logits_RV: torch.Tensor, k: int, temperatures: tuple[float, ...] = (), seed: int = 0) -> TopKTargets:
    """What a cache would hold of a teacher with these logits."""
    logprobs_RV = logits_RV.log_softmax(dim=1)
    kept, ids = logprobs_RV.topk(k, dim=1)
    actual = torch.multinomial(logprobs_RV.exp(), 1, generator=torch.Generator().manual_seed(seed))
    return TopKTargets(
        actual_ids_R=actual[:, 0],
        ids_RK=ids,
        logprobs_RK=kept,
        mass_R=kept.exp().sum(dim=1),
        actual_logprobs_R=logprobs_RV.gather(1, actual)[:, 0],
        log_sum_exps={value: (logprobs_RV / value).logsumexp(dim=1) for value in temperatures},
    )


def dense(logits_RV: torch.Tensor, actual: list[int] | None = None) -> DenseTargets:
    """The same teacher, alive."""
    return DenseTargets(actual_ids_R=torch.tensor(actual or [0] * len(logits_RV)), logits_RV=logits_RV)


def logits_of(*rows: list[float]) -> torch.Tensor:
    """Logits of these probabilities; a constant does not matter."""
    return torch.tensor(rows, dtype=FLOAT).log() + 3.7


def random_logits(rows: int, vocabulary: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    """Reproducible, float64."""
    return scale * torch.randn(rows, vocabulary, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))
