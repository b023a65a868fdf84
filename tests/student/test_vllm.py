"""Students of the common families in vLLM: it loads them and writes what transformers writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmdistill.config.student import FromTeacherConfig
from llmdistill.student.creation import create_from_teacher, cut_from_teacher
from tests.student.tiny import SEQUENCES, tiny_model

# vLLM's attention on CPUs knows heads of 32 and more.
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": {**WIDE, "head_dim": 32, "attention_bias": False, "mlp_bias": False},
    "qwen2": {**WIDE, "use_sliding_window": False},
    "qwen3": {**WIDE, "head_dim": 32},
    "gemma3_text": {**WIDE, "head_dim": 32},
    "gpt2": {"n_embd": 128, "n_head": 4},
    "qwen3_moe": {**WIDE, "head_dim": 32, "moe_intermediate_size": 32, "mlp_only_layers": []},
}
CODE = """
import json, sys
from vllm import LLM, SamplingParams
for folder in sys.argv[2:]:
    try:
        llm = LLM(folder, enforce_eager=True, max_model_len=64, dtype="float32", skip_tokenizer_init=True,
                  enable_prefix_caching=False, disable_log_stats=True)
        output = llm.generate({"prompt_token_ids": json.loads(sys.argv[1])},
                              SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False))
        answer = list(output[0].outputs[0].token_ids)
        llm.llm_engine.engine_core.shutdown()
        del llm
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print("ANSWER", json.dumps([folder, answer]), flush=True)
"""
CHECK = """
import sys
from pathlib import Path
from llmdistill.config.teacher import SamplingConfig, TeacherConfig
from llmdistill.teacher.respond import respond
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=16)
    answers = respond(folder, TeacherConfig(model=str(folder), max_model_len=64), [((1, 2, 3), greedy, 0)])
    print("TOKENS", len(answers[0]))
"""


@pytest.mark.timeout(900)
def test_e10_vllm_writes_what_transformers_writes(tmp_path: Path) -> None:
    prompt = SEQUENCES[0][:9]
    expected = {}
    for name, changes in FAMILIES.items():
        sizes = {"layers": 3, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 64}
        if name == "qwen3_moe":
            sizes["experts"] = 4
        student = cut_from_teacher(tiny_model(name, **changes), FromTeacherConfig(**sizes), SEQUENCES).student
        folder = tmp_path / name
        student.save_pretrained(str(folder))
        tokens = student.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        expected[str(folder)] = tokens[0, len(prompt) :].tolist()
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    answer = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(prompt), *expected],
        capture_output=True,
        text=True,
        env=environment,
        timeout=850,
    )
    lines = [line.removeprefix("ANSWER ") for line in answer.stdout.splitlines() if line.startswith("ANSWER ")]
    assert dict(map(json.loads, lines)) == expected, answer.stderr[-3000:]


@pytest.mark.timeout(900)
def test_a_created_student_with_its_tokenizer_passes_the_check_of_the_export(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "student")
    answer = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path / "student")], capture_output=True, text=True, timeout=850
    )
    assert "TOKENS 16" in answer.stdout, answer.stderr[-3000:]
