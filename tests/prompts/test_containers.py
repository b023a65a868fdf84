"""Every container, plain and compressed, whole and damaged."""

import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llmdistill.errors import DataError
from llmdistill.prompts.rejects import RejectedRow
from tests.prompts.makers import read, rejected, usable, write_jsonl


def texts(rows) -> list[str]:
    return [row.text for row in usable(rows)]


def test_json_arrays_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps([{"text": "a"}, 3, {"text": "b"}], indent=1).encode())
    rows = read(file)
    assert texts(rows) == ["a", "b"]
    assert rejected(rows) == [RejectedRow(f"{file}:2", "not a JSON object: 3")]


def test_json_lines_under_a_json_name_are_read_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"text": "a"}\n{"text":\n{"text": "b"}\n')
    rows = read(file)
    assert texts(rows) == ["a", "b"]
    assert [row.source for row in rejected(rows)] == [f"{file}:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n "version": 1,\n "data": []\n}', "one JSON object with the keys version, data"),
        ('[{"text": "a"},\n {"text": ]', "the array is not JSON: Expecting value at line 2 column 11"),
        ("[]", "there are no rows"),
    ],
)
def test_other_json_is_an_error_that_says_what_was_expected(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(DataError, match=str(file)) as caught:
        read(file)
    assert message in str(caught.value)


def test_csv_fields_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbftext,id\r\n"a, ""b""\nc",1\r\n\r\nd,2\r\n')
    assert [(row.source[-1], row.text) for row in usable(read(file))] == [("2", 'a, "b"\nc'), ("5", "d")]


def test_bad_csv_lines_are_rejected_and_the_next_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,id\na,1\nb\nc,2,3\n"d"x,4\n\xff,5\ne,6\n"f,7\ng,8\n')
    rows = read(file)
    assert texts(rows) == ["a", "e"]
    assert [(row.source[-1], row.reason.partition(", in")[0]) for row in rejected(rows)] == [
        ("3", "not CSV: 1 fields under 2 column names"),
        ("4", "not CSV: 3 fields under 2 column names"),
        ("5", "not CSV: ',' expected after '\"'"),
        ("6", "not UTF-8: 'text' holds half a surrogate pair at character 1"),
        ("8", "not CSV: unexpected end of data"),
    ]
    assert "in lines 8 to 9" in rejected(rows)[-1].reason


def test_csv_cells_of_megabytes_are_read_and_equal_column_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text\n" + "x" * 3_000_000 + "\n")
    assert [len(text) for text in texts(read(file))] == [3_000_000]
    file.write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="two columns have the same name; columns found: text, text"):
        read(file)


def test_parquet_rows_with_nested_messages_are_plain_lists(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"messages": messages, "image": b"\x00"}] * 600 + [{"messages": None, "image": None}]
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = read(file)
    assert len(usable(found)) == 600
    assert usable(found)[-1].messages == tuple(messages)
    assert [row.source for row in rejected(found)] == [f"{file}:601"]


def test_a_parquet_text_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    binary = pyarrow.array([b"fine", b"\xff", b"good"])
    column = pyarrow.StringArray.from_buffers(3, binary.buffers()[1], binary.buffers()[2])
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
    rows = read(file)
    assert texts(rows) == ["fine", "good"]
    assert rejected(rows)[0].reason.startswith("not readable: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", [(2, " one "), (3, "two"), (6, "three")]),
        ("paragraph", [(2, " one \ntwo"), (6, "three")]),
        ("document", [(1, "\n one \ntwo\n\n \nthree\n")]),
    ],
)
def test_plain_text_by_line_paragraph_and_document(tmp_path: Path, sample_by: str, expected: list) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff\n one \ntwo\n\n \nthree\n".encode())
    rows = usable(read(file, sample_by=sample_by))
    assert [(int(row.source.rsplit(":", 1)[1]), row.text) for row in rows] == expected


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert texts(read(file)) == ["a\u2028b\x85c"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_utf16_files_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text('{"text": "a"}', encoding="utf-16")
    with pytest.raises(DataError, match=rf"{name}: not a UTF-8 file: it starts like UTF-16"):
        read(file)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, name: str, suffix: str) -> None:
    values = [f"text {number}" for number in range(3000)]
    file = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": values}), file)
    else:
        head, line = (
            ("text\n", "{}") if name.endswith("csv") else ("", "{}" if name.endswith("txt") else '{{"text": "{}"}}')
        )
        file.write_text(head + "".join(line.format(value) + "\n" for value in values))
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    data = file.read_bytes()
    half = len(data) // 2
    packed = tmp_path / (name + suffix)
    packed.write_bytes(compress(data[:half]) + compress(data[half:]))  # several members, as parallel tools write them
    assert texts(read(packed)) == texts(read(file)) == values


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_short_is_an_error(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(json.dumps({"text": f"{number * 7919 % 104729} text"}).encode() + b"\n" for number in range(9000))
    data = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    file = tmp_path / f"a.jsonl{suffix}"
    for length in (len(data) - 1, len(data) - 7, len(data) // 2, 20):
        file.write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged"):
            read(file)
    file.write_bytes(lines)
    with pytest.raises(DataError, match="damaged"):
        read(file)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 1000}), buffer)
    for data in (b"", b"PAR1", buffer.getvalue()[:-7], buffer.getvalue()[100:]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.parquet: not a whole Parquet file"):
            read(tmp_path / "a.parquet")


def test_files_keep_their_own_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "system": pyarrow.nulls(1)}), tmp_path / "1.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["b"], "system": ["s"], "x": [1]}), tmp_path / "2.parquet")
    write_jsonl(tmp_path / "3.jsonl", [{"text": "c"}])
    assert [len(row.messages or ()) for row in usable(read(tmp_path))] == [1, 2, 0]
