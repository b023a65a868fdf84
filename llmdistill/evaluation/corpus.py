"""What the prompt files know of the cache's records beyond the records themselves."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from llmdistill.cache.index import Capture
from llmdistill.cache.reader import CacheReader
from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import DataError
from llmdistill.evaluation.teacher_side import chunks_by_row
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.keys import derived_key, spec_fingerprint
from llmdistill.prompts.render import load_tokenizer
from llmdistill.prompts.requests import Corpus as Made
from llmdistill.prompts.requests import make_requests
from llmdistill.types import CaptureSpec


class Corpus:
    """What the prompt files add to the cache's records: names of sources and references, by record key.

    The files may be gone by now; then both are unknown, which the result says.

    Args:
        config: the run.
        tokenizer_folder: of the tokenizer of the records.
        reader: the records.
        captures: what the index of the teachers' cache says of them.
        source: where the records are a teacher's text in the student's own tokens: folder of the teacher's tokenizer,
            and the capture spec of its cache.

    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer_folder: Path,
        reader: CacheReader,
        captures: list[Capture],
        source: tuple[Path, CaptureSpec] | None = None,
    ) -> None:
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self._config = config
        self._reader = reader
        self._captures = captures
        self._source = source

    @functools.cached_property
    def _made(self) -> Made:
        """The requests that the prompt files make, again."""
        config, generation = self._config, self._config.evaluate.generation
        teachers = self._teachers()
        if teachers is None:
            return Made([], [])
        column = None if generation is None else generation.reference
        # In score mode a conversation's end is in the cache; where all turns are supervised it answers a later prompt.
        references = generation is not None and (column is not None or config.prompts.mode == "generate")
        try:
            rows = read_prompts(config.prompts, column)
            if self._source is None:
                return make_requests(rows, self.tokenizer, config.prompts, teachers, references)
            made = make_requests(rows, load_tokenizer(self._source[0]), config.prompts, teachers, references)
        except DataError:
            return Made([], [])
        common = spec_fingerprint(self._reader.spec)
        return Made(
            [dataclasses.replace(request, key=derived_key(common, request.key)) for request in made.requests],
            made.rejected,
            references={derived_key(common, key): text for key, text in made.references.items()},
        )

    def _teachers(self) -> dict[str, tuple[TeacherConfig, CaptureSpec]] | None:
        """Settings and capture of each teacher; None where the cache does not say which one made what."""
        asked = self._config.asked_teachers
        specs = self._reader.specs if self._source is None else [self._source[1]]
        if len(asked) == len(specs) == 1:
            return {name: (teacher, specs[0]) for name, teacher in asked.items()}
        named = {capture.name: capture.spec for capture in self._captures}
        return {name: (one, named[name]) for name, one in asked.items()} if asked.keys() <= named.keys() else None

    @functools.cached_property
    def _source_names(self) -> dict[bytes, str]:
        """Record key → name of its source."""
        return {request.key: request.source_name for request in self._made.requests}

    def byte_counts(self, records: np.ndarray, of_teacher: bool = False) -> np.ndarray:
        """Bytes of the text of each record's supervised tokens, float64 [S].

        Args:
            records: their numbers.
            of_teacher: only text of which the cache knows the teacher's probability.

        """
        counts = []
        for number in records.tolist():
            record = self._reader.read(number)
            ids_R = record.token_ids_N[record.supervised_N]
            if of_teacher:
                ids_R = ids_R[chunks_by_row(record)[1]]
            text = self.tokenizer.decode(ids_R.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            counts.append(len(str(text).encode()))
        return np.array(counts, np.float64)

    def text(self, token_ids: list[int]) -> str:
        """What a person reads: special tokens and outer white space left out."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    def sources(self, records: np.ndarray) -> list[str] | None:
        """Name of each record's source: what the cache says, else its prompt file; None where one is unknown."""
        names = [self._reader.sources[number] for number in self._reader.source_numbers[records].tolist()]
        if not all(names):
            keys = [self._reader.keys[number] for number in records.tolist()]
            names = [name or self._source_names.get(key, "") for name, key in zip(names, keys, strict=True)]
        return names if all(names) else None

    def reference(self, key: bytes) -> str | None:
        """The wanted answer to a record's prompt; None where its row has none."""
        return self._made.references.get(key)
