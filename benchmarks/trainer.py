"""What a distillation step costs beside plain fine-tuning, and beside distilling with the teacher in the process.

    llmdistill run configs/quickstart.yaml
    python benchmarks/trainer.py runs/quickstart [--steps 8] [--rounds 3] [--json]

All train the run's untrained student on the run's records in bf16, one process on one core, the same number of token
slots a step, in turns, each turn in a process of its own; of each turn all steps but the first two count.

ours         this project's loop, ZeRO-2: top-k rows from the cache, fused head, the run's objectives
fine_tuning  Hugging Face's Trainer with DeepSpeed ZeRO-2: cross-entropy on the same packed sequences and tokens
live         this project's loop with the teacher in the process (train.soft_labels: live)
gkd          TRL's GKD trainer, off-policy (lmbda 0), teacher in the process; only where trl is installed

step_ratio_to_fine_tuning = median seconds of a step, ours / fine_tuning; speedup_over_live_teacher = real tokens a
second, ours / gkd (ours / live where there is no trl); data_wait_share = share of ours spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

SEQUENCE_LENGTH, SEQUENCES = 512, 2
WARM_UP = 2


def _parts(run: Path) -> tuple[Any, Any, Any]:
    from llmdistill.cache.reader import CacheReader
    from llmdistill.config.run import RunConfig
    from llmdistill.observe.run_folder import RunFolder

    folder = RunFolder(run.resolve())
    return folder, RunConfig.model_validate_json(folder.config.read_text()), CacheReader(folder.cache)


def _process_group() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


def _packed(run: Path) -> list[dict[str, torch.Tensor]]:
    """The packed training sequences of an epoch; labels are -100 where no response token stands."""
    from llmdistill.cache.order import plan_steps
    from llmdistill.trainer.data import collate

    _, config, reader = _parts(run)
    records = reader.split(config.prompts.held_out)[0]
    plan = plan_steps(reader.token_counts, records, 1, 0, SEQUENCE_LENGTH, SEQUENCES)
    batches = [collate(reader, plan.step(number), SEQUENCE_LENGTH) for number in range(len(plan))]
    rows = []
    for batch in batches:
        labels = torch.full_like(batch.token_ids_BT, -100).flatten()
        labels[batch.row_slots_R + 1] = batch.actual_ids_R
        pairs = zip(batch.token_ids_BT, labels.view_as(batch.token_ids_BT), strict=True)
        rows += [{"input_ids": ids, "labels": row} for ids, row in pairs]
    return rows


def ours(run: Path, steps: int, soft_labels: str = "cache") -> dict[str, Any]:
    """Seconds of each step of this project's loop."""
    from llmdistill.teacher.source import resolve_teacher
    from llmdistill.trainer.job import TrainJob
    from llmdistill.trainer.loop import run_training

    folder, config, _ = _parts(run)
    settings = {
        "workers": 1,
        "epochs": 1,
        "save_steps": 10**6,
        "sequence_length": SEQUENCE_LENGTH,
        "micro_batch_size": SEQUENCES,
        "tokens_per_step": SEQUENCES * SEQUENCE_LENGTH,
        "soft_labels": soft_labels,
    }
    _process_group()
    torch.distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as scratch:
        job = TrainJob(
            name="student",
            cache=folder.cache,
            held_out=config.prompts.held_out,
            init=folder.untrained,
            checkpoints=Path(scratch) / "checkpoints",
            metrics=Path(scratch) / "metrics.jsonl",
            objectives=config.objectives,
            train=config.train.model_copy(update=settings),
            teacher=resolve_teacher(config.teacher.model) if soft_labels == "live" else None,
        )
        run_training(job, last_step=steps)
        lines = [json.loads(line) for line in job.metrics.read_text().splitlines()][WARM_UP:]
    return {
        "seconds": [line["step_seconds"] for line in lines],
        "tokens": [line["tokens"] for line in lines],
        "waits": [line["data_wait_seconds"] for line in lines],
    }


