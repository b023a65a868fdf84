"""The evaluate stage: what each part of evaluation.json is made from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.index import read_captures
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.storage import commit_bytes
from llmdistill.config.evaluate import GenerationConfig, SpeedConfig
from llmdistill.config.run import RunConfig
from llmdistill.errors import DataError, LLMDistillError
from llmdistill.evaluation.corpus import Corpus
from llmdistill.evaluation.heldout import RowTable, measure_model, measure_teacher
from llmdistill.evaluation.intervals import Bootstrap
from llmdistill.observe.progress import Progress
from llmdistill.observe.run_folder import RunFolder

Say = Callable[[str], None]


def evaluate_run(
    config: RunConfig,
    folder: RunFolder,
    models: dict[str, Path],
    teacher: Callable[[], Path],
    say: Say,
    teacher_tokenizer: Path | None = None,
) -> None:
    """Measure all models and write evaluation.json.

    Args:
        config: the run.
        folder: of the run.
        models: name → model folder; `student` is the last, and `sft` or `untrained` what it is compared with.
        teacher: finds the teacher's folder; asked only for what needs the teacher's weights.
        say: a line for the person at the terminal.
        teacher_tokenizer: folder of the teacher's tokenizer, where the student has one of its own.

    Raises:
        DataError: no held-out record has supervised tokens.
        ConfigError: lm-eval is asked for and missing, or does not know a task.

    """
    settings = config.evaluate
    if settings.lm_eval:
        from llmdistill.evaluation.harness import require_harness

        require_harness()
    reader = CacheReader(folder.cache if teacher_tokenizer is None else folder.student_cache)
    _, records = reader.split(config.prompts.held_out)
    rows = int(reader.row_counts[records].sum())
    if not rows:
        raise DataError(
            f"no held-out record with supervised tokens among {len(reader)}",
            where=str(folder.cache),
            fix="raise prompts.held_out or add prompts",
        )
    document: dict[str, Any] = {
        "held_out_records": len(records),
        "held_out_rows": rows,
        "held_out_fingerprint": hashlib.blake2b(reader.keys.array[records].tobytes(), digest_size=16).hexdigest(),
        "shape": _shape(models, teacher),
    }
    source = None if teacher_tokenizer is None else (teacher_tokenizer, CacheReader(folder.cache).spec)
    corpus = Corpus(config, models["untrained"], reader, read_captures(folder.cache), source)
    document |= _held_out(config, reader, records, models, corpus)
    if settings.generation is not None:
        document["generation"] = _generation(config, settings.generation, reader, records, models, corpus)
    if settings.speed is not None:
        document["speed"] = _speed(settings.speed, models["student"], teacher)
    if settings.lm_eval:
        document["lm_eval"] = _lm_eval(config, models)
    commit_bytes(folder.evaluation, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    _say_figures(document["models"], say)


def _say_figures(models: dict[str, Any], say: Say) -> None:
    for name, result in models.items():
        figures = [
            ("KL", "kl", ".4f"),
            ("top-1 agreement", "top1_agreement", ".3f"),
            ("perplexity", "perplexity", ".3f"),
            ("bits a byte", "bits_per_byte", ".4f"),
        ]
        known = [f"{label} {result[key]:{form}}" for label, key, form in figures if result[key] is not None]
        say(f"evaluate: {name:<10} " + "  ".join(known))


def _held_out(
    config: RunConfig, reader: CacheReader, records: np.ndarray, models: dict[str, Path], corpus: Corpus
) -> dict[str, Any]:
    import torch

    from llmdistill.evaluation.samples import show_records
    from llmdistill.evaluation.summary import summarise
    from llmdistill.evaluation.teacher_side import on_policy
    from llmdistill.student.creation import load_student

    tables: dict[str, RowTable] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Progress("evaluate", len(models) * len(records), "records") as progress:
        for number, (name, folder) in enumerate(models.items()):
            model: Any = load_student(folder, torch.float32)
            model.to(device).eval()
            show = functools.partial(_show_records, progress, number * len(records), name)
            tables[name] = measure_model(model, reader, records, show)
            del model
    teacher, bytes_S = measure_teacher(reader, records), corpus.byte_counts(records)
    result = summarise(
        tables,
        teacher,
        corpus.sources(records),
        reader.spec,
        on_policy(reader.spec),
        Bootstrap(len(records), config.evaluate.bootstrap),
        (bytes_S, corpus.byte_counts(records, of_teacher=True) if reader.spec.kind == "chunks" else bytes_S),
        baseline=next(iter(reversed([name for name in models if name != "student"]))),
    )
    result["samples"] = show_records(reader, records, tables, corpus.tokenizer, config.evaluate.samples)
    return result


def _show_records(progress: Progress, before: int, name: str, done: int) -> None:
    progress.update(before + done, name)


def _generation(
    config: RunConfig,
    settings: GenerationConfig,
    reader: CacheReader,
    records: np.ndarray,
    models: dict[str, Path],
    corpus: Corpus,
) -> dict[str, Any]:
    from llmdistill.config.teacher import SamplingConfig
    from llmdistill.evaluation.text_metrics import Answer, score
    from llmdistill.prompts.keys import sampling_seed
    from llmdistill.teacher.respond import respond

    prompts, references, stored = _prompts(reader, records, settings.prompts, corpus)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    sampled = SamplingConfig(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
    requests = [(prompt, greedy, 0) for prompt in prompts] + [
        (prompt, sampled, sampling_seed(settings.seed, prompt, sample))
        for sample in range(settings.samples)
        for prompt in prompts
    ]
    bootstrap = Bootstrap(len(prompts), config.evaluate.bootstrap)
    results: dict[str, Any] = {}
    with Progress("evaluate", len(models), "models answering") as progress:
        for done, (name, folder) in enumerate(models.items(), start=1):
            texts = [corpus.text(response) for response in respond(folder, config.teacher, requests)]
            answers = [
                Answer(number % len(prompts), text, references[number % len(prompts)])
                for number, text in enumerate(texts)
            ]
            results[name] = {
                "greedy": score(answers[: len(prompts)], len(prompts), bootstrap),
                "sampled": score(answers[len(prompts) :], len(prompts), bootstrap),
            }
            progress.update(done, name)
    return {
        "prompts": len(prompts),
        "references_from_corpus": len(prompts) - stored,
        "references_from_cache": stored,
        "settings": settings.model_dump(),
        "models": results,
    }


def _prompts(
    reader: CacheReader, records: np.ndarray, count: int, corpus: Corpus
) -> tuple[list[list[int]], list[str], int]:
    """Distinct held-out prompts, their references, and how many of those are responses in the cache."""
    found: dict[tuple[int, ...], str] = {}
    stored = 0
    for number in records.tolist():
        record = reader.read(number)
        supervised = record.supervised_N.nonzero()[:, 0]
        if not len(supervised) or len(found) == count:
            continue
        prompt = tuple(record.token_ids_N[: int(supervised[0])].tolist())
        if prompt in found:
            continue
        reference = corpus.reference(record.key)
        if reference is None:
            stored += 1
            reference = corpus.text(record.token_ids_N[supervised].tolist())
        found[prompt] = reference
    return [list(prompt) for prompt in found], list(found.values()), stored


def _shape(models: dict[str, Path], teacher: Callable[[], Path]) -> dict[str, Any]:
    """Sizes of student and teacher; of the teacher None where its folder is not here."""
    from llmdistill.evaluation.shape import layers_from, model_shape

    result: dict[str, Any] = {"student": model_shape(models["student"]), "teacher": None, "layers_from": None}
    with contextlib.suppress(LLMDistillError):
        folder = teacher()
        result |= {"teacher": model_shape(folder), "layers_from": layers_from(models["untrained"], folder)}
    return result


def _speed(settings: SpeedConfig, student: Path, teacher: Callable[[], Path]) -> dict[str, Any]:
    """Figures of the student, and of the teacher where its weights are here and fit; else the reason."""
    from llmdistill.evaluation.speed import available_bytes, measure_speed, weight_bytes

    result: dict[str, Any] = {**settings.model_dump(), "teacher": None}
    with Progress("evaluate", 2, "models timed") as progress:
        result["student"] = measure_speed(student, settings.prompt_tokens, settings.new_tokens)
        progress.update(1, "student")
        try:
            folder = teacher()
            if weight_bytes(folder) > available_bytes() / 2:
                raise LLMDistillError(
                    f"its {weight_bytes(folder) / 1e9:.0f} GB do not fit into half of the free memory"
                )
            result["teacher"] = measure_speed(folder, settings.prompt_tokens, settings.new_tokens)
        except LLMDistillError as error:
            result["teacher_reason"] = error.what
        progress.update(2, "teacher")
    return result


def _lm_eval(config: RunConfig, models: dict[str, Path]) -> dict[str, Any]:
    from llmdistill.evaluation.harness import run_tasks

    tasks, limit = config.evaluate.lm_eval, config.evaluate.lm_eval_limit
    results = {}
    with Progress("evaluate", len(models), "models in lm-eval") as progress:
        for done, (name, folder) in enumerate(models.items(), start=1):
            results[name] = run_tasks(folder, tasks, limit)
            progress.update(done, name)
    return {"tasks": list(tasks), "limit": limit, "models": results}
