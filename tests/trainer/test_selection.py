"""Training records that are chosen by what the cache holds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from llmdistill.cache.index import shard_folder
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.config.selection import SelectConfig
from llmdistill.config.train import TrainConfig
from llmdistill.errors import DataError
from llmdistill.trainer.course import identity_of_records, make_plan
from llmdistill.trainer.selection import choose, training_records
from llmdistill.types import CaptureSpec, Record
from tests.cache.conftest import Make
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for


def by_key(reader: CacheReader, records: Sequence[Record]) -> list[Record]:
    known = {record.key: record for record in records}
    return [known[key] for key in reader.keys]


def reference(folder: Path, records: Sequence[Record], spec: CaptureSpec, **changes: object) -> Path:
    """The same tokens under other keys and in other shards, with log-probabilities of their own."""
    rng = np.random.default_rng(1)
    scored = [
        dataclasses.replace(
            record,
            key=rng.bytes(16),
            rows=dataclasses.replace(
                record.rows, actual_logprobs_R=-rng.exponential(3, len(record.rows.actual_logprobs_R)).astype("f4")
            ),
        )
        for record in records
    ]
    Make.cache(folder, scored[::-1], dataclasses.replace(spec, **changes), 7)
    return folder


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("vocabulary_size", [1000, 100_000])
def test_means_and_digests_are_those_of_the_records(
    tmp_path: Path, kind: str, compression: str, vocabulary_size: int
) -> None:
    spec = Make.spec(kind, vocabulary_size=vocabulary_size)
    made = Make.records(spec, 30)
    Make.cache(tmp_path, made, spec, compression=compression)
    reader = CacheReader(tmp_path)
    records = by_key(reader, made)
    for name, values in (("actual_logprobs", "actual_logprobs_R"), ("entropies", "entropy_R")):
        expected = [
            float(stored.astype(np.float16).mean(dtype=float)) if len(stored) else np.nan
            for stored in (getattr(record.rows, values) for record in records)
        ]
        np.testing.assert_allclose(reader.row_means(name), expected, rtol=1e-3)
    digests = reader.token_digests()
    assert len(np.unique(digests)) == 30
    again = reference(tmp_path / "again", made, spec)
    other = CacheReader(again)
    assert not set(reader.keys) & set(other.keys)
    assert sorted(digests.tolist()) == sorted(other.token_digests().tolist())
    changed = [
        dataclasses.replace(record, supervised_N=np.roll(record.supervised_N, -1))
        for record in records
        if record.supervised_N.any() and not record.supervised_N[1]
    ]
    Make.cache(tmp_path / "changed", changed, spec)
    assert not set(digests.tolist()) & set(CacheReader(tmp_path / "changed").token_digests().tolist())


@pytest.mark.parametrize("end", ["highest", "lowest"])
@pytest.mark.parametrize("by", ["perplexity", "entropy", "teacher_minus_reference"])
def test_the_share_with_the_highest_or_lowest_values(tmp_path: Path, by: str, end: str) -> None:
    spec = Make.spec()
    made = [record for record in Make.records(spec, 40) if record.supervised_N.any()]
    Make.cache(tmp_path / "cache", made, spec)
    reader = CacheReader(tmp_path / "cache")
    records = by_key(reader, made)
    folder = reference(tmp_path / "reference", made, spec) if by.endswith("reference") else None
    select = SelectConfig(by=by, keep=0.3, end=end, reference_cache=str(folder) if folder else None)
    their = {}
    if folder:
        other = CacheReader(folder)
        for record in map(other.read, range(len(other))):
            their[record.token_ids_N.numpy().tobytes()] = float(record.rows.actual_logprobs_R.double().mean())

    def value(record: Record) -> float:
        if by == "entropy":
            return float(record.rows.entropy_R.mean())
        mine = float(record.rows.actual_logprobs_R.mean())
        return -mine if by == "perplexity" else mine - their[record.token_ids_N.astype(np.int64).tobytes()]

    candidates = np.arange(3, len(records))
    ranked = sorted(candidates.tolist(), key=lambda n: value(records[n]), reverse=end == "highest")
    kept = round(0.3 * len(candidates))
    found = choose(reader, candidates, select)
    assert found.records.tolist() == sorted(ranked[:kept])
    assert found.value == pytest.approx(value(records[ranked[kept - 1]]), rel=1e-2, abs=1e-2)
    rows = reader.row_counts
    assert found.words(select).startswith(
        f"train.select keeps {kept} of {len(candidates)} records with {rows[found.records].sum()} of"
        f" {rows[candidates].sum()} supervised tokens, {by} at {'least' if end == 'highest' else 'most'} "
    )
    assert choose(CacheReader(tmp_path / "cache"), candidates, select).records.tolist() == found.records.tolist()


def test_a_training_is_on_the_chosen_records_and_known_by_them(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", records=24)
    whole = dataclasses.replace(job_for(tmp_path, tmp_path / "cache", tmp_path, epochs=2), held_out=0.2)
    reader = CacheReader(whole.cache)
    seen = {}
    for end in ("highest", "lowest"):
        select = {"by": "perplexity", "keep": 0.5, "end": end}
        train = TrainConfig.model_validate(whole.train.model_dump() | {"select": select})
        job = dataclasses.replace(whole, train=train)
        chosen = training_records(reader, job)
        assert not set(chosen) & set(reader.split(0.2)[1])
        plan = make_plan(reader, job)
        assert sorted(plan.records.tolist()) == sorted([*chosen, *chosen])
        seen[end] = job, chosen, job.identity(identity_of_records(job, reader))
    candidates = reader.split(0.2)[0]
    left = set(candidates) - set(seen["highest"][1]) - set(seen["lowest"][1])
    assert len(left) <= 1  # the middle one of an odd number
    assert training_records(reader, whole).tolist() == candidates.tolist()
    identities = [seen["highest"][2], seen["lowest"][2], whole.identity(identity_of_records(whole, reader))]
    assert len({identity["records"] for identity in identities}) == 3
    assert identities[0]["train.select"]["end"] == "highest"


def test_equal_values_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    made = make_cache(tmp_path / "once", records=10)
    same = [dataclasses.replace(record, rows=made[0].rows) for record in made]
    write_shard(shard_folder(tmp_path / "same"), same, SPEC, "fake-1")
    for end in ("highest", "lowest"):
        select = SelectConfig(by="perplexity", keep=0.4, end=end)
        assert choose(CacheReader(tmp_path / "same"), np.arange(10), select).records.tolist() == [0, 1, 2, 3]
    assert choose(CacheReader(tmp_path / "same"), np.arange(10), SelectConfig(by="perplexity", keep=0.01)).records == [
        0
    ]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = make_cache(tmp_path / "cache", records=10)
    reader, everything = CacheReader(tmp_path / "cache"), np.arange(10)
    with pytest.raises(DataError, match="10 records hold no entropy") as caught:
        choose(reader, everything, SelectConfig(by="entropy", keep=0.5))
    assert "choose by perplexity" in str(caught.value)

    def against(folder: Path) -> None:
        choose(reader, everything, SelectConfig(by="teacher_minus_reference", keep=0.5, reference_cache=str(folder)))

    with pytest.raises(DataError, match="2 of 10 records are not in the reference cache") as caught:
        against(reference(tmp_path / "fewer", made[:8], SPEC))
    assert min(record.key for record in made[8:]).hex() in str(caught.value)
    with pytest.raises(DataError, match="another tokenizer"):
        against(reference(tmp_path / "other", made, SPEC, tokenizer="another"))
    with pytest.raises(DataError, match="no training record with supervised tokens to choose from"):
        choose(reader, everything[:0], SelectConfig(by="perplexity", keep=0.5))
    with pytest.raises(ValidationError, match="belong together"):
        SelectConfig(by="teacher_minus_reference", keep=0.5)
    with pytest.raises(ValidationError, match="belong together"):
        SelectConfig(by="perplexity", keep=0.5, reference_cache="x")
    with pytest.raises(ValidationError, match=r"with train\.wait_for_cache they are not there yet"):
        TrainConfig(select={"by": "perplexity", "keep": 0.5}, wait_for_cache=True, max_steps=3)
