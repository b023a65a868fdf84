"""From rows to what a teacher is asked: rendered, cut to length, each once, decontaminated, with keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmdistill.config.prompts import MAIN_TEACHER, PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.decontamination import EvaluationData
from llmdistill.prompts.duplicates import NearDuplicates
from llmdistill.prompts.keys import record_key, sampling_seed, spec_fingerprint, split_hash
from llmdistill.prompts.length import fitting
from llmdistill.prompts.rejects import BadRowError, DroppedRowError, RejectedRow
from llmdistill.prompts.render import Rendered, Renderer
from llmdistill.prompts.routing import choose_teacher
from llmdistill.prompts.shapes import PromptRow
from llmdistill.types import CaptureSpec, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARED_TURNS = "first turns equal to an earlier row's"


@dataclass(frozen=True)
class Origin:
    """What a request was rendered from."""

    row: PromptRow
    """As it was rendered: up to what is asked, and cut where it was too long."""
    place: int
    """Which of the row's records it is."""
    records: int
    """How many the row makes: one, but where a chat template changes earlier turns."""


@dataclass
class Corpus:
    """What became of the rows."""

    requests: list[Request]
    """In the order of the rows."""
    rejected: list[RejectedRow]
    """Rows that make no request: bad, too long, equal to an earlier one, contaminated."""
    changes: Counter[str] = field(default_factory=Counter)
    """Kind of change → rows that are used, but not as they stand: truncated, with control tokens escaped, …"""
    references: dict[bytes, str] = field(default_factory=dict)
    """Key of a request → the wanted answer, where the row has one and they were asked for."""
    origins: dict[bytes, Origin] = field(default_factory=dict)
    """Key of a request → what it was rendered from, where that was asked for."""


def make_requests(
    rows: Iterable[PromptRow | RejectedRow],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptsConfig,
    teachers: Mapping[str, tuple[TeacherConfig, CaptureSpec]],
    with_references: bool = False,
    with_origins: bool = False,
) -> Corpus:
    """Token ids and keys of all rows, in order.

    Args:
        rows: of `read_prompts`.
        tokenizer: of all teachers.
        prompts: the configuration.
        teachers: name → how it samples and its longest sequence, and what is captured of it; all that rows name.
        with_references: keep the wanted answers, which no teacher sees.
        with_origins: keep the rows.

    Raises:
        DataError: no row makes a request; a row is bad and `on_bad_row` is `error`; there is no chat template.
        ConfigError: the chat template does not take the arguments given, or needs a date.

    """
    maker = _Maker(tokenizer, prompts, teachers)
    requests: dict[bytes, Request] = {}
    corpus = Corpus([], [])
    for row in rows:
        if isinstance(row, RejectedRow):
            corpus.rejected.append(row)
            continue
        try:
            fresh, changes, origins = maker.add(row, requests)
        except (BadRowError, DroppedRowError) as error:
            if isinstance(error, BadRowError) and prompts.on_bad_row == "error":
                raise DataError(str(error), where=row.source) from None
            corpus.rejected.append(RejectedRow(row.source, str(error)))
        else:
            corpus.changes.update(changes)
            if with_origins:
                corpus.origins.update((request.key, origins[request.key]) for request in fresh)
            if with_references and row.reference is not None:
                corpus.references.update((request.key, row.reference) for request in fresh)
    if not requests:
        rejected = corpus.rejected
        example = f"; the first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
        raise DataError(f"none of the {len(rejected)} rows of the prompt files can be used{example}")
    corpus.requests = list(requests.values())
    return corpus


class _Asked:
    """What decides the requests of one teacher."""

    def __init__(self, name: str, teacher: TeacherConfig, spec: CaptureSpec, generate: bool) -> None:
        self.name, self.sampling = name, teacher.sampling
        self.common = spec_fingerprint(spec)
        new = teacher.sampling.max_new_tokens if generate else 1
        self.limit = teacher.max_model_len - new
        key = name if name == MAIN_TEACHER else f"teachers.{name}"
        if self.limit < 1:
            raise ConfigError(
                f"{teacher.max_model_len} leaves no token for prompts beside {new} new ones",
                where=f"{key}.max_model_len",
            )
        self.limit_is = f"{key}.max_model_len {teacher.max_model_len} less {new} new leaves {self.limit}"


class _Maker:
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptsConfig,
        teachers: Mapping[str, tuple[TeacherConfig, CaptureSpec]],
    ) -> None:
        self._renderer = Renderer(tokenizer, prompts)
        self._prompts = prompts
        self._teachers = {name: _Asked(name, *one, prompts.mode == "generate") for name, one in teachers.items()}
        self._evaluation = EvaluationData(prompts.decontamination) if prompts.decontamination else None
        self._near = NearDuplicates(prompts.near_duplicates) if prompts.near_duplicates else None

    def add(
        self, row: PromptRow, requests: dict[bytes, Request]
    ) -> tuple[list[Request], tuple[str, ...], dict[bytes, Origin]]:
        """Add the requests of a row; returns them, what was changed to make them, and their origins."""
        row = self._renderer.asked(row)
        teacher = self._teachers[choose_teacher(row, row.answered_by)]
        found = fitting(row, self._renderer, teacher.limit, self._prompts.length, teacher.limit_is)
        origins: dict[bytes, Origin] = {}
        made: list[Request] = []
        for place, record in enumerate(found.records):
            of_record = list(_requests_of(record, row, teacher))
            origins.update((request.key, Origin(found.row, place, len(found.records))) for request in of_record)
            made += of_record
        fresh = [request for request in made if request.key not in requests]
        if not fresh:
            raise DroppedRowError(f"duplicate: the same prompt as {requests[made[0].key].source}")
        if self._evaluation is not None:
            self._evaluation.check(row)
        if self._near is not None:
            self._near.check(row)
        requests.update((request.key, request) for request in fresh)
        shared = (SHARED_TURNS,) if len(fresh) < len(made) else ()
        return fresh, (*row.changes, *found.changes, *shared), origins


def _requests_of(record: Rendered, row: PromptRow, teacher: _Asked) -> Iterator[Request]:
    token_ids, prompt_length = record.token_ids, record.prompt_length
    split = split_hash(token_ids[:prompt_length] if prompt_length > 1 else token_ids)
    if record.supervised is not None:
        key = record_key(teacher.common, token_ids, supervised=record.supervised)
        yield Request(key, token_ids, row.source, None, record.supervised, split, row.source_name, teacher.name)
        return
    for sample in range(teacher.sampling.samples):
        seed = sampling_seed(teacher.sampling.seed, token_ids, sample)
        key = record_key(teacher.common, token_ids, seed)
        yield Request(key, token_ids, row.source, seed, None, split, row.source_name, teacher.name)
