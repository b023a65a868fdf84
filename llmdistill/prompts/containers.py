"""From a file to its rows, one reader per container. A row that cannot be read does not hide the ones after it.

A reader yields `(number, row)`. The number is the line of the row, or its position where a container has no lines
(JSON arrays, Parquet). The row is a JSON value, or a `BadRowError` in its place. JSONL, CSV, Parquet and text by line
or paragraph are streamed; JSON and text by document are read whole.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import tempfile
from collections.abc import Iterator
from typing import Any

from llmdistill.errors import DataError
from llmdistill.prompts.rejects import BadRowError

NumberedRow = tuple[int, Any]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256


def read_jsonl(stream: io.BufferedReader) -> Iterator[NumberedRow]:
    """One JSON value a line."""
    for number, line in _lines(stream):
        if line.strip():
            yield number, _parse(line.rstrip(b"\r\n"))


def read_json(stream: io.BufferedReader) -> Iterator[NumberedRow]:
    """An array of objects. JSON lines under a .json name are read as such.

    Raises:
        DataError: neither of the two.
    """
    data = stream.read()
    if not data.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        rows = list(read_jsonl(io.BufferedReader(io.BytesIO(data))))
        if rows and isinstance(rows[0][1], BadRowError):
            _refuse_document(data)
        yield from rows
        return
    value = _parse(data.removeprefix(_BYTE_ORDER_MARK))
    if isinstance(value, BadRowError):
        raise DataError(f"the array is {value}", fix="an array of objects, or one object a line")
    yield from enumerate(value, start=1)


def read_csv(stream: io.BufferedReader) -> Iterator[NumberedRow]:
    """Comma-separated values (RFC 4180) under a line of column names.

    Raises:
        DataError: the line of column names is unusable.
    """
    _refuse_utf16(stream.peek(2))
    csv.field_size_limit(2**31 - 1)
    # What is not UTF-8 comes out as lone surrogates, which no text may hold: the row is rejected, not the file.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    records = csv.reader(text, strict=True)
    try:
        header = next(records, [])
    except csv.Error as error:
        raise DataError(f"the line of column names is not CSV: {error}") from None
    if len(set(header)) < len(header):
        raise DataError(f"two columns have the same name; columns found: {', '.join(header)}")
    while True:
        number = records.line_num + 1
        try:
            fields = next(records, None)
        except csv.Error as error:
            yield number, BadRowError(f"not CSV: {error}, in lines {number} to {records.line_num}")
            continue
        if fields is None:
            return
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        elif fields:
            yield number, BadRowError(f"not CSV: {len(fields)} fields under {len(header)} column names")


def read_parquet(stream: io.BufferedReader) -> Iterator[NumberedRow]:
    """Rows of a Parquet file.

    Raises:
        DataError: not a Parquet file, or a damaged one.
    """
    import pyarrow.parquet

    with tempfile.TemporaryFile() as spooled:
        if not stream.seekable():
            while block := stream.read(1 << 20):
                spooled.write(block)
        try:
            file = pyarrow.parquet.ParquetFile(stream if stream.seekable() else spooled)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(batch, index)
        # Damaged metadata makes pyarrow raise its own errors and Python's (of text, numbers, memory).
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"not a whole Parquet file: {reason or type(error).__name__}") from error


def read_text(stream: io.BufferedReader, sample_by: str) -> Iterator[NumberedRow]:
    """Plain text: each line that is not blank, each paragraph (up to a blank line), or the whole file."""
    if sample_by == "line":
        for number, line in _lines(stream):
            if line.strip():
                yield number, _text(line.rstrip(b"\r\n"))
    elif sample_by == "paragraph":
        first, paragraph = 0, list[bytes]()
        for number, line in itertools.chain(_lines(stream), [(0, b"")]):  # the end of the file ends a paragraph too
            if line.strip():
                first = number if not paragraph else first
                paragraph.append(line)
            elif paragraph:
                yield first, _text(b"".join(paragraph).rstrip(b"\r\n"))
                paragraph = []
    else:
        document = stream.read()
        _refuse_utf16(document)
        if document.removeprefix(_BYTE_ORDER_MARK).strip():
            yield 1, _text(document.removeprefix(_BYTE_ORDER_MARK))


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Lines end at line feeds alone: JSON may hold the other characters that Python takes for line ends."""
    for number, line in enumerate(stream, start=1):
        if number == 1:
            _refuse_utf16(line)
        # Files that were joined have byte order marks in the middle.
        yield number, line.removeprefix(_BYTE_ORDER_MARK)


def _refuse_utf16(start: bytes) -> None:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("not a UTF-8 file: it starts like UTF-16", fix="save it as UTF-8")


def _refuse_document(data: bytes) -> None:
    """Raise where the whole file is one object, spread over lines."""
    value = _parse(data.removeprefix(_BYTE_ORDER_MARK))
    if isinstance(value, dict):
        raise DataError(
            f"one JSON object with the keys {', '.join(value)}", fix="an array of objects, or one object a line"
        )


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        return BadRowError(f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return BadRowError(f"not JSON: {error.msg} at {line}column {error.colno}")
    except RecursionError:
        return BadRowError("not JSON: nested too deep")
    except ValueError as error:  # a number of thousands of digits
        return BadRowError(f"not JSON: {error}")


def _text(data: bytes) -> Any:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError as error:
        return BadRowError(f"not UTF-8: {error.reason} at byte {error.start + 1}")


def _parquet_row(batch: Any, index: int) -> Any:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (ValueError, ArithmeticError) as error:  # text that is not UTF-8, dates outside of Python's
        return BadRowError(f"not readable: {error}")
