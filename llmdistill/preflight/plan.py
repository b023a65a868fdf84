"""What a run will take, before anything starts: tokens, bytes, memory, hours and money, each with its assumption.

The document of `make_plan` is what `--json` prints; `plan_tables.py` shows the same to people.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.run import RunConfig
from llmdistill.errors import DataError
from llmdistill.preflight.corpus import sample_corpus
from llmdistill.preflight.cost import (
    TeacherMemory,
    Utilisation,
    scoring_flops,
    teacher_memory,
    teacher_seconds,
    tensor_parallel_fault,
    training_flops,
    training_memory,
)
from llmdistill.preflight.facts import CorpusFacts
from llmdistill.preflight.hardware import ACCELERATORS, Hardware, this_cpu
from llmdistill.preflight.machine import cores, memory_bytes
from llmdistill.preflight.models import student_facts, teacher_facts
from llmdistill.preflight.parameters import ModelSize, model_size
from llmdistill.preflight.volume import (
    Volume,
    added,
    cache_size,
    capture_spec,
    model_files,
    rounds_size,
    rounds_volume,
    teacher_volumes,
)
from llmdistill.trainer.memory import STAGES

TENSOR_PARALLEL = (1, 2, 4, 8)
LOGITS_BYTES = 2
"""Of one bf16 logit: what keeping the whole distribution would take."""


@dataclass(frozen=True)
class Options:
    """What the command line adds to the configuration."""

    price: float | None = None
    """Of a GPU hour."""
    tokens: float | None = None
    """Prompt and response tokens in all, in place of what the corpus has."""
    utilisation: Utilisation = field(default_factory=Utilisation)
    storage_price: float = 0.023
    """Of a GB and month of object storage, counted for one month."""


@dataclass(frozen=True)
class _Models:
    teacher: ModelSize
    student: ModelSize
    student_config: dict[str, Any]
    tokens: int
    """Size of the teacher's tokenizer."""


def make_plan(config: RunConfig, output: Path, options: Options) -> dict[str, Any]:
    """The plan as plain data.

    Args:
        config: the run.
        output: its folder, absolute.
        options: of the command line.

    Raises:
        ConfigError: a model cannot be found or is of an unknown architecture.
        DataError: the prompts cannot be read, or none of them fits.

    """
    teacher, tokenizer = teacher_facts(config.teacher.model)
    if tokenizer is None:
        raise DataError(
            "it has no tokenizer files, and without them nothing can be counted",
            where=f"teacher.model: {config.teacher.model}",
            fix="copy tokenizer.json into its folder",
        )
    student = student_facts(config.student, teacher)
    models = _Models(
        model_size(teacher.config, "teacher.model"),
        model_size(student.config, "student", config.student.lora),
        dict(student.config),
        len(tokenizer),
    )
    corpus = sample_corpus(config, tokenizer)
    volumes = _volumes(config, corpus, options)
    volume = added(volumes.values())
    hardware = (*ACCELERATORS, this_cpu(cores(), memory_bytes()))
    sizes = _teacher_sizes(config, models.teacher)
    teachers = {
        name: _teacher(
            config.model_copy(update={"teacher": config.asked_teachers[name]}), sizes[name], own, hardware, options
        )
        for name, own in volumes.items()
    }
    document = {
        "models": {
            **{name: _model(config.asked_teachers[name].model, model) for name, model in sizes.items()},
            "student": _model(student.name, models.student),
        },
        "tokens": _tokens(corpus, volume),
        "cache": _cache(config, volume, models, output),
        "teacher": _all_teachers(teachers),
        **({"teachers": teachers} if len(teachers) > 1 else {}),
        "training": _training(config, models, volume, hardware, options),
        "assumptions": _assumptions(config, options, hardware),
    }
    if config.rounds is not None:
        document["rounds"] = _rounds(config, config.rounds, models, volume, hardware, options)
    document["cost"] = _cost(document, options)
    return document


def _volumes(config: RunConfig, corpus: CorpusFacts, options: Options) -> dict[str, Volume]:
    """What each teacher that has anything to do reads and writes."""
    volumes = {name: one for name, one in teacher_volumes(config, corpus).items() if one.tokens}
    if not volumes:
        raise DataError(
            f"none of {len(corpus.lengths)} sampled rows fits teacher.max_model_len {config.teacher.max_model_len}",
            where=corpus.sources[0],
            fix="raise teacher.max_model_len",
        )
    if options.tokens is not None:
        factor = options.tokens / added(volumes.values()).tokens
        volumes = {name: one.scaled(factor * one.tokens) for name, one in volumes.items()}
    return volumes


