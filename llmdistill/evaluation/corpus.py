"""What the prompt files know of the cache's records beyond the records themselves."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.reader import CacheReader
from llmdistill.config.run import RunConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.render import load_tokenizer
from llmdistill.prompts.requests import make_requests


class Corpus:
    """What the prompt files add to the cache's records: names of sources and references, by record key.

    The files may be gone by now; then both are unknown, which the result says.
    """

    def __init__(self, config: RunConfig, tokenizer_folder: Path, reader: CacheReader) -> None:
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self._config = config
        self._reader = reader

    @functools.cached_property
    def _places(self) -> dict[bytes, str]:
        """Record key → `file:line`."""
        config = self._config
        try:
            rows = read_prompts(config.prompts)
            spec = self._reader.spec
            requests = make_requests(rows, self.tokenizer, config.prompts, config.teacher, spec).requests
        except DataError:
            return {}
        return {request.key: request.source for request in requests}

    def text(self, token_ids: list[int]) -> str:
        """What a person reads: special tokens and outer white space left out."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    def sources(self, records: np.ndarray) -> list[str] | None:
        """Name of each record's source: what the cache says, else its prompt file; None where one is unknown."""
        names = [self._reader.sources[number] for number in self._reader.source_numbers[records].tolist()]
        if not all(names):
            keys = [self._reader.keys[number] for number in records.tolist()]
            places = [self._places.get(key, "") for key in keys]
            names = [name or place.rpartition(":")[0] for name, place in zip(names, places, strict=True)]
        return names if all(names) else None

    def reference(self, key: bytes, column: str) -> str | None:
        """The text in a column of the record's prompt row; None where there is none."""
        path, _, line = self._places.get(key, "").rpartition(":")
        if not line.isdigit() or not path.endswith((".jsonl", ".json")):
            return None
        value = _rows_of(path)[int(line) - 1].get(column)
        return value if isinstance(value, str) and value.strip() else None


@functools.cache
def _rows_of(path: str) -> list[dict[str, Any]]:
    """The JSON objects of a prompt file, one for each line; {} for lines that hold none."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8-sig").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        rows.append(row if isinstance(row, dict) else {})
    return rows
