"""`prompts:` what the teacher is asked about. docs/prompts.md has the formats and the rules, with examples."""

from __future__ import annotations

import datetime
import re
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmdistill.config.base import Section

ColumnName = Literal[
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "response",
    "question",
    "answer",
    "text",
    "system",
    "tools",
]

MAIN_TEACHER = "teacher"
"""What sources call the section `teacher`."""

_ENDINGS = re.compile(r"(\.(jsonl|ndjson|json|parquet|csv|txt|text|md))?(\.(gz|zst))?$", re.IGNORECASE)

_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "return_dict",
        "strftime_now",
        "tokenize",
        "tools",
    }
)


class SourceConfig(Section):
    """Files, or a data set of the Hugging Face hub: exactly one of `path` and `hub`."""

    path: str | None = None
    """A file, a folder, a glob, or an fsspec address (s3://, …); relative paths start at the working directory. JSONL,
    JSON, Parquet, CSV and plain text, each also as .gz or .zst. Files are read in the order of their names."""
    hub: str | None = None
    """A data set's hub id, read as a stream."""
    name: str | None = None
    """The hub data set's configuration."""
    split: str = "train"
    """The hub data set's split."""
    revision: str | None = None
    """The hub data set's commit, tag or branch. Without a commit the same run may read other rows tomorrow."""
    format: Literal["jsonl", "json", "parquet", "csv", "text"] | None = None
    """What the files hold, where their names do not say it."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a row of a plain text file is; a paragraph ends at a blank line."""
    columns: dict[ColumnName, str] = Field(default_factory=dict)
    """Names of this source's columns: `{prompt: turns}` reads the column `turns` as `prompt`. `instances.input` is the
    field `input` of each item of the list `instances`, and makes a row of every item."""
    weight: PositiveFloat | None = None
    """Share of this source in the mixture. With weights (on all sources or on none) rows are taken in these
    proportions until a source has no more; without, all rows of all sources are."""
    limit: PositiveInt | None = None
    """Readable rows that are taken, at most."""
    label: str | None = Field(default=None, min_length=1)
    """Name of the source in records, reports and `train.source_weights`; by default that of the file without folder and
    endings, of a glob's folder, or the hub data set's id. Sources with equal labels count as one."""
    teachers: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Who answers its prompts: name of a teacher → weight. `teacher` is the section `teacher`, which answers alone
    where nothing is given; other names are keys of `teachers`. A hash of the prompt decides between several."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        if self.hub is None and (self.name, self.split, self.revision) != (None, "train", None):
            raise ValueError("name, split and revision belong to hub")
        if self.hub is not None and (self.format, self.sample_by) != (None, "line"):
            raise ValueError("format and sample_by belong to path")
        return self

    @property
    def known_as(self) -> str:
        """`label`, or its default: the same wherever the files are moved to."""
        if self.label is not None:
            return self.label
        if self.path is None:
            return str(self.hub)
        parts = self.path.rstrip("/").split("/")
        last = next((part for part in reversed(parts) if part and not set("*?[") & set(part)), parts[-1])
        return _ENDINGS.sub("", last) or last

    @property
    def answered_by(self) -> dict[str, float]:
        """Name of a teacher → weight; never empty."""
        return dict(self.teachers) or {MAIN_TEACHER: 1.0}


class ShuffleConfig(Section):
    """The order of the rows of each source, before its `limit`."""

    seed: int = 0
    """Equal seeds give equal orders."""
    buffer_size: PositiveInt = 10_000
    """Rows held at once; a source with no more rows than this is shuffled whole."""


class NearDuplicatesConfig(Section):
    """Removal of rows that are almost equal to an earlier one."""

    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    """Jaccard similarity of the two rows' sets of word n-grams from which on the later one is dropped."""
    ngram: PositiveInt = 5
    """Words of an n-gram."""


class DecontaminationConfig(Section):
    """Removal of rows that share text with evaluation data."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The evaluation data, in any format that prompts have."""
    ngram: PositiveInt = 13
    """A row goes if it shares this many words in a row with an evaluation row, or one of its user messages word for
    word."""

    @model_validator(mode="after")
    def _nobody_is_asked(self) -> Self:
        if any(source.teachers or source.label for source in self.sources):
            raise ValueError("label and teachers belong to prompts.sources: nobody is asked about evaluation data")
        return self


class PromptsConfig(Section):
    """The prompt corpus and what is done with it."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Read in this order."""
    mode: Literal["generate", "score"] = "generate"
    """`generate`: the teacher answers each prompt; an answer that a row holds already is not used. `score`: existing
    text gets the teacher's distributions; of a conversation the assistant's turns are scored, of a `text` row every
    token after the first."""
    supervise: Literal["last", "all"] = "last"
    """`score` mode: which assistant turns of a conversation are scored."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example `{enable_thinking: false}`."""
    template_date: datetime.date | None = None
    """The day that chat templates see which write today's date into the prompt; they are refused without it, since
    tomorrow's prompts would be others."""
    control_tokens: Literal["escape", "reject", "keep"] = "escape"
    """What is done with text in a row that spells a special token, such as `</s>`. `escape`: it becomes ordinary
    tokens; `reject`: the row is not used; `keep`: it becomes the special token."""
    length: Literal["drop", "truncate_left", "truncate_right"] = "drop"
    """What is done with a row that is longer than teacher.max_model_len allows."""
    on_bad_row: Literal["reject", "error"] = "reject"
    """`reject`: a row that cannot be used is listed in cache/rejected.jsonl; `error`: it ends the run."""
    shuffle: ShuffleConfig | None = None
    """Shuffled where given."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Removed where given. Equal prompts are always used once, by each teacher that is to answer them."""
    decontamination: DecontaminationConfig | None = None
    """Done where given."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept for evaluation, chosen by a hash of the prompt, so that equal prompts (and all samples
    of one) always fall on the same side."""

    @model_validator(mode="after")
    def _all_or_no_weights(self) -> Self:
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("give a weight to every source or to none")
        return self

    @model_validator(mode="after")
    def _free_template_arguments(self) -> Self:
        if taken := sorted(_RESERVED & self.template_arguments.keys()):
            raise ValueError(f"template_arguments may not hold {', '.join(taken)}: they are set by the program")
        return self
