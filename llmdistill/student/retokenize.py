"""The records of a teacher's cache in the tokens of a student with another tokenizer: a second cache, written once.

    record of the teacher → text of its response → student's tokens, with the teacher's probability of each chunk
    row of the corpus     → prompt, through the student's own chat template

The teacher's prompt is never decoded, since that would put the teacher's template into the student's text, and neither
are its special tokens: where its response ends with one, the student's ends with its own end token. Scored records have
their text in the corpus; only text that was cut is taken from the teacher's record.

A record's key follows from the key of the record that it is made of, so what is committed is never made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.cache.index import committed_keys, shard_folder, write_index
from llmdistill.cache.reader import CacheReader, StoredRecord
from llmdistill.cache.shard import Compression, write_shard
from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.chunks import Side, chunk_rows, special_ids, spelling
from llmdistill.prompts.keys import derived_key, spec_fingerprint, tokenizer_fingerprint
from llmdistill.prompts.rejects import BadRowError, RejectedRow
from llmdistill.prompts.render import Rendered, Renderer
from llmdistill.prompts.requests import Origin
from llmdistill.types import CaptureSpec, ChunkRows, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORDS_PER_SHARD = 1024
NOT_COMPARED = "records with text that both tokenizers do not spell alike: no log-probability of the teacher there"
NO_ROW = "no row: the prompt files no longer hold its prompt"


@dataclass
class Retokenized:
    """What became of the records that were not in the second cache yet."""

    records: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    """Records that the student cannot have."""
    changes: Counter[str] = field(default_factory=Counter)
    """Kind of change → records that are used, but not as they stand."""


def retokenized_spec(spec: CaptureSpec, tokenizer: PreTrainedTokenizerBase, prompts: PromptsConfig) -> CaptureSpec:
    """What the second cache says of itself.

    Args:
        spec: of the teacher's cache.
        tokenizer: the student's.
        prompts: what decides how a prompt is rendered goes into `derived_from`.

    """
    keys = {"control_tokens", "template_arguments", "template_date", "length", "supervise"}
    rendering = json.dumps(prompts.model_dump(mode="json", include=keys), sort_keys=True)
    derived_from = hashlib.blake2b(spec_fingerprint(spec) + rendering.encode(), digest_size=16).hexdigest()
    return CaptureSpec(
        mode=spec.mode,
        kind="chunks",
        top_k=0,
        vocabulary_size=len(tokenizer),
        teacher=spec.teacher,
        tokenizer=tokenizer_fingerprint(tokenizer),
        engine=spec.engine,
        dtype=spec.dtype,
        sampling=spec.sampling,
        derived_from=derived_from,
    )


def retokenize(
    cache: Path,
    target: Path,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    prompts: PromptsConfig,
    read_origins: Callable[[], Mapping[bytes, Origin]],
    compression: Compression = "none",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Retokenized:
    """Bring the second cache up to the first.

    Args:
        cache: the teacher's.
        target: the second one.
        teacher: its tokenizer.
        student: the other one.
        prompts: as the teacher's cache was made with.
        read_origins: gives the row of each record's key; called only where a record is missing.
        compression: of the shards.
        on_progress: called with how many of the missing records are done, and how many there are.

    Raises:
        ConfigError: the student's tokenizer lacks what is needed.
        DataError: the second cache was made otherwise, or no record can be used.

    """
    reader = CacheReader(cache)
    spec = retokenized_spec(reader.spec, student, prompts)
    common = spec_fingerprint(spec)
    done = committed_keys(target, spec)
    missing = [number for number, key in enumerate(reader.keys) if derived_key(common, key) not in done]
    found = Retokenized()
    if missing:
        maker = _Maker(teacher, student, prompts, read_origins(), common)
        pending: list[Record] = []
        for count, number in enumerate(missing, start=1):
            record = maker.make(reader.read(number), int(reader.splits[number]), found)
            pending += [] if record is None else [record]
            if len(pending) == RECORDS_PER_SHARD or (pending and count == len(missing)):
                write_shard(shard_folder(target), pending, spec, "retokenized", compression)
                found.records, pending = found.records + len(pending), []
            on_progress(count, len(missing))
    if not done and not found.records:
        reasons = f"; the first: {found.rejected[0].reason}" if found.rejected else ""
        raise DataError(f"none of {len(reader)} records can be had in the student's tokens{reasons}", where=str(cache))
    write_index(target)
    return found


def student_prompts(prompts: PromptsConfig, tokenizer: PreTrainedTokenizerBase) -> PromptsConfig:
    """The configuration with the template arguments that the student's chat template knows."""
    template = str(tokenizer.chat_template or "")
    given = prompts.template_arguments.items()
    known = {name: value for name, value in given if re.search(rf"\b{re.escape(name)}\b", template)}
    return prompts.model_copy(update={"template_arguments": known})


