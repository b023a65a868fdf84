"""Speed and size of one model, each in a process of its own: `python -m llmdistill.evaluation.speed FOLDER 64 64`.

A fresh process is what makes the peak of the memory this model's alone. transformers generates, one sequence at a time,
in the precision of the weights: the same program for teacher and student, so that the ratio means something. It is not
what a serving engine reaches with a full batch.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmdistill.errors import LLMDistillError

_REPEATS = 3


def measure_speed(folder: Path, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Measure a model folder, in a child process.

    Returns:
        `tokens_per_second` (decoding, batch 1, without the first token), `seconds_to_first_token`, `peak_memory_bytes`
        (resident, or of the accelerator), `parameters`, `bytes` (of the weight files), `dtype`, `device`.

    Raises:
        LLMDistillError: the process failed.

    """
    command = [sys.executable, "-m", "llmdistill.evaluation.speed", str(folder), str(prompt_tokens), str(new_tokens)]
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if answer.returncode:
        last = (answer.stderr.strip() or "no message").splitlines()[-1]
        raise LLMDistillError(f"measuring the speed failed: {last}", where=str(folder))
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def available_bytes() -> int:
    """Free memory of the device that models would be loaded on."""
    import psutil
    import torch

    return int(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available)


def _measure(folder: Path, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    model.to(device).eval()
    prompt = torch.arange(prompt_tokens, device=device).unsqueeze(0) % model.config.vocab_size

    def seconds(tokens: int) -> float:
        started = time.monotonic()
        with torch.inference_mode():
            # The lengths are forced: an end token would make models of different manners incomparable.
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started

    seconds(2)  # the first call allocates and compiles
    first = min(seconds(1) for _ in range(_REPEATS))
    whole = min(seconds(1 + new_tokens) for _ in range(_REPEATS))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident_bytes()
    return {
        "tokens_per_second": new_tokens / max(whole - first, 1e-9),
        "seconds_to_first_token": first,
        "peak_memory_bytes": int(peak),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": weight_bytes(folder),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, threads: {torch.get_num_threads()}",
    }


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the parent held when it started this process.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
