from dataclasses import replace

import pytest

from llmdistill.preflight.cost import (
    Utilisation,
    decoding_batch,
    possible_sizes,
    teacher_memory,
    teacher_seconds,
    tensor_parallel_fault,
    training_flops,
)
from llmdistill.preflight.hardware import ACCELERATORS
from llmdistill.preflight.parameters import ModelSize
from llmdistill.preflight.volume import Volume, corpus_volume
from tests.preflight.makers import GB, make_config, make_corpus

H100, _, _, L40S = ACCELERATORS
MODEL = ModelSize(
    parameters=10 * GB, active=10 * GB, multiplied=10 * GB, largest_layer=GB, layers=40, hidden=5120, heads=40,
    kv_heads=8, head_width=128, cached=2 * 8 * 128, vocabulary=151_936,
)  # fmt: skip
WHOLE = Utilisation(1.0, 1.0, 1.0)
VOLUME = Volume(records=1000, prompt_tokens=100_000, response_tokens=400_000, rows=400_000)


def test_scoring_is_arithmetic() -> None:
    config = make_config(prompts={"mode": "score"})
    flops = 500_000 * (2 * 10e9 + 4 * 40 * 40 * 128 * 250)
    assert teacher_seconds(config, MODEL, VOLUME, H100, WHOLE) == pytest.approx(flops / 989e12)
    assert teacher_seconds(config, MODEL, VOLUME, H100, Utilisation(scoring=0.5)) == pytest.approx(flops / 989e12 * 2)


def test_generating_reads_the_weights_at_every_step() -> None:
    config = make_config(teacher={"requests_per_shard": 4, "units_in_flight": 2})
    prefill = 100_000 * (2 * 10e9 + 4 * 40 * 40 * 128 * 50) / 989e12
    kv_token = 40 * 2 * 8 * 128 * 2
    step = (20e9 + 8 * 300 * kv_token) / 3.35e12
    expected = prefill + 400_000 / 8 * step
    assert teacher_seconds(config, MODEL, VOLUME, H100, WHOLE) == pytest.approx(expected)


def test_a_batch_is_what_the_kv_cache_holds() -> None:
    config = make_config(teacher={"requests_per_shard": 64, "units_in_flight": 16})
    room = 0.85 * 48e9 - 20e9
    assert decoding_batch(config, MODEL, L40S, 2000) == pytest.approx(room / (2000 * MODEL.kv_bytes()))
    assert decoding_batch(config, MODEL, H100, 100) == 1024


def test_training_is_three_passes_over_what_is_not_held_out() -> None:
    config = make_config(prompts={"held_out": 0.2}, train={"epochs": 3})
    expected = 3 * 3 * 0.8 * 500_000 * (2 * 10e9 + 4 * 40 * 40 * 128 * 250)
    assert training_flops(config, MODEL, VOLUME) == pytest.approx(expected)


def test_memory_of_a_replica_shrinks_with_its_gpus() -> None:
    config = make_config(teacher={"max_model_len": 4096})
    one, two = (teacher_memory(config, MODEL, size) for size in (1, 2))
    assert (one.weights, two.weights) == (20 * GB, 10 * GB)
    assert one.one_request == 4096 * MODEL.kv_bytes()
    assert one.kv_cache == 64 * one.one_request
    assert one.logprobs == two.logprobs == 4096 * 151_936 * 6
    assert one.fits(80e9, 0.85)
    assert not one.fits(24e9, 0.85)
    assert not one.fits(80e9, 0.99), "log-probabilities lie outside of what vLLM plans with"


def test_sizes_that_heads_allow() -> None:
    assert possible_sizes(64, 8, 16) == [1, 2, 4, 8, 16]
    assert possible_sizes(9, 3, 9) == [1, 3, 9]
    assert "40 attention heads" in tensor_parallel_fault(40, 8, 16)


def test_volume_counts_what_fits_and_every_sample() -> None:
    config = make_config(teacher={"max_model_len": 100, "sampling": {"max_new_tokens": 64, "samples": 2}})
    corpus = make_corpus((10, 20, 90), rows=3000)
    found = corpus_volume(config, corpus)
    assert (found.records, found.prompt_tokens, found.response_tokens) == (4000, 60_000, 256_000)
    assert found.rows == 256_000
    scored = corpus_volume(
        make_config(prompts={"mode": "score"}), make_corpus((10, 20, 30), supervised=(9, 19, 29), rows=3)
    )
    assert (scored.records, scored.tokens, scored.rows) == (3, 60, 57)
    assert scored.scaled(6e9).rows == pytest.approx(57e8)


def test_quantized_weights_take_their_own_bytes_and_the_kv_cache_does_not() -> None:
    config = make_config(teacher={"max_model_len": 4096})
    whole, halved = teacher_memory(config, MODEL, 1), teacher_memory(config, replace(MODEL, weight_bits=8), 1)
    assert (whole.weights, halved.weights) == (20 * GB, 10 * GB)
    assert halved.one_request == whole.one_request
    assert decoding_batch(config, replace(MODEL, weight_bits=4), L40S, 9000) > decoding_batch(config, MODEL, L40S, 9000)
