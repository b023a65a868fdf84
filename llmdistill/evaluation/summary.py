"""From values per row to the table of results: values, intervals, groups, differences and recovery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmdistill.evaluation import calibration
from llmdistill.evaluation.groups import Groups, by_entropy, by_position, by_source
from llmdistill.evaluation.heldout import RowTable
from llmdistill.evaluation.intervals import LEVEL, Bootstrap, exp_ratio, percentiles, ratio, record_sums
from llmdistill.evaluation.methods import METRICS, methods
from llmdistill.types import CaptureSpec

TEACHER = {"kl": 0.0, "reverse_kl": 0.0, "top1_agreement": 1.0, "top5_agreement": 1.0, "acceptance_rate": 1.0}
"""What a student equal to its teacher has; the teacher's perplexity and bits per byte are measured."""

_GROUP_METRICS = ("kl", "top1_agreement", "acceptance_rate", "perplexity")


def summarise(
    tables: dict[str, RowTable],
    teacher: RowTable,
    sources: Sequence[str] | None,
    spec: CaptureSpec,
    on_policy: bool,
    bootstrap: Bootstrap,
    bytes_S: tuple[np.ndarray, np.ndarray],
    baseline: str,
) -> dict[str, Any]:
    """The part of evaluation.json that held-out records give.

    Args:
        tables: model → its values; `student` and `baseline` are among them.
        teacher: its values at the same rows.
        sources: a name for each record; None where they are not known.
        spec: of the cache.
        on_policy: see `TeacherSide.on_policy`.
        bootstrap: resamples of the records.
        bytes_S: bytes of the text of each record's rows in `tables`, and in `teacher`.
        baseline: the model that the student is compared with.

    """
    entropy_known = not np.isnan(teacher.values["stored_entropy"]).any()
    how, why = methods(spec, entropy_known, on_policy)
    record_R = tables["student"].record_R
    groups: dict[str, Groups | str] = {
        "source": "the records hold no source" if sources is None else by_source(record_R, sources),
        "position": by_position(record_R),
    }
    entropy_R = teacher.values["entropy"]
    groups["entropy"] = "the engine told no entropy" if np.isnan(entropy_R).any() else by_entropy(entropy_R)
    sums = {name: _record_sums(table, bootstrap.records, bytes_S[0]) for name, table in tables.items()}
    models = {name: _model(table, sums[name], how, groups, bootstrap) for name, table in tables.items()}
    own = _teacher(teacher, bytes_S[1], bootstrap)
    return {
        "models": models,
        "teacher": own,
        "comparison": _compare(sums, how, bootstrap, baseline, own),
        "methods": how,
        "undefined": why,
        "groups_undefined": {name: reason for name, reason in groups.items() if isinstance(reason, str)},
        "bootstrap": {"resamples": bootstrap.resamples, "level": LEVEL, "unit": "record", "seed": bootstrap.seed},
    }


