"""Whether the batch sizes make steps, and whether the output folder is this run's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmdistill.config.run import RunConfig
from llmdistill.config.train import FREE_TO_CHANGE
from llmdistill.preflight.facts import Facts
from llmdistill.preflight.findings import Finding, error, ok, warning
from llmdistill.preflight.volume import Volume

_CACHE_KEYS = ("prompts.mode", "teacher.model", "teacher.engine", "teacher.dtype", "capture.")
_SAMPLING = "teacher.sampling."
_FREE = ("teacher.sampling.samples", "teacher.sampling.seed", "capture.compression")
_SHOWN = 3


def check_batch(config: RunConfig, facts: Facts, volume: Volume | None) -> list[Finding]:
    """DeepSpeed's identity, and whether the corpus fills more than a few steps.

    A configuration whose numbers do not divide is refused when it is read, with the four numbers and a fix.
    """
    train = config.train
    what = (
        f"tokens_per_step {train.tokens_per_step:,} = workers {train.workers} × micro_batch_size"
        f" {train.micro_batch_size} × sequence_length {train.sequence_length} × accumulation {train.accumulation_steps}"
    )
    if config.rounds is not None:
        return [ok("batch", f"{what}; {config.rounds.total_steps:,} steps in {config.rounds.count} rounds")]
    if volume is None or not volume.tokens:
        return [ok("batch", what)]
    steps = volume.tokens * (1 - config.prompts.held_out) * train.selected_share * train.epochs / train.tokens_per_step
    if steps < 1:
        return [
            warning(
                "batch",
                f"{what}; the corpus has about {volume.tokens:,.0f} tokens, less than a step",
                f"use a train.tokens_per_step of {train.workers * train.micro_batch_size * train.sequence_length}, or"
                " more prompts",
            )
        ]
    return [ok("batch", f"{what}; up to {min(steps, train.max_steps or steps):,.0f} steps")]


def check_output(config: RunConfig, facts: Facts) -> list[Finding]:
    """Another configuration's run in the output folder, as the run itself would refuse it."""
    output = facts.output
    if output.fault:
        return [error("output", output.fault, "choose another output, or make it writable")]
    if output.config is None:
        return [ok("output", f"{output.path}: nothing there yet" if not output.shards else f"{output.path}: a cache")]
    differing = _differences(output.config, config.model_dump(mode="json"))
    for name, old in output.config.get("teachers", {}).items():
        if name not in config.teachers:
            differing[f"teachers.{name}.model"] = (old["model"], None)
    blocking = {
        key: pair
        for key, pair in differing.items()
        if (output.shards and _of_cache(key, config)) or (output.checkpoints and _of_training(key))
    }
    if blocking:
        return [
            error(
                "output",
                f"{output.path} holds the run of another configuration ({output.shards} shards, {output.checkpoints}"
                f" checkpoints): {_listed(blocking)}",
                "choose another output, or go back to these settings",
            )
        ]
    if differing:
        return [
            warning(
                "output",
                f"{output.path} holds a run with other settings, which can be continued: {_listed(differing)}",
                "nothing, or choose another output to keep both",
            )
        ]
    return [ok("output", f"{output.path}: this run, {output.shards} shards, {output.checkpoints} checkpoints")]


def _of_cache(key: str, config: RunConfig) -> bool:
    key = re.sub(r"^teachers\.[^.]+\.", "teacher.", key)
    if key in _FREE:
        return False
    return key.startswith(_CACHE_KEYS) or (config.prompts.mode == "generate" and key.startswith(_SAMPLING))


def _of_training(key: str) -> bool:
    section, _, setting = key.partition(".")
    return section in ("objectives", "student", "rounds") or (
        section == "train" and setting.split(".")[0] not in FREE_TO_CHANGE
    )


def _listed(differing: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in list(differing.items())[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else "")


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves that differ, by dotted key; keys that an older version did not know are no difference."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in new:
            if key in old:
                found |= _differences(old[key], new[key], f"{prefix}{key}.")
        return found
    return {} if old == new else {prefix.rstrip("."): (old, new)}
