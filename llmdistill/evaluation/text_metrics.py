"""Answers against references: ROUGE-L, exact match, and the number that a GSM8K answer ends in."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmdistill.evaluation.intervals import Bootstrap, ratio

_MARKED = re.compile(r"####\s*(-?[\d.,]+)\s*$")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Answer:
    """One answer of a model."""

    prompt: int
    """Index of its prompt, 0 … prompts - 1."""
    text: str
    reference: str


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, stemmed, 0 … 1. Source: Lin 2004, by Google's rouge-score."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are equal but for case and white space, else 0.0."""
    return float(" ".join(answer.lower().split()) == " ".join(reference.lower().split()))


def gsm8k_match(answer: str, reference: str) -> float | None:
    """Whether the answer's last number is the one behind the reference's `####`.

    Returns:
        None where the reference ends in no such number. Source of the format: Cobbe et al. 2021, arXiv 2110.14168.

    """
    marked = _MARKED.search(reference)
    if marked is None:
        return None
    numbers = _NUMBER.findall(answer)
    return float(bool(numbers) and _number(numbers[-1]) == _number(marked.group(1)))


def score(answers: Sequence[Answer], prompts: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means with intervals over prompts, `null` for GSM8K where no reference has a marked number.

    Args:
        answers: one or more for each prompt.
        prompts: how many there are; equal to `bootstrap.records`.
        bootstrap: resamples of the prompts.

    """
    found: dict[str, Any] = {"answers": len(answers), "intervals": {}}
    for name, metric in (("rouge_l", rouge_l), ("exact_match", exact_match), ("gsm8k", gsm8k_match)):
        sums_SM = np.zeros((prompts, 2))
        for answer in answers:
            value = metric(answer.text, answer.reference)
            if value is not None:
                sums_SM[answer.prompt] += (value, 1)
        found[name] = float(ratio(sums_SM.sum(axis=0))) if sums_SM[:, 1].any() else None
        found["intervals"][name] = bootstrap.interval(sums_SM, ratio)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
