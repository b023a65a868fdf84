"""The preflight: gather the facts, let every check judge them, in seconds and without the teacher's weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmdistill.config.run import RunConfig
from llmdistill.errors import ClusterError, ConfigError, DataError, LLMDistillError
from llmdistill.preflight.check_corpus import check_rows
from llmdistill.preflight.check_machine import (
    check_compiler,
    check_disk,
    check_memory,
    check_processors,
    check_shared_memory,
    check_vllm,
)
from llmdistill.preflight.check_models import (
    check_context,
    check_student,
    check_tensor_parallel,
    check_weights,
)
from llmdistill.preflight.check_rounds import check_rounds
from llmdistill.preflight.check_run import check_batch, check_output
from llmdistill.preflight.check_teachers import check_teachers, teacher_views
from llmdistill.preflight.check_tokenizers import check_ends, check_template, check_tokenizers, check_vocabulary
from llmdistill.preflight.corpus import sample_corpus
from llmdistill.preflight.facts import Facts
from llmdistill.preflight.findings import Finding, exit_status
from llmdistill.preflight.machine import machine_facts, output_facts
from llmdistill.preflight.models import student_facts, teacher_facts
from llmdistill.preflight.parameters import model_size
from llmdistill.preflight.selftest import self_test
from llmdistill.preflight.volume import Volume, cache_size, corpus_volume, model_files, rounds_size

Check = Callable[[RunConfig, Facts], list[Finding]]
_Gathered = TypeVar("_Gathered")

CHECKS: tuple[Check, ...] = (
    check_tokenizers,
    check_vocabulary,
    check_ends,
    check_template,
    check_tensor_parallel,
    check_context,
    check_student,
    check_weights,
    check_rows,
    check_rounds,
    check_processors,
    check_vllm,
    check_shared_memory,
    check_compiler,
    check_output,
)


@dataclass(frozen=True)
class Paths:
    """Names of what lies in a run's folder, absolute."""

    output: Path
    resolved_config: Path
    shards: Path
    checkpoints: Path


@dataclass(frozen=True)
class Report:
    """All findings and how long they took."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def exit_status(self) -> int:
        """See `findings.exit_status`."""
        return exit_status(self.findings)


def refused(fault: LLMDistillError) -> Report:
    """The report where the configuration itself cannot be read."""
    return Report((_finding("configuration", fault),), 0.0)


def examine(config: RunConfig, paths: Paths) -> Report:
    """Everything there is to know before a run starts."""
    started = time.monotonic()
    gathered, facts = gather(config, paths)
    findings = [*gathered, *(finding for check in CHECKS for finding in check(config, facts))]
    findings += check_teachers(config, facts)
    findings += _with_volume(config, facts)
    findings += self_test(config)
    return Report(tuple(findings), time.monotonic() - started)


def gather(config: RunConfig, paths: Paths) -> tuple[list[Finding], Facts]:
    """The facts, and a finding for each that cannot be found out."""
    findings: list[Finding] = []
    teacher = tokenizer = student = corpus = machine = None
    with _into(findings, "teacher"):
        teacher, tokenizer = teacher_facts(config.teacher.model)
    further = {}
    for name, asked in config.teachers.items():
        with _into(findings, f"teacher {name}"):
            further[name] = teacher_facts(asked.model, f"teachers.{name}")[0]
    if teacher is not None:
        with _into(findings, "student"):
            student = student_facts(config.student, teacher)
    if tokenizer is not None:
        with _into(findings, "prompts"):
            corpus = sample_corpus(config, tokenizer)
    with _into(findings, "cluster"):
        machine = machine_facts(config.cluster, paths.output)
    output = output_facts(paths.output, paths.resolved_config, paths.shards, paths.checkpoints)
    from llmdistill.trainer.engine import deepspeed_config

    return findings, Facts(teacher, student, corpus, machine, output, deepspeed_config(config.train), further)


def _with_volume(config: RunConfig, facts: Facts) -> list[Finding]:
    """Checks that need the size of the run: batch and disk."""
    findings: list[Finding] = []
    volume: Volume | None = None
    if facts.corpus is not None and facts.corpus.lengths:
        volume = corpus_volume(config, facts.corpus)
    findings += check_batch(config, facts, volume)
    teacher, student = facts.teacher, facts.student
    if volume is None or student is None or teacher is None or teacher.tokenizer is None:
        return findings
    cache = cache_size(config, volume, teacher.tokenizer.size, teacher.config["hidden_size"])
    cache += rounds_size(config, volume, teacher.tokenizer.size)
    with _into(findings, "models"):
        counted = model_size(student.config, "student", config.student.lora)
        findings += check_disk(config, facts, cache, model_files(config, counted.parameters, counted.trained))
        for number, view in enumerate(teacher_views(config, facts)):
            if view.facts.teacher is not None:
                large = model_size(view.facts.teacher.config, f"{view.key}.model")
                found = check_memory(view.config, facts, large, counted, student.config)
                # The training is the same beside every one of them.
                findings += view.named(found if number == 0 else found[:1])
    return findings


@contextmanager
def _into(findings: list[Finding], check: str) -> Iterator[None]:
    """An intended error becomes a finding, and the other checks go on."""
    try:
        yield
    except (ConfigError, DataError, ClusterError) as fault:
        findings.append(_finding(check, fault))


def _finding(check: str, fault: LLMDistillError) -> Finding:
    what = f"{fault.where}: {fault.what}" if fault.where else fault.what
    status = ClusterError.exit_status if isinstance(fault, ClusterError) else ConfigError.exit_status
    return Finding(check, "error", what, fault.fix or "correct what is named here", status)
