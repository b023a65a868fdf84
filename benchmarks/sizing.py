"""The sizing table of docs/operating.md: teachers of four sizes, by `llmdistill plan`.

    python benchmarks/sizing.py [--tokens 1e9] [--prompt 256] [--response 512]

The config.json files are written here, with the shapes that their authors published; no weights are needed, and nothing
is fetched. The tokenizers are stand-ins of the right size, one word a token.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from llmdistill.cli.pipeline import quiet_libraries
from llmdistill.config.load import load_config
from llmdistill.preflight.plan import Options, make_plan

GROUPED = {"tie_word_embeddings": False, "num_key_value_heads": 8, "head_dim": 128}
TEACHERS: dict[str, dict[str, Any]] = {
    "8B (Qwen3-8B)": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "vocab_size": 151936, **GROUPED,
    },
    "32B (Qwen3-32B)": {
        "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "vocab_size": 151936, **GROUPED,
    },
    "70B (Llama-3.3-70B)": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "vocab_size": 128256, **GROUPED,
    },
    "671B, 37B active (DeepSeek-V3, FP8)": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    },
}  # fmt: skip
STUDENT = {
    "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, **GROUPED, "tie_word_embeddings": True,
}  # fmt: skip
"""Qwen3-1.7B, with the teacher's vocabulary."""
GPUS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=512)
    arguments = parser.parse_args()
    quiet_libraries()
    print("| teacher | weights | a replica | or | score, H100 | generate, H100 | generate, H200 | cache |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in TEACHERS.items():
            print(_row(name, _write(Path(folder, str(shape["hidden_size"])), shape, arguments), arguments), flush=True)
        training = plan(Path(folder, "4096", "config.yaml"), arguments)["training"]
    memory = training["memory_by_zero_stage"]["2"]
    print(
        f"\nStudent of 1.7B on 8 GPUs, ZeRO-2: {memory['total'] / 1e9:.0f} GB a GPU, "
        f"{training['hours']['H100']:.0f} GPU hours an epoch on H100s."
    )


def plan(config: Path, arguments: argparse.Namespace, *overrides: str) -> dict[str, Any]:
    """The document of `llmdistill plan CONFIG --json --tokens N`."""
    run = load_config(config, overrides)
    return make_plan(run, Path(run.output), Options(tokens=arguments.tokens))


def _row(name: str, config: Path, arguments: argparse.Namespace) -> str:
    by_size = {size: plan(config, arguments, f"teacher.tensor_parallel={size}") for size in GPUS}
    memory = by_size[GPUS[-1]]["teacher"]["memory_by_tensor_parallel"]
    replicas, hours = [], []
    for card in ("H100", "H200"):
        # GPU hours: where the weights leave little room for the KV cache, more GPUs decode larger batches.
        fitting = [size for size in GPUS if card in memory[str(size)].get("fits", ())]
        best = min(fitting, key=lambda size: by_size[size]["teacher"]["hours"][card] + 1e-6 * size, default=None)
        replicas.append(f"{best} × {card}" if best else f"more than {GPUS[-1]} × {card}")
        hours.append(f"{by_size[best]['teacher']['hours'][card]:.0f}" if best else "")
    score = plan(config, arguments, "prompts.mode=score")
    cells = (
        name,
        f"{memory['1']['weights'] / 1e9:.0f} GB",
        *replicas,
        f"{score['teacher']['hours']['H100']:.0f}",
        *hours,
        f"{by_size[1]['cache']['bytes'] / 1e9:.0f} GB",
    )
    return f"| {' | '.join(cells)} |"


def _write(folder: Path, shape: dict[str, Any], arguments: argparse.Namespace) -> Path:
    """A teacher's folder, a student's config.json, prompts and a configuration; returns the last."""
    (folder / "student").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "student" / "config.json").write_text(json.dumps({**STUDENT, "vocab_size": shape["vocab_size"]}))
    _write_tokenizer(folder, shape["vocab_size"])
    question, answer = (" ".join(["t1"] * count) for count in (arguments.prompt, arguments.response))
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    config = {
        "output": str(folder / "run"),
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "held_out": 0.01},
        "teacher": {
            "model": str(folder),
            "max_model_len": arguments.prompt + arguments.response + 64,
            "requests_per_shard": 64,
            "sampling": {"max_new_tokens": arguments.response},
        },
        "student": {"config": str(folder / "student")},
        "objectives": [{"type": "forward_kl"}],
        "train": {"workers": 8, "epochs": 1, "tokens_per_step": 65536},
        "evaluate": {"baseline": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t2")
    turns = "{% for message in messages %}t3 {{ message.content }} t2 {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}t3 {% endif %}"
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
