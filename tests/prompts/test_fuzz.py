"""Readers against arbitrary bytes: an answer or an error of ours, no traceback, no row lost without a word."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdistill.config.prompts import SourceConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_source
from llmdistill.prompts.rejects import BadRowError, RejectedRow
from llmdistill.prompts.shapes import COLUMNS, PromptRow, conversation, expanded

fuzz = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(path: Path, content: bytes, **source) -> list[PromptRow | RejectedRow] | None:
    """All rows; None where the file is refused."""
    path.write_bytes(content)
    rows, refusal = [], ""
    try:
        for row in read_source(SourceConfig(path=str(path), **source), strict=False):
            assert isinstance(row, (PromptRow, RejectedRow))
            rows.append(row)
    except DataError as error:
        refusal = str(error)
    assert not refusal or str(path) in refusal
    return None if refusal and "no row can be used" not in refusal else rows


bits = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'{"text": "a"}',
            b'{"text":',
            b"\n",
            b"\r\n",
            b"\r",
            b'"',
            b",",
            b"[",
            b"]",
            b"\xef\xbb\xbf",
            b"\x00",
            b"\xff",
            b" ",
            b"text",
        ]
    ),
)
contents = st.lists(bits, max_size=12).map(b"".join)


@fuzz
@given(contents)
def test_jsonl(tmp_path: Path, content: bytes) -> None:
    rows = outcome(tmp_path / "a.jsonl", content)
    if rows is not None:
        assert len(rows) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in content.split(b"\n"))


@fuzz
@given(contents)
def test_json(tmp_path: Path, content: bytes) -> None:
    rows = outcome(tmp_path / "a.json", content)
    if rows is not None and content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        assert len(rows) == len(json.loads(content.decode("utf-8-sig")))


@fuzz
@given(contents)
def test_csv(tmp_path: Path, content: bytes) -> None:
    for whole in (b"text,id\n" + content, content):
        rows = outcome(tmp_path / "a.csv", whole)
        assert rows is None or len(rows) <= whole.count(b"\n") + whole.count(b"\r"), (
            "more rows than lines below the header"
        )


@fuzz
@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_csv_that_is_well_formed_is_read_in_full(tmp_path: Path, pairs: list[tuple[str, str]], ending: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([("text", "id"), *pairs])
    rows = outcome(tmp_path / "a.csv", text.getvalue().encode(errors="surrogatepass"))
    assert rows is not None and len(rows) == len(pairs)


@fuzz
@given(contents, st.sampled_from(["line", "paragraph", "document"]))
def test_text(tmp_path: Path, content: bytes, sample_by: str) -> None:
    rows = outcome(tmp_path / "a.txt", content, sample_by=sample_by)
    if rows is not None and sample_by == "line":
        assert len(rows) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in content.split(b"\n"))


@pytest.fixture(scope="module")
def parquet() -> bytes:
    buffer = io.BytesIO()
    messages = [{"role": "user", "content": "Hi"}]
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": [messages] * 5, "text": ["a"] * 5, "n": [1.5] * 5}), buffer, compression="none"
    )
    return buffer.getvalue()


@fuzz
@given(st.data())
def test_parquet(tmp_path: Path, parquet: bytes, data: st.DataObject) -> None:
    content = bytearray(parquet)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    rows = outcome(
        tmp_path / "a.parquet",
        bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content),
    )
    assert rows is None or rows or content != parquet


@fuzz
@given(contents, st.sampled_from(["gz", "zst"]), st.integers(0, 40), st.integers(0, 255), st.booleans())
def test_compressed(tmp_path: Path, content: bytes, suffix: str, position: int, value: int, cut: bool) -> None:
    packed = bytearray(
        gzip.compress(content, mtime=0)
        if suffix == "gz"
        else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    )
    plain = outcome(tmp_path / "a.jsonl", content)
    whole = outcome(tmp_path / f"a.jsonl.{suffix}", bytes(packed))
    assert (whole is None) == (plain is None) and (plain is None or len(whole or []) == len(plain))
    if cut and position < len(packed):
        # Cut to nothing, it is an empty file; anywhere else, a damaged one.
        assert outcome(tmp_path / f"a.jsonl.{suffix}", bytes(packed[:position])) is None
    else:
        packed[min(position, len(packed) - 1)] = value
        outcome(tmp_path / f"a.jsonl.{suffix}", bytes(packed))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "type", "text", "tool_calls", "function", "name", "arguments"]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "other"])
near_messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": json_values | st.just("x")}, optional={"tool_calls": json_values}),
    max_size=4,
)
rows_of_columns = st.dictionaries(
    st.sampled_from([*COLUMNS, "turns", "instances"]), json_values | near_messages | st.just("x"), max_size=4
)


@fuzz
@given(
    rows_of_columns,
    st.dictionaries(
        st.sampled_from(COLUMNS),
        st.sampled_from(["turns", "instances.role", "text", "messages.content", "."]),
        max_size=3,
    ),
)
def test_shapes(value: dict[str, object], columns: dict[str, str]) -> None:
    found = []
    with contextlib.suppress(BadRowError):
        found = [conversation(row, columns, where) for where, row in expanded(value, columns, "a:1")]
    assert all((row.text is None) != (row.messages is None) for row in found)
