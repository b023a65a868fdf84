"""One start of two processes that train many small jobs, for the tests of this folder: starting is what takes time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.shard import encode_records, put_shard, record_checksums, shard_name
from llmdistill.config.objectives import ForwardKLConfig, SequenceCEConfig, SkewForwardKLConfig, SkewReverseKLConfig
from llmdistill.config.self_distillation import SelfDistillationConfig
from llmdistill.trainer.job import TrainJob
from tests.helpers import SPEC, make_cache, make_record, save_random_llama
from tests.trainer.run_ranks import job_for, run_each

BAD_RECORD = 5
POISONED = ((0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))
"""ZeRO stages and precisions that train on a cache with a bad record."""
AVERAGED = {"0": "fp32", "0-bf16": "bf16", "1": "bf16", "2": "fp32", "3": "fp32"}
"""ZeRO stages that keep an average of the weights, and their precisions; 0 and 3 learn from it, too."""


@dataclass(frozen=True)
class Trained:
    """What came of the jobs."""

    jobs: dict[str, TrainJob]
    errors: dict[str, str]


def tiny_student(folder: Path) -> Path:
    """A random LLaMA of two layers for the vocabulary of `tests.helpers.SPEC`, with untied embeddings."""
    return save_random_llama(
        folder,
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )


def broken_student(good: Path, folder: Path) -> Path:
    """The same, but one token of the bad record, in its prompt, has an embedding that is not a number."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(str(good))
    with torch.no_grad():
        model.model.embed_tokens.weight[int(make_record(BAD_RECORD).token_ids_N[0]), 0] = torch.nan
    model.save_pretrained(str(folder))
    return folder


def poisoned_cache(folder: Path) -> Path:
    """24 records in one shard; the mass of one row of one of them is infinite, which no writer lets through."""
    records = [make_record(number) for number in range(24)]
    tensors = encode_records(records, SPEC, [""])
    tensors["mass"] = tensors["mass"].copy()
    tensors["mass"][tensors["row_offsets"][BAD_RECORD] + 3] = np.inf
    tensors["record_checksums"] = record_checksums(tensors, SPEC)
    put_shard(shard_folder(folder), shard_name([r.key for r in records]), tensors, SPEC, [""], "fake-1", "none")
    write_index(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    good, poisoned = folder / "cache", poisoned_cache(folder / "poisoned")
    make_cache(good, records=24)
    student = tiny_student(folder / "student")
    all_steps = {"epochs": 2, "save_steps": 1, "save_total_limit": 99}
    jobs = {
        f"skip-{stage}-{precision}": job_for(
            folder / f"skip-{stage}-{precision}", poisoned, student, zero_stage=stage, precision=precision, **all_steps
        )
        for stage, precision in POISONED
    }
    broken = broken_student(student, folder / "broken")
    jobs["broken"] = job_for(folder / "broken-run", good, broken, zero_stage=2, max_skipped_share=1.0)
    jobs["strict"] = job_for(folder / "strict", poisoned, student, zero_stage=2, max_skipped_share=0.0)
    early = {"eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1, "lr": 0.3, "save_steps": 100}
    jobs["early"] = dataclasses.replace(
        job_for(folder / "early", good, student, epochs=6, early_stopping_patience=2, **early), held_out=0.3
    )
    jobs["early-again"] = jobs["early"]
    growing = {"wait_for_cache": True, "max_steps": 99, "epochs": 2}
    jobs["growing"] = job_for(folder / "growing", good, student, **growing)
    jobs["growing-again"] = jobs["growing"]
    for name, precision in AVERAGED.items():
        average = {"zero_stage": int(name[0]), "precision": precision, "ema_decay": 0.7, **all_steps}
        jobs[f"average-{name}"] = job_for(folder / f"average-{name}", good, student, **average)
    taught = (ForwardKLConfig(type="forward_kl"), SelfDistillationConfig(type="self_distillation", model="ema"))
    for name in ("0", "3"):
        jobs[f"average-{name}"] = dataclasses.replace(jobs[f"average-{name}"], objectives=taught)
    resumed = folder / "resumed" / "checkpoints"
    jobs["average-resumed"] = dataclasses.replace(
        jobs["average-2"], checkpoints=resumed, metrics=resumed.with_name("metrics.jsonl")
    )
    resumed.mkdir(parents=True)
    # There when its turn has come.
    (resumed / "step-00000003").symlink_to(jobs["average-2"].checkpoints / "step-00000003")
    make_cache(folder / "mixed", records=24, by_student=10)
    jobs["texts"] = dataclasses.replace(
        job_for(folder / "texts", folder / "mixed", student, epochs=2),
        objectives=(
            SkewForwardKLConfig(type="skew_forward_kl", text="teacher"),
            SkewReverseKLConfig(type="skew_reverse_kl", text="student", weight=0.5),
            SequenceCEConfig(type="sequence_ce", text="teacher", weight=0.1),
            SequenceCEConfig(type="sequence_ce", text="student", weight=0.2),
        ),
    )
    (folder / "errors").mkdir()
    errors = run_each(list(jobs.values()), folder / "errors")
    return Trained(jobs, dict(zip(jobs, errors, strict=True)))
