"""Names, formats and sentences of the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmdistill.evaluation.methods import LOWER_IS_BETTER

NAMES = {
    "untrained": "before training",
    "sft": "SFT baseline",
    "student": "distilled student",
    "teacher": "teacher",
}
STYLES = {"student": 0, "sft": 1, "untrained": 2, "teacher": 3}

LABELS = {
    "kl": ("KL(teacher ‖ model)", "nats a token; 0 is the teacher"),
    "reverse_kl": ("KL(model ‖ teacher)", "nats a token; 0 is the teacher"),
    "top1_agreement": ("Top-1 agreement", "both have the same most likely token"),
    "top5_agreement": ("Top-5 agreement", "share of the teacher’s five among the model’s five"),
    "acceptance_rate": ("Acceptance as a draft, at most", "Σ min(p, q), for speculative decoding"),
    "acceptance_rate_lower": ("Acceptance as a draft, at least", "what the kept tokens alone give"),
    "perplexity": ("Perplexity", "of the teacher’s text; the teacher’s own is the goal"),
    "bits_per_byte": ("Bits per byte", "of the teacher’s text; does not depend on the tokenizer"),
    "expected_calibration_error": ("Calibration error", "mean distance of confidence from accuracy"),
    "rouge_l": ("ROUGE-L", ""),
    "exact_match": ("Exact match", ""),
    "gsm8k": ("GSM8K answers", ""),
}
SHARES = frozenset(
    {
        "top1_agreement",
        "top5_agreement",
        "acceptance_rate",
        "acceptance_rate_lower",
        "expected_calibration_error",
        "rouge_l",
        "exact_match",
        "gsm8k",
    }
)


def figure(metric: str, value: float | None) -> str:
    """A metric's value."""
    if value is None:
        return "–"
    if metric in SHARES:
        return f"{value * 100:.1f} %"
    if metric == "perplexity":
        return f"{value:,.2f}" if value < 1e5 else f"{value:.2e}"
    return f"{value:.4f}"


def span(metric: str, interval: list[float] | None) -> str:
    """An interval; empty where there is none."""
    if interval is None:
        return ""
    low, high = interval
    if metric in SHARES:
        return f"{low * 100:.1f} … {high * 100:.1f}"
    if metric == "perplexity":
        return f"{low:,.1f} … {high:,.1f}" if high < 1e5 else f"{low:.1e} … {high:.1e}"
    return f"{low:.3f} … {high:.3f}"


def verdict(evaluation: dict[str, Any]) -> str:
    """The result in one sentence: better, worse, or not told apart, and by what."""
    models, baseline = evaluation["models"], evaluation["comparison"]["baseline"]
    metric = next(name for name in ("kl", "perplexity") if models["student"][name] is not None)
    student, base = models["student"], models[baseline]
    other = "SFT on the same responses" if baseline == "sft" else "it was before training"
    unit = " nats" if metric == "kl" else ""
    name = "KL" if metric == "kl" else "perplexity"
    figures = f"{name} {student[metric]:.3g} against {base[metric]:.3g}{unit}"
    mine, its = student["intervals"][metric], base["intervals"][metric]
    better = student[metric] < base[metric]
    word = "closer to" if better else "farther from"
    if mine is None or its is None:
        return f"Measured on too few held-out records to tell: the distilled student has {figures} for {other}."
    if mine[1] < its[0] or its[1] < mine[0]:
        return (
            f"The distilled student is {word} its teacher than {other}: {figures}; the 95 % intervals do not overlap."
        )
    paired = evaluation["comparison"]["differences"][metric]["interval"]
    if paired is not None and (paired[1] < 0 or paired[0] > 0):
        low, high = sorted(abs(end) for end in paired)
        return (
            f"The 95 % intervals of the distilled student and of {other} overlap ({figures}), though record by record"
            f" the student is {word} its teacher, by {low:.2g} to {high:.2g}{unit}."
        )
    return f"The distilled student cannot be told from {other}: {figures}, and the 95 % intervals overlap."


def best(metric: str, values: Iterable[float | None]) -> float | None:
    """The best of some values; None where there is none."""
    known = [value for value in values if value is not None]
    choose = min if metric in LOWER_IS_BETTER else max
    return choose(known, default=None)


def student_words(student: dict[str, Any]) -> str:
    """Where the student came from."""
    if student.get("model"):
        return str(student["model"])
    made = student.get("from_teacher") or {}
    if [key for key, _ in _set(made)] == ["layers"]:
        return f"{made['layers']} of its layers"
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in _set(student.get("from_teacher") or student)]
    return ("from the teacher: " if student.get("from_teacher") else "") + ", ".join(parts)


def _set(values: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in values.items() if value is not None and not isinstance(value, dict)]


def objectives_words(objectives: list[dict[str, Any]]) -> str:
    """The total, as a sum."""
    parts = []
    for item in objectives:
        rest = [f"{key} {value}" for key, value in _set(item) if key not in ("type", "weight")]
        parts.append(f"{item['weight']:g} × {item['type']}" + (f" ({', '.join(rest)})" if rest else ""))
    return " + ".join(parts)
