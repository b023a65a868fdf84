"""The objectives against each other on the data of a finished run, at equal steps.

    llmdistill run configs/quickstart.yaml
    python benchmarks/objectives_table.py runs/quickstart OUT [--epochs 3] [--only NAME...]

The run's records are scored anew with its teacher, in float32, so that all kinds of capture hold the same
distributions: top-64, top-18 (as many bytes as the drawn kinds), `head_tail` and `sampled`. Then the run's untrained
student is trained once for each line of the table, in one process, and held against the teacher's whole distribution
on the held-out records. OUT keeps the caches and a JSON file for each line; lines that are there are not made again,
so several calls may share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.reader import CacheReader, StoredRecord
from llmdistill.cache.shard import write_shard
from llmdistill.config.objectives import AnyObjective
from llmdistill.config.run import RunConfig
from llmdistill.observe.run_folder import RunFolder
from llmdistill.teacher.capture import draw_seed, fill_columns
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.source import resolve_teacher
from llmdistill.trainer.checkpoint import latest_checkpoint
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.loop import run_training
from llmdistill.types import CaptureSpec, Record

CAPTURES: dict[str, dict[str, Any]] = {
    "top_64": {"kind": "top_k", "top_k": 64, "temperatures": (2.0,)},
    "top_18": {"kind": "top_k", "top_k": 18},
    "head_tail": {"kind": "head_tail", "draws": 50, "head_mass": 0.9, "head_size": 8},
    "sampled": {"kind": "sampled", "draws": 50},
}
CE = {"type": "sequence_ce", "weight": 0.1}


def _kl(**settings: Any) -> list[dict[str, Any]]:
    return [{"type": "forward_kl", "weight": 0.9, **settings}, CE]


LINES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    # name: capture, objectives, soft labels
    "sft": ("top_64", [{"type": "sequence_ce"}], "cache"),
    "forward_kl": ("top_64", _kl(), "cache"),
    "reverse_kl": ("top_64", [{"type": "reverse_kl", "weight": 0.9}, CE], "cache"),
    "jsd": ("top_64", [{"type": "jsd", "weight": 0.9}, CE], "cache"),
    "skew_forward_kl": ("top_64", [{"type": "skew_forward_kl", "weight": 0.9}, CE], "cache"),
    "top_18 bucket": ("top_18", _kl(), "cache"),
    "top_18 renormalize": ("top_18", _kl(tail="renormalize"), "cache"),
    "top_18 ground_truth": ("top_18", _kl(tail="ground_truth"), "cache"),
    "head_tail": ("head_tail", _kl(), "cache"),
    "sampled": ("sampled", _kl(), "cache"),
    "dense": ("top_64", _kl(), "live"),
    "forward_kl T=2": ("top_64", _kl(temperature=2.0), "cache"),
    "+hidden_cosine": ("top_64", [*_kl(), {"type": "hidden_cosine", "weight": 0.5}], "cache"),
    "+relation": ("top_64", [*_kl(), {"type": "relation", "weight": 0.5}], "cache"),
}


@torch.inference_mode()
def teacher_logprobs(model: PreTrainedModel, record: StoredRecord, vocabulary_size: int) -> torch.Tensor:
    """float32 [R, V]: the whole distribution at each supervised row."""
    slots_R = record.supervised_N.nonzero()[:, 0] - 1
    logits_NV = model(record.token_ids_N[None], use_cache=False).logits[0]
    return logits_NV[slots_R, :vocabulary_size].float().log_softmax(dim=1)


def make_captures(run: RunFolder, teacher: Path, out: Path) -> None:
    """Write one cache for each of `CAPTURES`, with the records of the run."""
    if all((out / name / "index.json").exists() for name in CAPTURES):
        return
    reader = CacheReader(run.cache)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    specs: dict[str, CaptureSpec] = {}
    made: dict[str, list[Record]] = {name: [] for name in CAPTURES}
    for name, fields in CAPTURES.items():
        plain = {"top_k": 0, "draws": 0, "head_mass": 0.0, "head_size": 0, "temperatures": ()}
        specs[name] = dataclasses.replace(reader.spec, engine="huggingface", dtype="float32", **{**plain, **fields})
    for number in range(len(reader)):
        record = reader.read(number)
        logprobs_RV = teacher_logprobs(model, record, reader.spec.vocabulary_size)
        positions_R = record.supervised_N.nonzero()[:, 0]
        actual_R = record.token_ids_N[positions_R]
        seeds_R = np.full(len(positions_R), draw_seed(record.key), np.uint64)
        for name, fields in CAPTURES.items():
            columns = Columns(vocabulary_size=reader.spec.vocabulary_size, **fields)
            filled = fill_columns(logprobs_RV, actual_R, seeds_R, positions_R.numpy(), columns)
            rows = columns.rows(*(part.numpy() for part in filled))
            ids = record.token_ids_N.numpy().astype(np.int32)
            split = int(reader.splits[number])
            made[name].append(Record(record.key, ids, record.supervised_N.numpy(), rows, record.finish_reason, split))
    for name, records in made.items():
        for start in range(0, len(records), 64):
            write_shard(shard_folder(out / name), records[start : start + 64], specs[name], "transformers")
        write_index(out / name)


@torch.inference_mode()
def held_out(student: PreTrainedModel, teacher: Path, run: RunFolder, share: float) -> dict[str, float]:
    """Means over the held-out rows, against the teacher's whole distribution."""
    reader = CacheReader(run.cache)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    sums, rows = torch.zeros(3, dtype=torch.float64), 0
    for number in reader.split(share)[1].tolist():
        record = reader.read(number)
        p, q = (teacher_logprobs(side, record, reader.spec.vocabulary_size) for side in (model, student))
        sums += torch.stack(
            [
                (p.exp() * (p - q)).sum().double(),
                (q.exp() * (q - p)).sum().double(),
                (p.argmax(1) == q.argmax(1)).sum().double(),
            ]
        )
        rows += len(p)
    return dict(zip(("kl", "reverse_kl", "top1_agreement"), (sums / rows).tolist(), strict=True))


