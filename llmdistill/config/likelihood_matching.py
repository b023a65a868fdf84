"""The objective on probabilities of text, whatever its tokens are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmdistill.config.weighting import ObjectiveConfig


class LikelihoodMatchingConfig(ObjectiveConfig):
    """Approximate likelihood matching: teacher and student give each piece of text the same probability.

    A piece is the shortest run of tokens that begins and ends at the same place in both tokenizers; with the teacher's
    tokenizer, a token.
    """

    type: Literal["likelihood_matching"]
    """Name of the objective."""
    temperature: float = Field(default=100.0, gt=0.0)
    """Likelihoods are compared to the power of its inverse, and the value is multiplied by it. Large values compare
    log-likelihoods, 1 the likelihoods themselves, of which those of long pieces are all near 0."""