def fine_tuning(run: Path, steps: int) -> dict[str, Any]:
    """Seconds of each step of Hugging Face's Trainer."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    folder, _, _ = _parts(run)
    rows = _packed(run)[: steps * SEQUENCES]
    _process_group()
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic() - self.started)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            max_steps=steps,
            per_device_train_batch_size=SEQUENCES,
            learning_rate=1e-4,
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_grad_norm=1.0,
            deepspeed={
                "zero_optimization": {"stage": 2},
                "bf16": {"enabled": True},
                "gradient_clipping": 1.0,
                "zero_allow_untested_optimizer": True,
                "train_micro_batch_size_per_gpu": SEQUENCES,
                "gradient_accumulation_steps": 1,
            },
        )
        model = AutoModelForCausalLM.from_pretrained(folder.untrained, dtype=torch.bfloat16)
        Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    return {"seconds": times[WARM_UP:], "tokens": [SEQUENCES * SEQUENCE_LENGTH] * len(times[WARM_UP:])}


def gkd(run: Path, steps: int) -> dict[str, Any]:
    """Seconds and real tokens of each step of TRL's trainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from llmdistill.teacher.source import resolve_teacher

    folder, config, reader = _parts(run)
    teacher = resolve_teacher(config.teacher.model)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    batch = 8
    rows, lengths = [], []
    for number in reader.split(config.prompts.held_out)[0][: steps * batch].tolist():
        record = reader.read(number)
        first = int(record.supervised_N.nonzero()[0])
        ids = record.token_ids_N.tolist()
        texts = [tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:first], ids[first:])]
        turns = zip(("user", "assistant"), texts, strict=True)
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
        lengths.append(len(ids))
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic() - self.started)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = GKDConfig(
            scratch,
            max_steps=steps,
            per_device_train_batch_size=batch,
            lmbda=0.0,
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_length=SEQUENCE_LENGTH,
            learning_rate=1e-4,
        )
        model = AutoModelForCausalLM.from_pretrained(folder.untrained, dtype=torch.bfloat16)
        GKDTrainer(
            model=model,
            teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16),
            args=arguments,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
        ).train()
    # Batches are shuffled: the mean length stands for each.
    mean = batch * sum(lengths) / len(lengths)
    return {"seconds": times[WARM_UP:], "tokens": [mean] * len(times[WARM_UP:])}


def live(run: Path, steps: int) -> dict[str, Any]:
    """As `ours`, with the teacher in the process."""
    return ours(run, steps, "live")


ROLES = {"ours": ours, "fine_tuning": fine_tuning, "live": live, "gkd": gkd}


def measure(run: Path, steps: int, rounds: int) -> dict[str, Any]:
    """All figures; roles take turns."""
    roles = [role for role in ROLES if role != "gkd" or _has_trl()]
    found: dict[str, dict[str, list[float]]] = {role: {} for role in roles}
    for _ in range(rounds):
        for role in roles:
            command = [sys.executable, __file__, str(run), "--steps", str(steps), "--role", role]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
            for key, values in json.loads(done.stdout.splitlines()[-1]).items():
                found[role].setdefault(key, []).extend(values)
    seconds = {role: statistics.median(values["seconds"]) for role, values in found.items()}
    rates = {role: sum(values["tokens"]) / sum(values["seconds"]) for role, values in found.items()}
    beside = "gkd" if "gkd" in rates else "live"
    return {
        "step_ratio_to_fine_tuning": seconds["ours"] / seconds["fine_tuning"],
        "speedup_over_live_teacher": rates["ours"] / rates[beside],
        "live_teacher": "trl GKDTrainer" if beside == "gkd" else "train.soft_labels: live",
        "data_wait_share": sum(found["ours"]["waits"]) / sum(found["ours"]["seconds"]),
        **{f"{role}_seconds": value for role, value in seconds.items()},
        **{f"{role}_tokens_per_second": value for role, value in rates.items()},
    }


def _has_trl() -> bool:
    import importlib.util

    return importlib.util.find_spec("trl") is not None


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.role:
        print(json.dumps(ROLES[args.role](args.run, args.steps)))
        return
    figures = measure(args.run, args.steps, args.rounds)
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value if isinstance(value, str) else round(value, 3)}")


if __name__ == "__main__":
    main()
