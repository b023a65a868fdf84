"""GGUF files, read back with transformers' own reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from llmdistill.errors import ConfigError
from llmdistill.export.gguf_file import write_gguf
from llmdistill.student.folder import copy_tokenizer

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.1, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of 300 tokens with a chat template: reading a large one from GGUF takes long."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat and the other cat that sat there, and then the hat"] * 9, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    tokenizer.save_pretrained(str(folder))
    return folder


def write_model(folder: Path, teacher: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SIZES, **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).save_pretrained(str(folder))
    copy_tokenizer(teacher, folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "dtype", "asked"),
    [
        ({"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True}, torch.float32, True),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, torch.bfloat16, True),
        ({"model_type": "mistral", "sliding_window": None}, torch.float32, "float16"),
        ({"model_type": "qwen2"}, torch.bfloat16, "float32"),
        ({"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True}, torch.bfloat16, "float16"),
    ],
)
def test_logits_survive(changes: dict, dtype: torch.dtype, asked: Any, small_tokenizer: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path, small_tokenizer, dtype, **changes)
    path = write_gguf(folder, asked)
    assert path.name == (
        "model-f32.gguf" if asked == "float32" or (asked, dtype) == (True, torch.float32) else "model-f16.gguf"
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        str(folder), gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokens = torch.arange(100, 130)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-2, atol=1e-2)
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.chat_template"].contents() == AutoTokenizer.from_pretrained(str(folder)).chat_template
    assert len(fields["tokenizer.ggml.tokens"].data) == 320


def test_the_tokenizer_survives(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path, tiny_teacher, model_type="llama", vocab_size=49280)
    path = write_gguf(folder, "float16")
    fields = gguf.GGUFReader(path).fields
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(fields["tokenizer.ggml.merges"].data) == len(tokenizer["model"]["merges"])
    types = [
        int(fields["tokenizer.ggml.token_type"].parts[index][0]) for index in (fields["tokenizer.ggml.token_type"].data)
    ]
    assert types[0] == gguf.TokenType.CONTROL and types[5000] == gguf.TokenType.NORMAL
    assert types[49279] == gguf.TokenType.UNUSED
    texts = ["Two plus 2 is four, isn't it?", "<|im_start|>user\nÄther<|im_end|>"]
    again = AutoTokenizer.from_pretrained(str(folder), gguf_file=path.name)
    mine = AutoTokenizer.from_pretrained(str(folder))
    assert [again(text)["input_ids"] for text in texts] == [mine(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "gemma2", "head_dim": 32}, "'gemma2' is not one of"),
        ({"model_type": "mistral", "sliding_window": 16}, "a sliding window of 16"),
        ({"model_type": "qwen3", "head_dim": 64}, "heads of 128 only"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling 'linear'",
        ),
    ],
)
def test_what_has_no_place_in_the_file_is_refused(
    changes: dict, fault: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=fault):
        write_gguf(write_model(tmp_path, small_tokenizer, **changes), True)


def test_an_unknown_way_of_splitting_text_is_refused(small_tokenizer: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", small_tokenizer, model_type="llama")
    shutil.copyfile(folder / "tokenizer.json", tmp_path / "kept.json")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="splits text"):
        write_gguf(folder, True)
