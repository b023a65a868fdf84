"""The training records of a job: all of them, or a share by what the cache holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmdistill.cache.reader import CacheReader
from llmdistill.config.selection import SelectConfig
from llmdistill.errors import DataError
from llmdistill.trainer.job import TrainJob


@dataclass(frozen=True)
class Selection:
    """What was chosen, and from how much."""

    records: np.ndarray
    """int64 [kept], ascending."""
    value: float
    """Of the last record that was kept."""
    of_records: int
    rows: int
    of_rows: int

    def words(self, select: SelectConfig) -> str:
        """In one sentence."""
        limit = "at least" if select.end == "highest" else "at most"
        return (
            f"train.select keeps {len(self.records):,} of {self.of_records:,} records with {self.rows:,} of"
            f" {self.of_rows:,} supervised tokens, {select.by} {limit} {self.value:.4g} nats"
        )


def training_records(reader: CacheReader, job: TrainJob) -> np.ndarray:
    """Numbers of the records that are trained on, ascending; raises as `choose` does."""
    records = reader.split(job.held_out)[0]
    return records if job.train.select is None else choose(reader, records, job.train.select).records


def choose(reader: CacheReader, records: np.ndarray, select: SelectConfig) -> Selection:
    """The records of the highest or lowest values; of equal ones those with the lower keys.

    Source of `teacher_minus_reference`: MiniPLM, arXiv 2410.17215, section 2.2; there with the sum over documents of
    equal length, here with the mean, so that length does not decide.

    Args:
        reader: the cache.
        records: those that may be kept. Those without supervised tokens, which teach nothing, are no candidates.
        select: the settings.

    Raises:
        DataError: no candidate, an entropy that the engine could not tell, or a reference that does not fit.

    """
    candidates = records[reader.row_counts[records] > 0]
    if not len(candidates):
        raise DataError("there is no training record with supervised tokens to choose from", where="train.select")
    values = _values(reader, candidates, select)
    order = np.argsort(-values if select.end == "highest" else values, kind="stable")
    kept = order[: max(round(select.keep * len(candidates)), 1)]
    chosen = np.sort(candidates[kept])
    return Selection(
        chosen,
        float(values[kept[-1]]),
        len(records),
        int(reader.row_counts[chosen].sum()),
        int(reader.row_counts[records].sum()),
    )


def _values(reader: CacheReader, records: np.ndarray, select: SelectConfig) -> np.ndarray:
    """What records are chosen by [S], in nats, float64."""
    values: np.ndarray = reader.row_means("entropies" if select.by == "entropy" else "actual_logprobs")[records]
    if select.reference_cache is not None:
        values -= _reference(reader, records, select.reference_cache)
        return values
    if select.by == "perplexity":
        return -values
    if np.isnan(values).any():
        raise DataError(
            f"{int(np.isnan(values).sum()):,} records hold no entropy, since the teacher's engine could not tell it",
            where="train.select.by",
            fix="choose by perplexity",
        )
    return values


def _reference(reader: CacheReader, records: np.ndarray, folder: str) -> np.ndarray:
    """Mean log-probability of the reference model [S] on the same records."""
    reference = CacheReader(folder)
    if reference.spec.tokenizer != reader.spec.tokenizer:
        raise DataError(
            "the reference cache was made with another tokenizer", where=folder, fix="use a model with the same one"
        )
    theirs, mine = reference.token_digests(), reader.token_digests()[records]
    order = np.argsort(theirs, kind="stable")
    found = order[np.minimum(np.searchsorted(theirs, mine, sorter=order), len(order) - 1)]
    missing = theirs[found] != mine
    if missing.any():
        raise DataError(
            f"{int(missing.sum()):,} of {len(mine):,} records are not in the reference cache with the same tokens"
            f" supervised; the first is {reader.keys[int(records[missing][0])].hex()}",
            where=folder,
            fix="let the reference model score the same prompts, with prompts.mode: score",
        )
    means: np.ndarray = reference.row_means("actual_logprobs")[found]
    return means
