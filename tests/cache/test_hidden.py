from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmdistill.cache.hidden import SidecarFile, quantise
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.verify import verify


@pytest.mark.parametrize(("format", "bound"), [("bf16", 1 / 256), ("int8", 1 / 254)])
def test_hidden_states_come_back(small_cache: Callable[..., Any], format: str, bound: float) -> None:
    cache, records, spec = small_cache(hidden_layers=(0, 7), hidden_format=format)
    by_key = {record.key: record for record in records}
    for name in CacheReader(cache).shards:
        sidecar = SidecarFile(cache / "shards", name)
        for number, key in enumerate(CacheReader(cache, [name]).keys):
            keys = [bytes(key) for key in sidecar._file.get_tensor("keys").numpy()]
            found, said = sidecar.read(keys.index(key)), by_key[key].hidden_LRD
            assert set(found) == {0, 7}, number
            for layer, state in zip((0, 7), said, strict=True):
                largest = np.abs(state).max(1, keepdims=True) if len(state) else 0
                assert (np.abs(found[layer].float().numpy() - state) <= bound * largest + 1e-7).all()
    assert spec.hidden_layers == (0, 7)
    assert not verify(cache).damaged


def test_int8_of_a_row_of_zeros_is_zero() -> None:
    values, scales = quantise(torch.zeros(2, 3))
    assert not values.any()
    assert not scales.any()


def test_a_damaged_or_missing_sidecar_is_named(small_cache: Callable[..., Any]) -> None:
    cache, _, _ = small_cache(hidden_layers=(1,))
    first, second, *_ = sorted((cache / "hidden").iterdir())
    data = bytearray(first.read_bytes())
    data[-20] ^= 1
    first.write_bytes(data)
    second.unlink()
    assert verify(cache).damaged == [first.name, second.name]


def test_missing_hidden_states_are_refused(tmp_path: Path, make: Any) -> None:
    records = make.records(make.spec(), 2)
    with pytest.raises(ValueError, match="hidden states must be"):
        make.cache(tmp_path, records, make.spec(hidden_layers=(1,)))
    assert not list(tmp_path.rglob("*.safetensors"))
