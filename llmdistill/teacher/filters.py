"""Which of the teacher's responses are kept. What is dropped is named with its reason in `rejected.jsonl`.

Filters run where the response was written, on whole work units, which hold all samples of a prompt.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.config.filters import FiltersConfig
from llmdistill.errors import ConfigError
from llmdistill.types import Record

_WORDS = 4
"""Tokens of the runs whose repetition is counted."""


@dataclass(frozen=True)
class Response:
    """What a user's function is told of a response."""

    prompt: str
    """Text of the prompt as the teacher saw it, template included."""
    response: str
    """Text of the response without special tokens."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finish_reason: str
    """`stop` or `length`."""


def fingerprint(config: FiltersConfig) -> str:
    """Of the settings: what other settings have dropped is asked again."""
    return hashlib.blake2b(config.model_dump_json().encode(), digest_size=8).hexdigest()


class ResponseFilter:
    """Drops responses.

    Args:
        config: what is dropped.
        folder: the teacher's model folder, for the text that a user's function sees.

    Raises:
        ConfigError: there is no such function.

    """

    def __init__(self, config: FiltersConfig, folder: Path) -> None:
        self._config = config
        self._tokenizer: Any = None
        self._function: Callable[[Response], float] | None = None
        if config.function is not None:
            from llmdistill.prompts.render import load_tokenizer

            self._function = _import(config.function)
            self._tokenizer = load_tokenizer(folder)

    def apply(self, records: Sequence[Record]) -> tuple[list[Record], list[tuple[Record, str]]]:
        """The records that are kept, and the others with their reasons. Scored texts are all kept."""
        kept, dropped = [], []
        values: dict[bytes, float] = {}
        seen: set[tuple[bytes, bytes]] = set()
        for record in records:
            reason = "" if record.finish_reason == "scored" else self._fault(record, seen, values)
            if reason:
                dropped.append((record, reason))
            else:
                kept.append(record)
        return self._best(kept, dropped, values) if self._config.best_of_n else (kept, dropped)

    def _fault(self, record: Record, seen: set[tuple[bytes, bytes]], values: dict[bytes, float]) -> str:
        config = self._config
        response = record.token_ids_N[record.supervised_N]
        if config.unfinished == "drop" and record.finish_reason == "length":
            return f"unfinished after {len(response)} tokens"
        if (repeated := repetition(response.tolist())) > config.max_repetition:
            return f"{repeated:.2f} of it is repetition"
        text = (_prompt(record), response.tobytes())
        if config.duplicates == "drop" and text in seen:
            return "the same response as another sample of its prompt"
        seen.add(text)
        if self._function is not None:
            value = values[record.key] = float(self._function(self._response(record)))
            if not value >= config.minimum:
                return f"{config.function} gives it {value:g}, below {config.minimum:g}"
        return ""

    def _best(
        self, kept: list[Record], dropped: list[tuple[Record, str]], values: dict[bytes, float]
    ) -> tuple[list[Record], list[tuple[Record, str]]]:
        samples: defaultdict[bytes, list[Record]] = defaultdict(list)
        for record in kept:
            samples[_prompt(record)].append(record)
        best = [max(records, key=lambda record: values.get(record.key, 0.0)) for records in samples.values()]
        chosen = {record.key for record in best}
        others = [(r, f"another sample has a value above {values[r.key]:g}") for r in kept if r.key not in chosen]
        return best, dropped + others

    def _response(self, record: Record) -> Response:
        prompt = record.token_ids_N[~record.supervised_N].tolist()
        response = record.token_ids_N[record.supervised_N].tolist()
        return Response(
            self._tokenizer.decode(prompt),
            self._tokenizer.decode(response, skip_special_tokens=True),
            tuple(prompt),
            tuple(response),
            record.finish_reason,
        )


def repetition(token_ids: Sequence[int]) -> float:
    """Share of the runs of four tokens that came before in the same text; 0 for texts of fewer tokens."""
    runs = [tuple(token_ids[start : start + _WORDS]) for start in range(len(token_ids) - _WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _prompt(record: Record) -> bytes:
    prompt: bytes = record.token_ids_N[~record.supervised_N].tobytes()
    return prompt


def _import(name: str) -> Callable[[Response], float]:
    module, _, attribute = name.partition(":")
    try:
        function: Callable[[Response], float] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no function '{name}': {error}", where="teacher.filters.function") from None
    return function
