"""Exported folders that must not pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdistill.errors import DataError
from llmdistill.export.verify import verify_export, verify_files, weight_shapes
from tests.student.tiny import tiny_model

Weights = dict[str, torch.Tensor]


@pytest.fixture
def exported(tmp_path: Path):
    model = tiny_model("llama_tied")
    model.save_pretrained(str(tmp_path))
    verify_export(tmp_path, model)
    return tmp_path, model


def rewrite(folder: Path, change: Callable[[Weights], None]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def test_z1_a_weight_without_values_is_named(exported) -> None:
    folder, _ = exported
    name = "model.layers.2.self_attn.q_proj.weight"
    rewrite(folder, lambda weights: weights.update({name: torch.zeros(0)}))
    with pytest.raises(DataError, match=f"weights without values: {name}"):
        verify_files(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "student.", "projectors."])
def test_e10_names_of_wrappers_are_refused(exported, prefix: str) -> None:
    folder, _ = exported
    rewrite(folder, lambda weights: weights.update({f"{prefix}x.weight": torch.ones(1)}))
    with pytest.raises(DataError, match=r"names that no loader knows"):
        verify_files(folder)


def test_e4_tied_embeddings_are_stored_once_and_the_head_must_match_the_config(exported) -> None:
    folder, _ = exported
    assert "lm_head.weight" not in weight_shapes(folder)
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": torch.ones(96, 64)}))
    with pytest.raises(DataError, match="the weight of the head is stored, and tie_word_embeddings is True"):
        verify_files(folder)
    untied = tiny_model("llama")
    untied.save_pretrained(str(folder))
    verify_files(folder)
    rewrite(folder, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(DataError, match="the weight of the head is missing"):
        verify_files(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "missing_keys.*model.norm.weight"),
        (lambda weights: weights.update({"model.extra.weight": torch.ones(1)}), "unexpected_keys.*model.extra.weight"),
        (lambda weights: weights["model.norm.weight"].mul_(1.01), "gives other logits"),
    ],
)
def test_missing_additional_and_changed_weights(exported, change: Callable[[Weights], None], fault: str) -> None:
    folder, model = exported
    rewrite(folder, change)
    with pytest.raises(DataError, match=fault):
        verify_export(folder, model)


def test_e10_the_class_must_be_one_of_transformers(exported) -> None:
    folder, _ = exported
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["DistillationModule"]}))
    with pytest.raises(DataError, match="transformers knows LlamaForCausalLM"):
        verify_files(folder)


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    model.save_pretrained(str(tmp_path), max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    verify_export(tmp_path, model)
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(DataError, match="in the index or in the files alone"):
        verify_files(tmp_path)


def test_a_damaged_file_is_named(exported) -> None:
    folder, _ = exported
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        verify_files(folder)
