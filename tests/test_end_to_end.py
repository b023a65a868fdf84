"""The real command, as a person runs it: to the end, killed, repeated, and with wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmdistill.cache.reader import CacheReader
from llmdistill.student.folder import TOKENIZER_FILES

LLMDISTILL = str(Path(sys.executable).parent / "llmdistill")


def write_config(folder: Path, teacher_folder: Path, **sections: dict) -> Path:
    config = {
        "output": str(folder / "run"),
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "held_out": 0.2},
        "teacher": {
            "model": str(teacher_folder),
            "engine": "fake",
            "max_model_len": 128,
            "requests_per_shard": 4,
            "sampling": {"max_new_tokens": 24, "temperature": 1.0},
        },
        "capture": {"top_k": 16},
        "student": {"from_teacher": {"layers": 2}},
        "objectives": [{"type": "forward_kl", "weight": 0.9}, {"type": "sequence_ce", "weight": 0.1}],
        "train": {
            "epochs": 3, "lr": 3.0e-3, "sequence_length": 128, "tokens_per_step": 256, "workers": 2, "save_steps": 4,
        },
    }  # fmt: skip
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    (folder / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"Tell me about {n}."}]}) + "\n" for n in range(60)
        )
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def call(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LLMDISTILL, *arguments], capture_output=True, text=True, timeout=timeout)


def kill_when(condition: Callable[[], bool], *arguments: str) -> None:
    """Start the command in a process group of its own and end the whole group with signal 9 once `condition` holds."""
    process = subprocess.Popen([LLMDISTILL, *arguments], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not condition():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def keys(run: Path) -> list[bytes]:
    return CacheReader(run / "cache").keys


@pytest.mark.timeout(900)
def test_killed_in_generate_and_in_train_the_same_command_finishes(tiny_teacher: Path, tmp_path: Path) -> None:
    # Speed is measured in the test below, with a real engine.
    config = str(write_config(tmp_path, tiny_teacher, evaluate={"speed": None}))
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert call("generate", config, f"output={calm}").returncode == 0

    def shards() -> int:
        return len(list(run.glob("cache/shards/*.safetensors")))

    kill_when(lambda: shards() >= 3, "run", config)
    assert shards() < 15, "it was killed too late to show anything"
    kill_when(lambda: bool(list(run.glob("checkpoints/step-*"))), "run", config)
    assert not (run / "evaluation.json").exists()
    finished = call("run", config)
    assert finished.returncode == 0, finished.stderr
    assert "generate: finished before" in finished.stderr
    assert keys(run) == keys(calm)

    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line.get("model") == "student"]
    assert [line["step"] for line in steps] == list(range(1, steps[-1]["total_steps"] + 1))
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["held_out_records"] == len(CacheReader(run / "cache").split(0.2)[1])
    assert set(evaluation["models"]) == {"untrained", "sft", "student"}
    assert evaluation["models"]["student"]["kl"] < evaluation["models"]["untrained"]["kl"]
    page = (run / "report.html").read_text()
    assert f"{evaluation['models']['student']['kl']:.4f}" in page

    started = time.monotonic()
    again = call("run", config)
    assert again.returncode == 0
    assert time.monotonic() - started < 20
    assert again.stderr.count("finished before") == 5

    changed = call("run", config, "train.lr=1e-3")
    assert changed.returncode == 3
    assert "train.lr: the checkpoint has 0.003, asked is 0.001" in changed.stderr
    other_k = call("generate", config, "capture.top_k=8")
    assert other_k.returncode == 3
    assert "top_k: the cache has 16, asked is 8" in other_k.stderr
    assert keys(run) == keys(calm)


@pytest.mark.timeout(600)
def test_the_real_parts_together_in_score_mode(teacher_folder: Path, tmp_path: Path) -> None:
    """VLLM on Ray, safetensors shards, ZeRO-2 under Ray Train, export; then vLLM loads the student."""
    config = write_config(
        tmp_path,
        teacher_folder,
        teacher={"engine": "vllm"},
        prompts={"mode": "score"},
        student={"from_teacher": {"layers": 4}},
        train={"lr": 1.0e-3, "save_steps": 100},
        evaluate={"baseline": False},
    )
    texts = [f"The number {n} follows {n - 1} and comes before {n + 1}, as everyone can tell." for n in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    finished = call("run", str(config))
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "run"
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["models"]["student"]["kl"] < 0.7 * evaluation["models"]["untrained"]["kl"]

    student = run / "student"
    model, report = AutoModelForCausalLM.from_pretrained(str(student), dtype="auto", output_loading_info=True)
    assert not any(value for key, value in report.items() if key.endswith("_keys"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (student / "model.safetensors").stat().st_size == pytest.approx(2 * parameters, rel=0.01)
    for name in TOKENIZER_FILES:
        if (teacher_folder / name).is_file():
            assert (student / name).read_bytes() == (teacher_folder / name).read_bytes()
    assert model.dtype == torch.bfloat16
    assert json.loads((student / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "forward_kl" in (student / "README.md").read_text()
    templates = [AutoTokenizer.from_pretrained(str(folder)).chat_template for folder in (student, teacher_folder)]
    assert templates[0] == templates[1]
    code = (
        "from vllm import LLM, SamplingParams\n"
        f"llm = LLM({str(student)!r}, enforce_eager=True, max_model_len=64)\n"
        "out = llm.generate({'prompt_token_ids': [1, 50, 60]}, SamplingParams(max_tokens=5, ignore_eos=True))\n"
        "print('tokens', len(out[0].outputs[0].token_ids))\n"
    )
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200)
    assert "tokens 5" in loaded.stdout, loaded.stderr[-2000:]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "configs/quickstart.yaml", "train.lrr=1"], 2, "did you mean train.lr?"),
        (["run", "absent.yaml"], 2, "absent.yaml"),
        (["fly"], 2, "fly"),
        (["run", "configs/quickstart.yaml", "teacher.model=/absent/model.gguf"], 2, "teacher.model"),
        (["run", "configs/quickstart.yaml", "prompts.sources.0.path=absent.jsonl"], 3, "absent.jsonl"),
        (["run", "configs/quickstart.yaml", "train.report_to=[wandb]"], 2, "the package wandb cannot be imported"),
        (
            ["run", "configs/quickstart.yaml", "objectives.1={type: self_distillation, model: absent}"],
            2,
            "'absent' is no model folder",
        ),
        (["report", "tests"], 3, "llmdistill run CONFIG"),
        (["run", "configs/quickstart.yaml", "teacher.replicas=64"], 4, "needs 64 CPU"),
    ],
)
def test_wrong_input_ends_with_its_status_and_one_clear_error(
    tmp_path: Path,
    arguments: list[str],
    status: int,
    message: str,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if arguments[0] == "run" and arguments[1].startswith("configs"):
        arguments = [*arguments, f"output={tmp_path / 'run'}"]
    answer = call(*arguments, timeout=60)
    assert answer.returncode == status, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
