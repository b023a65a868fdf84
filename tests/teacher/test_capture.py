"""What is captured of a known distribution, against float64 and against statistics."""

import numpy as np
import pytest
import torch

from llmdistill.config.capture import CaptureConfig
from llmdistill.teacher import capture
from llmdistill.teacher.capture import draw_seed, fill_columns, uniforms
from llmdistill.teacher.columns import Columns
from llmdistill.types import HeadTailRows, SampledRows, TeacherRows

VOCABULARY = 300
KINDS = [
    CaptureConfig(top_k=20, temperatures=(2.0, 0.5)),
    CaptureConfig(kind="sampled", temperatures=(2.0, 0.5)),
    CaptureConfig(kind="head_tail", draws=21, temperatures=(2.0, 0.5)),
]


def logits(rows: int, extra: int = 0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = 3 * torch.randn(rows, VOCABULARY + extra, generator=generator, dtype=torch.float64)
    found[:, VOCABULARY:] = 9.0  # padding rows of a head may hold anything
    return found


def take(logits_RV: torch.Tensor, config: CaptureConfig, seed: int = 1) -> TeacherRows:
    columns = Columns.of(config, VOCABULARY)
    rows = len(logits_RV)
    ids, values = fill_columns(
        logits_RV.log_softmax(1).float(),
        torch.arange(rows) % VOCABULARY,
        np.full(rows, seed, np.uint64),
        np.arange(rows),
        columns,
    )
    return columns.rows(ids.numpy(), values.numpy())


def dense(rows: TeacherRows, count: int, draws: int) -> np.ndarray:
    """float64 [R, V]: the target that a ragged capture stands for."""
    assert isinstance(rows, (SampledRows, HeadTailRows))
    target = np.zeros((count, VOCABULARY))
    if isinstance(rows, SampledRows):
        np.add.at(target, (np.repeat(np.arange(count), rows.entries_R), rows.ids_E), rows.counts_E / draws)
        return target
    ends = np.cumsum(rows.heads_R + rows.tails_R)
    heads, tails = (
        np.split(rows.head_logprobs_H, np.cumsum(rows.heads_R)),
        np.split(rows.tail_counts_F, np.cumsum(rows.tails_R)),
    )
    for r, ids in enumerate(np.split(rows.ids_E, ends)[:count]):
        head = np.exp(heads[r].astype(np.float64))
        target[r, ids[: len(head)]] = head
        if len(tails[r]):
            target[r, ids[len(head) :]] += (1 - head.sum()) * tails[r] / tails[r].sum()
    return target


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
@pytest.mark.parametrize("extra", [0, 7])
def test_statistics_equal_float64_over_the_real_vocabulary(config: CaptureConfig, extra: int) -> None:
    logits_RV = logits(40, extra)
    rows = take(logits_RV, config)
    exact_RV = logits_RV[:, :VOCABULARY].log_softmax(1)
    assert np.abs(rows.entropy_R + (exact_RV.exp() * exact_RV).sum(1).numpy()).max() < 1e-4
    for column, temperature in enumerate((0.5, 2.0)):
        assert np.abs(rows.logsumexp_RJ[:, column] - (exact_RV / temperature).logsumexp(1).numpy()).max() < 1e-4
    assert np.abs(rows.actual_logprobs_R - exact_RV[torch.arange(40), torch.arange(40)].numpy()).max() < 1e-4


def test_an_impossible_token_does_not_spoil_the_entropy() -> None:
    logits_RV = logits(2)
    logits_RV[0, 5] = -torch.inf
    for config in KINDS:
        rows = take(logits_RV, config)
        assert np.isfinite(rows.entropy_R).all() and np.isfinite(rows.logsumexp_RJ).all()


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_chunks_and_batches_change_nothing(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = take(logits(40), config)
    monkeypatch.setitem(capture._CHUNK_ELEMENTS, "cpu", 3 * VOCABULARY)
    parts = take(logits(40), config)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(value, getattr(parts, name), err_msg=name)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of a million draws of one row, with the classes that are expected at least five times."""
    row_RV = logits(1).expand(4000, -1)
    rows = take(row_RV, CaptureConfig(kind="sampled", draws=251))
    counts = np.bincount(rows.ids_E, weights=rows.counts_E, minlength=VOCABULARY)
    expected = row_RV[0].softmax(0).numpy() * 4000 * 251
    assert counts.sum() == 4000 * 251
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    degrees = often.sum() - 1
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("config", KINDS[1:], ids=lambda config: config.kind)
def test_the_target_is_right_on_average(config: CaptureConfig) -> None:
    row_RV = logits(1).expand(20000, -1)
    targets_RV = dense(take(row_RV, config), 20000, config.draws)
    p_V = row_RV[0].softmax(0).numpy()
    errors_V = (targets_RV.mean(0) - p_V) / np.sqrt(p_V / (20000 * config.draws))
    assert np.abs(errors_V).max() < 4.5  # of 300 normal numbers, one in 500 runs is above
    assert np.abs(targets_RV.sum(1) - 1).max() < 1e-6


def test_a_head_ends_at_its_mass_or_its_size() -> None:
    logits_RV = torch.full((3, VOCABULARY), -40.0, dtype=torch.float64)
    logits_RV[0, :12] = 0.0  # even: the size ends it
    logits_RV[1, 4], logits_RV[1, 5] = 3.0, 0.0  # .95 and .05: the first is enough
    logits_RV[2, 9] = 200.0  # everything, to float32
    rows = take(logits_RV, CaptureConfig(kind="head_tail", draws=30))
    assert isinstance(rows, HeadTailRows)
    assert rows.heads_R.tolist() == [8, 1, 1]
    counts = np.split(rows.tail_counts_F, np.cumsum(rows.tails_R))
    assert [int(part.sum()) for part in counts[:3]] == [10, 2, 0]  # ⌈30·⅓⌉, ⌈30·.047⌉, ⌈30·0⌉


def test_at_equal_entries_head_and_tail_are_less_noisy_than_draws() -> None:
    """The gradient of the cross-entropy with respect to the logits is q - target: its variance is the target's."""
    row_RV = logits(1, seed=0).expand(4000, -1)
    plain, better = take(row_RV, CaptureConfig(kind="sampled")), take(row_RV, CaptureConfig(kind="head_tail", draws=20))
    assert isinstance(plain, SampledRows) and isinstance(better, HeadTailRows)
    assert len(better.ids_E) < len(plain.ids_E)
    variance = [dense(rows, 4000, 50).var(0).sum() for rows in (plain, better)]
    assert variance[1] * 1.9 < variance[0]


def test_uniform_numbers_depend_on_record_position_and_number_alone() -> None:
    seeds, positions = np.array([5, 5, 6], np.uint64), np.array([1, 2, 1])
    found_RN = uniforms(seeds, positions, 1000)
    np.testing.assert_array_equal(found_RN[:, :10], uniforms(seeds, positions, 10))
    assert len(np.unique(found_RN)) == 3000
    assert found_RN.min() >= 0 and found_RN.max() < 1
    assert np.abs(found_RN.mean(1) - 0.5).max() < 0.04
    assert np.abs(np.corrcoef(found_RN) - np.eye(3)).max() < 0.1
    assert draw_seed(b"\xff" * 16) == 2**64 - 1