class _Maker:
    def __init__(
        self,
        teacher: PreTrainedTokenizerBase,
        student: PreTrainedTokenizerBase,
        prompts: PromptsConfig,
        origins: Mapping[bytes, Origin],
        common: bytes,
    ) -> None:
        if student.eos_token_id is None:
            raise ConfigError("the student's tokenizer has no eos_token", fix="set it in its tokenizer_config.json")
        if student.chat_template is None and any(origin.row.messages for origin in origins.values()):
            raise ConfigError(
                "the student's tokenizer has no chat template, and its prompts are rendered with its own",
                where="student.model",
                fix="add chat_template.jinja to its folder, use an instruct model, or student.tokenizer: teacher",
            )
        self._teacher, self._student = teacher, student
        self._renderer = Renderer(student, student_prompts(prompts, student))
        self._origins, self._common = origins, common

    def make(self, stored: StoredRecord, split: int, found: Retokenized) -> Record | None:
        """The record in the student's tokens; None where it is among the rejected."""
        origin = self._origins.get(stored.key)
        try:
            if origin is None:
                raise BadRowError(NO_ROW)
            teacher = Side(self._teacher, stored.token_ids_N.numpy(), stored.supervised_N.numpy())
            rendered = self._render(stored, teacher, origin)
        except BadRowError as error:
            found.rejected.append(RejectedRow(stored.key.hex() if origin is None else origin.row.source, str(error)))
            return None
        assert rendered.supervised is not None
        student = Side(self._student, np.array(rendered.token_ids, np.int32), np.array(rendered.supervised))
        rows = self._chunks(teacher, stored, student, origin)
        if np.isnan(rows.logprobs_E).any():
            found.changes[NOT_COMPARED] += 1
        return Record(
            derived_key(self._common, stored.key),
            student.token_ids_N,
            student.supervised_N,
            rows,
            stored.finish_reason,
            split,
            stored.source or origin.row.source.rpartition(":")[0],
        )

    def _chunks(self, teacher: Side, stored: StoredRecord, student: Side, origin: Origin) -> ChunkRows:
        logprobs_R = stored.rows.actual_logprobs_R.numpy()
        return chunk_rows(teacher, logprobs_R, student, plain_text=origin.row.messages is None)

    def _render(self, stored: StoredRecord, teacher: Side, origin: Origin) -> Rendered:
        if stored.finish_reason != "scored":
            text, ended = response_text(teacher, stored.finish_reason)
            return self._renderer.continued(origin.row, text, self._student.eos_token_id if ended else None)
        row = origin.row
        if row.messages is None:
            # A text may have been cut to the teacher's length, so what the teacher read is what counts.
            row = dataclasses.replace(row, text=spelling(teacher.tokenizer, teacher.token_ids_N.tolist()).text)
            return self._renderer.render(row)[0][0]
        records = self._renderer.render(row)[0]
        if len(records) != origin.records:
            raise BadRowError("chat template: the student's makes other records of the conversation than the teacher's")
        return records[origin.place]


def response_text(teacher: Side, finish_reason: str) -> tuple[str, bool]:
    """What a response spells, and whether it ended with the teacher's own end token.

    Raises:
        BadRowError: a special token stands within it, which is no text and has no like in the student's tokenizer.

    """
    ids = teacher.token_ids_N[teacher.supervised_N].tolist()
    special = special_ids(teacher.tokenizer)
    ended = finish_reason == "stop" and bool(ids) and ids[-1] in special
    body = ids[: len(ids) - ended]
    if within := [token for token in body if token in special]:
        name = teacher.tokenizer.convert_ids_to_tokens(within[0])
        raise BadRowError(f"special token: the teacher wrote {name} within its response, which is no text")
    return spelling(teacher.tokenizer, body).text, ended
