"""How near students are to their teacher on the teacher's text and on their own.

    llmdistill run configs/quickstart.yaml
    llmdistill run configs/rounds.yaml
    python benchmarks/rounds.py runs/quickstart runs/rounds … [--samples 4] [--json]

Each run's student answers the held-out prompts of the first run, sampled at temperature 1. Teacher and student then run
over the same text, whole distributions in float32, and give the forward and the reverse KL of every token: on the
student's own answers and on the teacher's held-out text. Intervals are at 95 %, resampled over prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch


def _run_parts(run: Path) -> tuple[Any, Any, Any]:
    from llmdistill.cache.reader import CacheReader
    from llmdistill.config.run import RunConfig
    from llmdistill.observe.run_folder import RunFolder

    folder = RunFolder(run.resolve())
    return folder, RunConfig.model_validate_json(folder.config.read_text()), CacheReader(folder.cache)


def held_out_texts(run: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each held-out record."""
    _, config, reader = _run_parts(run)
    texts = []
    for number in reader.split(config.prompts.held_out)[1].tolist():
        record = reader.read(number)
        first = int(record.supervised_N.nonzero()[0])
        ids = record.token_ids_N.tolist()
        texts.append((ids[:first], ids[first:]))
    return texts


def answers(run: Path, prompts: list[list[int]], samples: int) -> list[list[int]]:
    """What a run's student answers; a process of its own, since vLLM keeps its memory."""
    from llmdistill.config.teacher import SamplingConfig, TeacherConfig
    from llmdistill.prompts.keys import sampling_seed
    from llmdistill.teacher.respond import respond

    folder, config, _ = _run_parts(run)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=config.teacher.sampling.max_new_tokens)
    requests = [(p, sampling, sampling_seed(1, p, sample)) for sample in range(samples) for p in prompts]
    return respond(folder.student, TeacherConfig(model=str(folder.student)), requests)


@torch.inference_mode()
def divergences(teacher: Any, student: Any, texts: list[tuple[list[int], list[int]]], vocabulary: int) -> np.ndarray:
    """Sums over the tokens of each text: forward KL, reverse KL and tokens, float64 [S, 3]."""
    rows = []
    for prompt, answer in texts:
        ids = torch.tensor([prompt + answer])
        p_NV, q_NV = (
            model(ids).logits[0, len(prompt) - 1 : -1, :vocabulary].float().log_softmax(-1)
            for model in (teacher, student)
        )
        forward = (p_NV.exp() * (p_NV - q_NV)).sum()
        reverse = (q_NV.exp() * (q_NV - p_NV)).sum()
        rows.append([float(forward), float(reverse), len(answer)])
    return np.array(rows)


def interval(sums_S3: np.ndarray, column: int, groups: int) -> list[float]:
    """Value, lower and upper bound of a mean over tokens; texts of one prompt are resampled together."""
    by_prompt = sums_S3.reshape(-1, groups, 3).sum(axis=0)
    draws = np.random.default_rng(0).integers(0, groups, (2000, groups))
    values = by_prompt[draws].sum(axis=1)
    ratios = values[:, column] / values[:, 2]
    total = by_prompt.sum(axis=0)
    return [round(float(x), 4) for x in (total[column] / total[2], *np.quantile(ratios, [0.025, 0.975]))]


def measure(runs: list[Path], samples: int) -> dict[str, Any]:
    """The table."""
    from llmdistill.student.creation import load_student
    from llmdistill.teacher.source import resolve_teacher

    texts = held_out_texts(runs[0])
    prompts = [prompt for prompt, _ in texts]
    _, config, reader = _run_parts(runs[0])
    vocabulary = reader.spec.vocabulary_size
    teacher = load_student(resolve_teacher(config.teacher.model), torch.float32).eval()
    table: dict[str, Any] = {}
    for run in runs:
        command = [sys.executable, __file__, str(run), str(runs[0]), "--samples", str(samples), "--answers"]
        written = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
        student = load_student(_run_parts(run)[0].student, torch.float32).eval()
        own = [(prompts[n % len(prompts)], answer) for n, answer in enumerate(written)]
        figures = {}
        for name, chosen in (("own_text", own), ("teacher_text", texts)):
            sums = divergences(teacher, student, chosen, vocabulary)
            figures |= {
                f"{name}_kl": interval(sums, 0, len(prompts)),
                f"{name}_reverse_kl": interval(sums, 1, len(prompts)),
            }
        table[run.name] = {**figures, "own_tokens": sum(map(len, written))}
    return {"prompts": len(prompts), "samples": samples, "runs": table}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--answers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answers:
        run, first = args.runs
        print(json.dumps(answers(run, [prompt for prompt, _ in held_out_texts(first)], args.samples)))
        return
    document = measure(args.runs, args.samples)
    if args.json:
        print(json.dumps(document))
        return
    for name, figures in document["runs"].items():
        for key, value in figures.items():
            print(f"{name:16} {key:24} {value}")


if __name__ == "__main__":
    main()