def _record_sums(
    table: RowTable, records: int, bytes_S: np.ndarray | None = None, rows_R: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metric → sums per record [S, M], what its statistic is a function of; with `bytes_S` also `bits_per_byte`."""
    chosen = slice(None) if rows_R is None else rows_R
    record_R = table.record_R[chosen]
    values = {name: value[chosen] for name, value in table.values.items()}
    sums = {
        name: record_sums(record_R, np.stack([value_R, np.ones_like(value_R)], axis=1), records)
        for name, value_R in values.items()
        if name in METRICS or name == "cross_entropy"
    }
    sums["perplexity"] = sums.pop("cross_entropy")
    if bytes_S is not None:
        sums["bits_per_byte"] = np.stack([sums["perplexity"][:, 0] / np.log(2), bytes_S], axis=1)
    bins = calibration.bin_columns(np.nan_to_num(values["confidence"]), values["correct"])
    sums["expected_calibration_error"] = record_sums(record_R, bins, records)
    return sums


def _statistic(metric: str) -> Any:
    return {"perplexity": exp_ratio, "expected_calibration_error": calibration.expected_calibration_error}.get(
        metric, ratio
    )


def _figures(sums: dict[str, np.ndarray], metrics: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Value of each metric and its interval."""
    values = {metric: _finite(float(_statistic(metric)(sums[metric].sum(axis=0)))) for metric in metrics}
    intervals = {metric: bootstrap.interval(sums[metric], _statistic(metric)) for metric in metrics}
    return {**values, "intervals": intervals}


def _model(
    table: RowTable,
    sums: dict[str, np.ndarray],
    how: dict[str, str],
    groups: dict[str, Groups | str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    figures = _figures(sums, [metric for metric in METRICS if metric in how], bootstrap)
    broken_down: dict[str, Any] = {}
    wanted = [metric for metric in _GROUP_METRICS if metric in how]
    for kind, members in groups.items():
        if isinstance(members, str):
            broken_down[kind] = None
            continue
        broken_down[kind] = {
            name: {
                "rows": int(rows_R.sum()),
                "records": len(np.unique(table.record_R[rows_R])),
                **_figures(_record_sums(table, bootstrap.records, rows_R=rows_R), wanted, bootstrap),
            }
            for name, rows_R in members.items()
        }
    return {
        **dict.fromkeys(METRICS),
        **figures,
        "reliability": calibration.reliability(sums["expected_calibration_error"].sum(axis=0)),
        "by": broken_down,
    }


def _teacher(teacher: RowTable, bytes_S: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """The teacher on its own text, as far as the stored rows tell."""
    sums = _record_sums(teacher, bootstrap.records, bytes_S)
    known = not np.isnan(teacher.values["correct"]).any()
    metrics = ["perplexity", "bits_per_byte", *(["expected_calibration_error"] if known else [])]
    return {
        "expected_calibration_error": None,
        **_figures(sums, metrics, bootstrap),
        "reliability": calibration.reliability(sums["expected_calibration_error"].sum(axis=0)) if known else None,
        "mean_entropy": None if np.isnan(teacher.values["entropy"]).any() else float(teacher.values["entropy"].mean()),
    }


def _compare(
    sums: dict[str, dict[str, np.ndarray]],
    how: dict[str, str],
    bootstrap: Bootstrap,
    baseline: str,
    own: dict[str, Any],
) -> dict[str, Any]:
    """Student less baseline, and the share of the baseline's distance to the teacher that the student has covered.

    recovery = (student - baseline) / (teacher - baseline): 0 at the baseline, 1 at the teacher. Resamples are paired.
    """
    measured = {name: own[name] for name in ("perplexity", "bits_per_byte") if own[name] is not None}
    teacher = {**TEACHER, **measured}
    differences, recovery = {}, {}
    for metric in [metric for metric in METRICS if metric in how]:
        statistic = _statistic(metric)
        value, value_B = _of(sums["student"][metric], statistic, bootstrap)
        base, base_B = _of(sums[baseline][metric], statistic, bootstrap)
        differences[metric] = {"value": _finite(value - base), "interval": percentiles(value_B - base_B)}
        if metric in teacher:
            target = teacher[metric]
            with np.errstate(divide="ignore", invalid="ignore"):
                share_B = (value_B - base_B) / (target - base_B)
            recovery[metric] = {
                "value": _finite((value - base) / (target - base)) if target != base else None,
                "interval": percentiles(share_B),
            }
    return {"baseline": baseline, "differences": differences, "recovery": recovery}


def _finite(value: float) -> float | None:
    """A perplexity may be beyond all numbers, and JSON has no word for it."""
    return value if np.isfinite(value) else None


def _of(sums_SM: np.ndarray, statistic: Any, bootstrap: Bootstrap) -> tuple[float, np.ndarray]:
    return float(statistic(sums_SM.sum(axis=0))), statistic(bootstrap.totals(sums_SM))
