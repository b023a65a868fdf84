"""What lies in a run's folder, read once for its page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.index import open_shards, shard_names
from llmdistill.errors import DataError
from llmdistill.observe.report.teachers import fleet_seconds
from llmdistill.observe.run_folder import RunFolder
from llmdistill.trainer.metrics import read_metrics
from llmdistill.types import FINISH_REASONS

_SHARDS = 256
"""Shards whose distributions are read; of a larger cache so many at equal distances."""


@dataclass(frozen=True)
class CacheFacts:
    """Distributions over the rows and records of the cache."""

    shards_read: int
    shards: int
    mass_R: np.ndarray
    """Captured mass of each row; empty where the kind of capture keeps none."""
    entropy_R: np.ndarray
    """Entropy of each row in nats; empty where the engine told none."""
    rows_S: np.ndarray
    """Supervised rows of each record."""
    finish_reasons: dict[str, int]
    sources: dict[str, int]


@dataclass(frozen=True)
class RunFacts:
    """One run."""

    title: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    index: dict[str, Any]
    evaluation: dict[str, Any]
    trainings: dict[str, list[dict[str, Any]]]
    """Model → its lines of metrics.jsonl."""
    rounds: list[dict[str, Any]]
    """Lines of metrics.jsonl, one for each round, where the training had rounds."""
    seconds: dict[str, float]
    """Stage → seconds that it worked, over all calls; empty for runs that did not write them down."""
    fleets: dict[str, float]
    """Teacher → seconds that its fleets worked."""
    rejected: list[tuple[str, int, str]]
    """Kind of fault, how many rows, the first of them."""
    cache: CacheFacts


def read_run(folder: RunFolder) -> RunFacts:
    """Read a run's folder.

    Raises:
        DataError: the run has no evaluation yet, or one of another version.

    """
    try:
        evaluation = json.loads(folder.evaluation.read_text())
        config = json.loads(folder.config.read_text())
        provenance = json.loads(folder.provenance.read_text())
        index = json.loads((folder.cache / "index.json").read_text())
    except FileNotFoundError as error:
        raise DataError("is missing", where=str(error.filename), fix="run `llmdistill run CONFIG` first") from None
    if "comparison" not in evaluation:
        raise DataError(
            "was written by an earlier version and has no intervals",
            where=str(folder.evaluation),
            fix="run `llmdistill evaluate CONFIG` again",
        )
    trainings: dict[str, list[dict[str, Any]]] = {}
    metrics = read_metrics(folder.metrics)
    for line in metrics:
        if line["stage"] == "train":
            trainings.setdefault(line["model"], []).append(line)
    seconds: Counter[str] = Counter()
    for line in read_metrics(folder.timings):
        seconds[line["stage"]] += line["seconds"]
    return RunFacts(
        title=Path(config["output"]).name,
        config=config,
        provenance=provenance,
        index=index,
        evaluation=evaluation,
        trainings=trainings,
        rounds=[line for line in metrics if line["stage"] == "round"],
        seconds=dict(seconds),
        fleets=fleet_seconds(line for line in metrics if line["stage"] == "generate"),
        rejected=_rejected(folder.rejected),
        cache=_cache_facts(folder.cache),
    )


def _rejected(path: Path) -> list[tuple[str, int, str]]:
    """Rejected rows by kind: the words of a reason before its first figures and details."""
    kinds: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        row = json.loads(line)
        kind = row["reason"].split(":")[0].split(";")[0]
        if "the same prompt as" in kind:
            kind = "the same prompt as an earlier row"
        kinds.setdefault(kind, []).append(f"{row['source']}: {row['reason']}")
    found = [(kind, len(rows), rows[0]) for kind, rows in kinds.items()]
    return sorted(found, key=lambda item: -item[1])


def _cache_facts(cache: Path) -> CacheFacts:
    names = shard_names(cache)
    chosen = [names[round(number)] for number in np.linspace(0, len(names) - 1, min(len(names), _SHARDS))]
    mass, entropy, rows = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, np.int64)]
    reasons: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for shard in open_shards(cache, chosen):
        columns = {column.name: column for column in shard.columns}
        if shard.spec.kind == "top_k":
            mass.append(shard.column(columns["mass"]).astype(np.float64))
        found = shard.column(columns["entropies"]).astype(np.float64)
        entropy.append(found[~np.isnan(found)])
        rows.append(np.diff(shard.offsets["row_offsets"]))
        reasons.update(FINISH_REASONS[number] for number in shard.stored("finish_reasons").tolist())
        sources.update(shard.sources[number] for number in shard.stored("source_ids").tolist())
    return CacheFacts(
        shards_read=len(chosen),
        shards=len(names),
        mass_R=np.concatenate(mass),
        entropy_R=np.concatenate(entropy),
        rows_S=np.concatenate(rows),
        finish_reasons=dict(reasons.most_common()),
        sources={name: count for name, count in sources.most_common() if name},
    )
