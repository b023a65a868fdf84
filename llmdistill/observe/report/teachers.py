"""Who taught: the teachers of a run, from its configuration, its index and its metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmdistill.config.prompts import MAIN_TEACHER


def asked_sections(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → section of each teacher that answered prompts, of a configuration as plain data."""
    asked = {name for source in config["prompts"]["sources"] for name in source.get("teachers") or (MAIN_TEACHER,)}
    sections = {MAIN_TEACHER: config["teacher"], **config.get("teachers", {})}
    return {name: section for name, section in sections.items() if name in asked}


def teacher_rows(config: dict[str, Any], index: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each teacher: name, model, engine, precision, fingerprint, and what the cache has of it."""
    sections = asked_sections(config)
    captures = {capture["name"]: capture for capture in index.get("captures", ())}
    if len(sections) == 1:
        whole = {"spec": index["spec"], "records": index["records"], "tokens": index["tokens"]}
        captures = dict.fromkeys(sections, whole)
    return [
        {
            "name": name,
            **{key: section[key] for key in ("model", "engine", "dtype")},
            "fingerprint": captures[name]["spec"]["teacher"] if name in captures else None,
            "sampling": captures[name]["spec"]["sampling"] if name in captures else {},
            "records": captures[name]["records"] if name in captures else 0,
            "tokens": captures[name]["tokens"] if name in captures else 0,
        }
        for name, section in sections.items()
    ]


def fleet_seconds(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds that each teacher's fleets worked, from the `generate` lines of metrics.jsonl.

    The seconds of a line count from the start of its fleet, so that a smaller number begins another one.
    """
    total: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in lines:
        name, seconds = line.get("teacher", MAIN_TEACHER), line["seconds"]
        before = last.get(name, 0.0)
        total[name] = total.get(name, 0.0) + (seconds - before if seconds >= before else seconds)
        last[name] = seconds
    return total
