"""Weights that give every objective the same pull, from the gradient norms that were measured."""

from __future__ import annotations

from collections.abc import Mapping


def balanced_factors(
    grad_norms: Mapping[str, float], weights: Mapping[str, float], limit: float = 10.0
) -> dict[str, float]:
    """Factors for the weights, so that weight · factor · norm stands in the ratio of the weights.

    Normalised to leave the sum of the weighted norms as it was, and kept within [1/limit, limit], so that an objective
    that has nothing left to teach (norm near 0) does not take over. An objective of norm 0 keeps the factor 1.

    Source: the idea of GradNorm (arXiv 1711.02257), in closed form and without its own parameters.

    Args:
        grad_norms: objective name → norm of the gradient of its unweighted value.
        weights: objective name → weight.
        limit: at least 1.

    """
    active = [name for name in weights if grad_norms[name] > 0 and weights[name] > 0]
    total = sum(weights[name] * grad_norms[name] for name in active)
    shares = sum(weights[name] for name in active)
    factors = dict.fromkeys(weights, 1.0)
    for name in active:
        factors[name] = min(max(total / shares / grad_norms[name], 1 / limit), limit)
    return factors
