import json
from pathlib import Path

import pytest

from llmdistill.errors import DataError
from llmdistill.prompts.corpus import PromptRow, RejectedRow, read_prompts, write_rejected


def read(tmp_path: Path, content: bytes) -> list[PromptRow | RejectedRow]:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    return list(read_prompts([str(file)]))


def test_messages_text_and_blank_lines(tmp_path: Path) -> None:
    rows = read(
        tmp_path, b'{"messages": [{"role": "user", "content": "Hi", "name": "x"}], "id": 4}\n\n{"text": "Once."}\n'
    )
    assert [row.source.rsplit(":", 1)[1] for row in rows] == ["1", "3"]
    assert rows[0].messages == ({"role": "user", "content": "Hi"},)
    assert rows[1].text == "Once."


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (row,) = read(tmp_path, b"\xef\xbb\xbf" + '{"text": "café"}'.encode())
    assert isinstance(row, PromptRow)
    assert row.text == "café"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text":', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": null}', "'text' must be a non-empty string, found null"),
        ('{"text": "  "}', "non-empty string"),
        ('{"text": 12}', "found 12"),
        ('{"prompt": "x"}', "columns found: prompt"),
        ('{"messages": []}', "non-empty list"),
        ('{"messages": [{"role": "human", "content": "x"}]}', 'unknown role "human"; known: system, user, assistant'),
        ('{"messages": [{"role": "user", "content": ""}]}', "content of a 'user' message"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "last message is a system message"),
    ],
)
def test_a_bad_line_is_rejected_and_the_next_is_read(tmp_path: Path, line: str, reason: str) -> None:
    bad, good = read(tmp_path, f'{line}\n{{"text": "fine"}}\n'.encode())
    assert isinstance(bad, RejectedRow)
    assert reason in bad.reason
    assert bad.source.endswith(":1")
    assert isinstance(good, PromptRow)


def test_absent_and_binary_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the prompts"):
        list(read_prompts([str(tmp_path / "absent.jsonl")]))
    with pytest.raises(DataError, match="not a UTF-8 file"):
        read(tmp_path, b"\xff\xfe\x00")


def test_rejected_file(tmp_path: Path) -> None:
    write_rejected(tmp_path / "cache" / "rejected.jsonl", [RejectedRow("a:1", "too long")])
    (line,) = (tmp_path / "cache" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"source": "a:1", "reason": "too long"}