def _teacher_sizes(config: RunConfig, first: ModelSize) -> dict[str, ModelSize]:
    """Sizes of the teachers that answer prompts; `first` is that of the section `teacher`."""
    return {
        name: first
        if name == MAIN_TEACHER
        else model_size(teacher_facts(asked.model, f"teachers.{name}")[0].config, f"teachers.{name}.model")
        for name, asked in config.asked_teachers.items()
    }


def _model(name: str, model: ModelSize) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": model.parameters,
        "active_parameters": model.active,
        "vocab_size": model.vocabulary,
    }


def _tokens(corpus: CorpusFacts, volume: Volume) -> dict[str, Any]:
    return {
        "corpus_rows": corpus.rows,
        "corpus_rows_exact": corpus.exact,
        "sampled_rows": corpus.sampled,
        "unusable_sampled_rows": len(corpus.rejected),
        "records": round(volume.records),
        "prompt_tokens": round(volume.prompt_tokens),
        "response_tokens": round(volume.response_tokens),
        "tokens": round(volume.tokens),
        "supervised_rows": round(volume.rows),
    }


def _cache(config: RunConfig, volume: Volume, models: _Models, output: Path) -> dict[str, Any]:
    existing = next(path for path in (output, *output.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    total = cache_size(config, volume, models.tokens, models.teacher.hidden)
    rest = model_files(config, models.student.parameters, models.student.trained)
    rest += rounds_size(config, volume, models.tokens)
    spec = capture_spec(config, models.tokens)
    return {
        "kind": spec.kind,
        "top_k": spec.top_k,
        "vocabulary": spec.vocabulary_size,
        "compression": config.capture.compression,
        "bytes_per_token": total / volume.tokens,
        "bytes_per_row": total / volume.rows,
        "bytes": round(total),
        "full_logits_bytes": round(volume.rows * models.tokens * LOGITS_BYTES),
        "checkpoints_and_models_bytes": round(rest),
        "free_bytes": free,
        "disk": str(existing),
        "fits": total + rest <= free,
    }


def _teacher(
    config: RunConfig, model: ModelSize, volume: Volume, hardware: tuple[Hardware, ...], options: Options
) -> dict[str, Any]:
    sizes = {}
    for size in sorted({*TENSOR_PARALLEL, config.teacher.tensor_parallel}):
        fault = tensor_parallel_fault(model.heads, model.kv_heads, size)
        memory = teacher_memory(config, model, size)
        sizes[str(size)] = {"fault": fault} if fault else _teacher_memory(config, memory)
    return {
        "mode": config.prompts.mode,
        "forward_flops_per_token": model.forward_flops(volume.tokens_per_record / 2),
        "flops": scoring_flops(model, volume.tokens, volume.tokens_per_record),
        "hours": {
            item.name: teacher_seconds(config, model, volume, item, options.utilisation) / 3600 for item in hardware
        },
        "live_epoch_hours": {
            item.name: scoring_flops(model, volume.tokens, volume.tokens_per_record)
            / (item.flops * options.utilisation.scoring)
            / 3600
            for item in hardware
        },
        "memory_by_tensor_parallel": sizes,
    }


def _all_teachers(teachers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """FLOPs and hours of all together, since they work one after the other; of a single one everything."""
    found = list(teachers.values())
    if len(found) == 1:
        return found[0]
    hours = {
        key: {name: sum(one[key][name] for one in found) for name in found[0][key]}
        for key in ("hours", "live_epoch_hours")
    }
    return {"mode": found[0]["mode"], "flops": sum(one["flops"] for one in found), **hours}


def _teacher_memory(config: RunConfig, memory: TeacherMemory) -> dict[str, Any]:
    return {
        **{name: round(value) for name, value in asdict(memory).items()},
        "fits": [item.name for item in ACCELERATORS if memory.fits(item.memory, config.teacher.gpu_memory_utilization)],
    }


def _training(
    config: RunConfig, models: _Models, volume: Volume, hardware: tuple[Hardware, ...], options: Options
) -> dict[str, Any]:
    train, student = config.train, models.student
    flops = training_flops(config, student, volume)
    trainings = 2 if config.evaluate.baseline else 1
    hours = {entry.name: trainings * flops / (entry.flops * options.utilisation.training) / 3600 for entry in hardware}
    named = {entry.name for entry in ACCELERATORS}
    stages = {}
    for stage in STAGES:
        memory = training_memory(config, student, models.student_config, stage)
        stages[str(stage)] = {
            **asdict(memory),
            "total": memory.total,
            "fits": [accelerator.name for accelerator in ACCELERATORS if memory.total <= accelerator.memory],
        }
    return {
        "workers": train.workers,
        "zero_stage": train.zero_stage,
        "epochs": train.epochs,
        "trainings": trainings,
        "flops": flops * trainings,
        "hours": hours,
        "wall_hours": {name: value / (train.workers if name in named else 1) for name, value in hours.items()},
        "memory_by_zero_stage": stages,
    }


def _rounds(
    config: RunConfig,
    rounds: RoundsConfig,
    models: _Models,
    volume: Volume,
    hardware: tuple[Hardware, ...],
    options: Options,
) -> dict[str, Any]:
    """What the student writes and the teacher scores, beside the training itself."""
    written = rounds_volume(rounds, volume)
    writing = config.model_copy(
        update={
            "prompts": config.prompts.model_copy(update={"mode": "generate"}),
            "teacher": config.teacher.model_copy(update={"tensor_parallel": 1}),
        }
    )
    scoring = config.model_copy(update={"prompts": config.prompts.model_copy(update={"mode": "score"})})

    def hours(asked: RunConfig, model: ModelSize) -> dict[str, float]:
        return {
            item.name: teacher_seconds(asked, model, written, item, options.utilisation) / 3600 for item in hardware
        }

    return {
        "count": rounds.count,
        "steps": rounds.total_steps,
        "records": round(written.records),
        "tokens": round(written.tokens),
        "student_hours": hours(writing, models.student),
        "teacher_hours": hours(scoring, models.teacher),
    }


def _cost(document: dict[str, Any], options: Options) -> dict[str, Any]:
    """GPU hours of everything, money, and where a cache pays.

    A live teacher runs forward over every token of every epoch: C_live each. A cache costs the teacher stage once (and
    its storage), of which the responses of `generate` mode must be written either way. With E epochs it is cheaper when
    C_once + storage < C_text + E · C_live, so from E > (C_once + storage - C_text) / C_live on.
    """
    teacher, training, rounds = document["teacher"], document["training"], document.get("rounds")
    storage = document["cache"]["bytes"] / 1e9 * options.storage_price
    found: dict[str, Any] = {"price_per_hour": options.price, "storage_month": storage, "by_hardware": {}}
    for name, once in teacher["hours"].items():
        live = teacher["live_epoch_hours"][name]
        text = once if teacher["mode"] == "generate" else 0.0
        stored = storage / options.price if options.price else 0.0
        hours = once + training["hours"][name]
        if rounds is not None:
            hours += rounds["student_hours"][name] + rounds["teacher_hours"][name]
        found["by_hardware"][name] = {
            "hours": hours,
            "money": None if options.price is None else hours * options.price + storage,
            "cache_pays_after_epochs": (once + stored - text) / live,
        }
    return found


def _assumptions(config: RunConfig, options: Options, hardware: tuple[Hardware, ...]) -> dict[str, Any]:
    generate = config.prompts.mode == "generate"
    return {
        "responses": f"every one of max_new_tokens {config.teacher.sampling.max_new_tokens}"
        if generate
        else "as given",
        "flops_per_token": "2 · parameters in products + 4 · layers · heads · head width · length/2; training 3 times",
        "utilisation": asdict(options.utilisation),
        "largest_batch": config.teacher.requests_per_shard * config.teacher.units_in_flight if generate else None,
        "storage_price_per_gb_month": options.storage_price,
        "zstd": "column by column as measured on SmolLM2-135M-Instruct (cache/size.py)"
        if config.capture.compression == "zstd"
        else None,
        "hardware": {
            item.name: {"flops": item.flops, "bandwidth": item.bandwidth, "memory": item.memory} for item in hardware
        },
    }
