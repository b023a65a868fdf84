from pathlib import Path

import pytest

from llmdistill.errors import DataError
from llmdistill.prompts.keys import model_fingerprint, record_key, sampling_seed, split_hash, tokenizer_fingerprint
from tests.prompts.makers import WRITES_BOS, make_tokenizer


def test_model_fingerprint_sees_one_changed_weight_byte(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_teacher / name).read_bytes())
    before = model_fingerprint(folder)
    assert before == model_fingerprint(tiny_teacher)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(folder) != before


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a model folder"):
        model_fingerprint(tmp_path)


def test_tokenizer_fingerprint_sees_tokens_and_template() -> None:
    whole = make_tokenizer.__wrapped__()
    assert tokenizer_fingerprint(whole) == tokenizer_fingerprint(make_tokenizer.__wrapped__())
    prints = {tokenizer_fingerprint(whole), tokenizer_fingerprint(make_tokenizer(WRITES_BOS))}
    whole.add_tokens(["<think>"])
    assert len(prints | {tokenizer_fingerprint(whole)}) == 3


def test_keys_depend_on_seed_and_mask() -> None:
    keys = {
        record_key(b"spec", [1, 2, 3]),
        record_key(b"spec", [1, 2, 3], seed=0),
        record_key(b"spec", [1, 2, 3], seed=1),
        record_key(b"spec", [1, 2, 3], supervised=[False, True, True]),
        record_key(b"spec", [1, 2, 3], supervised=[False, False, True]),
        record_key(b"other", [1, 2, 3]),
    }
    assert len(keys) == 6
    assert record_key(b"spec", (1, 2, 3), 0) in keys


def test_hashes_are_the_same_on_every_machine() -> None:
    assert record_key(b"spec", [1, 2, 3], seed=5).hex() == "e62d52bb828f6fe39d1949db5ee6d712"
    assert split_hash([1, 2, 3]) == 11402386789778234582
    assert sampling_seed(0, [1, 2, 3], 1) == 6686270150409343258