def train_line(name: str, run: RunFolder, config: RunConfig, teacher: Path, out: Path, epochs: int) -> dict[str, Any]:
    """Train and measure one line of the table."""
    capture, objectives, soft_labels = LINES[name]
    folder = out / "trainings" / name.replace(" ", "_")
    settings = {"workers": 1, "epochs": epochs, "soft_labels": soft_labels, "save_steps": 10**6}
    job = TrainJob(
        name="student",
        cache=out / capture,
        held_out=config.prompts.held_out,
        init=run.untrained,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        objectives=tuple(TypeAdapter[AnyObjective](AnyObjective).validate_python(given) for given in objectives),
        train=config.train.model_copy(update=settings),
        teacher=teacher,
    )
    run_training(job)
    lines = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    student = AutoModelForCausalLM.from_pretrained(run.untrained, dtype=torch.float32).eval()
    _load_trained(student, job.checkpoints)
    index = json.loads((out / capture / "index.json").read_text())
    result = {
        "line": name,
        **held_out(student, teacher, run, config.prompts.held_out),
        "steps": len(lines),
        "tokens_per_second": sum(line["tokens"] for line in lines) / sum(line["step_seconds"] for line in lines),
        "bytes_per_row": index["bytes"] / index["rows"] if "bytes" in index else None,
    }
    shutil.rmtree(job.checkpoints)
    return result


def _load_trained(student: PreTrainedModel, checkpoints: Path) -> None:
    from llmdistill.export.huggingface import full_weights

    checkpoint = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    weights = full_weights(checkpoint)
    missing = student.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    student.tie_weights()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(LINES), default=list(LINES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder(args.run.resolve())
    config = RunConfig.model_validate_json(run.config.read_text())
    teacher = resolve_teacher(config.teacher.model)
    make_captures(run, teacher, args.out)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    (args.out / "lines").mkdir(exist_ok=True)
    for name in args.only:
        file = args.out / "lines" / f"{name.replace(' ', '_')}.json"
        if not file.exists():
            result = train_line(name, run, config, teacher, args.out, args.epochs)
            file.write_text(json.dumps(result) + "\n")
    torch.distributed.destroy_process_group()
    lines = [json.loads(file.read_text()) for file in sorted((args.out / "lines").glob("*.json"))]
    print("| objectives | KL(teacher ‖ student) | reverse KL | top-1 agreement | tokens/s |\n|---|---|---|---|---|")
    for line in sorted(lines, key=lambda line: line["kl"]):
        numbers = f"{line['kl']:.3f} | {line['reverse_kl']:.3f} | {line['top1_agreement']:.3f}"
        print(f"| {line['line']} | {numbers} | {line['tokens_per_second']:.0f} |")


if __name__ == "__main__":
    main()
