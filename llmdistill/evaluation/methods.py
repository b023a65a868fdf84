"""What each metric is under a kind of capture: exact, a bound, an unbiased estimate, or not defined and why."""

from __future__ import annotations

from llmdistill.evaluation.metrics import TOP
from llmdistill.types import CaptureSpec

METRICS = (
    "kl",
    "reverse_kl",
    "top1_agreement",
    "top5_agreement",
    "acceptance_rate",
    "acceptance_rate_lower",
    "perplexity",
    "bits_per_byte",
    "expected_calibration_error",
)
"""Every metric of a model, in the order of tables."""

LOWER_IS_BETTER = frozenset({"kl", "reverse_kl", "perplexity", "bits_per_byte", "expected_calibration_error"})

_EXACT = "exact, but for what the cache rounds"
_BUCKET = "kept ids and one bucket for the rest: at most the full divergence"
_NOT_LINEAR = "not linear in the teacher's probabilities, of which random draws give the mean only"
_OTHER_TOKENS = "it compares distributions token by token, and the student's tokens are not the teacher's"
_DRAWS = "draws do not tell the most likely tokens"
_ACTUAL = "unbiased: mean over tokens that the teacher drew at temperature 1"


def methods(spec: CaptureSpec, entropy_known: bool, on_policy: bool) -> tuple[dict[str, str], dict[str, str]]:
    """How each metric is computed, and why the others are not.

    Args:
        spec: of the cache.
        entropy_known: the engine told the entropy of every held-out row.
        on_policy: see `TeacherSide.on_policy`.

    Returns:
        metric → method, and metric → reason; every metric of `METRICS` is in exactly one of them.

    """
    how = {"perplexity": _EXACT, "bits_per_byte": _EXACT, "expected_calibration_error": _EXACT}
    why: dict[str, str] = {}
    if spec.kind == "chunks":
        how["perplexity"] = "per token of the student's own tokenizer, the teacher's too"
        return how, {metric: _OTHER_TOKENS for metric in METRICS if metric not in how}
    if spec.kind == "sampled":
        why |= {"reverse_kl": _NOT_LINEAR, "top1_agreement": _DRAWS, "top5_agreement": _DRAWS}
        if on_policy:
            how |= {"acceptance_rate": _ACTUAL, "acceptance_rate_lower": _ACTUAL}
        else:
            why |= {"acceptance_rate": _NOT_LINEAR, "acceptance_rate_lower": _NOT_LINEAR}
    else:
        how["reverse_kl"] = _BUCKET if spec.kind == "top_k" else _BUCKET.replace("kept ids", "the exact head")
        how["top1_agreement"] = _EXACT
        how["acceptance_rate"] = "the bucket counts as fully shared, which it rarely is"
        how["acceptance_rate_lower"] = "nothing of the bucket counts as shared"
        if spec.kind == "head_tail":
            why["top5_agreement"] = f"a head may hold fewer than {TOP} tokens"
        elif spec.top_k < TOP:
            why["top5_agreement"] = f"capture.top_k is {spec.top_k}"
        else:
            how["top5_agreement"] = _EXACT
    _kl(spec, entropy_known, on_policy, how, why)
    return how, why


def _kl(spec: CaptureSpec, entropy_known: bool, on_policy: bool, how: dict[str, str], why: dict[str, str]) -> None:
    if spec.kind == "top_k":
        how["kl"] = _BUCKET
    elif entropy_known:
        how["kl"] = "unbiased: cross-entropy over the stored entries less the teacher's entropy"
    elif spec.kind == "head_tail":
        how["kl"] = _BUCKET.replace("kept ids", "the exact head")
    elif on_policy:
        how["kl"] = _ACTUAL
    else:
        why["kl"] = "the engine told no entropy, so only the cross-entropy is known"
