"""Whether the corpus and the machine have what `rounds` asks for."""

from __future__ import annotations

from llmdistill.config.run import RunConfig
from llmdistill.preflight.facts import Facts
from llmdistill.preflight.findings import Finding, cannot, error, ok


def check_rounds(config: RunConfig, facts: Facts) -> list[Finding]:
    """Prompts of a round, the length of what the student writes, and the devices that are held at once."""
    return [] if config.rounds is None else [*_prompts(config, facts), *_devices(config, facts)]


def _prompts(config: RunConfig, facts: Facts) -> list[Finding]:
    rounds, corpus = config.rounds, facts.corpus
    assert rounds is not None
    if corpus is None or not corpus.lengths:
        return []
    held = int(corpus.usable_rows * (1 - config.prompts.held_out))
    if held < rounds.prompts:
        return [
            error(
                "rounds",
                f"a round wants {rounds.prompts:,} prompts, the corpus has about {held:,} for training",
                f"use rounds.prompts={held} or less, or add prompts",
            )
        ]
    new, slots = rounds.sampling.max_new_tokens, config.train.sequence_length
    limit = config.teacher.max_model_len - new
    longest = max((length for length in corpus.lengths if length <= limit), default=0)
    if longest + new > slots:
        return [
            error(
                "rounds",
                f"the student may write records of up to {longest + new} tokens, more than train.sequence_length"
                f" {slots}, and training would stop",
                f"use train.sequence_length={longest + new}, or a rounds.sampling.max_new_tokens of"
                f" {max(slots - longest, 1)}",
            )
        ]
    return [ok("rounds", f"{rounds.count} rounds of {rounds.prompts:,} of {held:,} prompts and {rounds.steps} steps")]


def _devices(config: RunConfig, facts: Facts) -> list[Finding]:
    rounds, machine, teacher = config.rounds, facts.machine, config.teacher
    assert rounds is not None
    if machine is None:
        return []
    held = machine.has(machine.resource)
    width = 0 if teacher.server else teacher.tensor_parallel * teacher.pipeline_parallel
    count = 1 if teacher.replicas == "auto" else teacher.replicas
    needed = rounds.replicas + (width * count + config.train.workers if rounds.ahead else 0)
    if needed > held:
        who = "student, teacher and trainers at once (rounds.ahead)" if rounds.ahead else "the student's replicas"
        return [
            cannot(
                "rounds",
                f"{who} need {needed} of {machine.resource}, {machine.where} has {held}",
                "set rounds.ahead to false, or use a larger cluster" if rounds.ahead else "lower rounds.replicas",
            )
        ]
    return []
