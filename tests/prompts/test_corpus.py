import json
from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.rejects import RejectedRow, counts_by_kind, write_rejected
from llmdistill.prompts.shapes import PromptRow
from tests.prompts.makers import read, rejected, usable, write_jsonl


def read_bytes(tmp_path: Path, content: bytes, **prompts) -> list[PromptRow | RejectedRow]:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    return read(file, prompts)


def test_messages_text_and_blank_lines(tmp_path: Path) -> None:
    rows = read_bytes(
        tmp_path, b'{"messages": [{"role": "user", "content": "Hi", "weight": 1}], "id": 4}\n\n{"text": "Once."}\n'
    )
    assert [row.source.rsplit(":", 1)[1] for row in rows] == ["1", "3"]
    assert rows[0].messages == ({"role": "user", "content": "Hi"},)
    assert rows[1].text == "Once."


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    line = b"\xef\xbb\xbf" + '{"text": "café"}\n'.encode()
    rows = read_bytes(tmp_path, line + line)
    assert [row.text for row in usable(rows)] == ["café", "café"]  # also where files were joined


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text":', "not JSON: Expecting value at column 9"),
        ("[1]", "not a JSON object"),
        ("12", "not a JSON object: 12"),
        ("[" * 5000, "not JSON: nested too deep"),
        ('{"n": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"text": null}', "'text' must be a non-empty string, found null"),
        ('{"text": ""}', "non-empty string"),
        ('{"text": "  "}', "non-empty string"),
        ('{"text": 12}', "found 12"),
        ('{"text": NaN}', "found NaN"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"prompts": "x"}', "unknown columns: found prompts; accepted: messages: [{role, content}"),
        ('{"messages": []}', "'messages' must be a list of messages, found []"),
        ('{"messages": ["Hi"]}', 'a message must be an object, found "Hi"'),
        (
            '{"messages": [{"role": "function_call", "content": "x"}]}',
            'unknown role: "function_call"; known: system, user',
        ),
        ('{"messages": [{"role": "user", "content": ""}]}', "content of a 'user' message"),
        ('{"messages": [{"role": "user", "content": null}]}', "content of a 'user' message"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "nothing but a system message"),
    ],
)
def test_a_bad_line_is_rejected_and_the_next_is_read(tmp_path: Path, line: str, reason: str) -> None:
    bad, good = read_bytes(tmp_path, f'{line}\n{{"text": "fine"}}\n'.encode())
    assert isinstance(bad, RejectedRow)
    assert reason in bad.reason
    assert bad.source.endswith(":1")
    assert isinstance(good, PromptRow)


def test_a_line_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    bad, good = read_bytes(tmp_path, b'{"text": "\xff"}\n{"text": "fine"}\n')
    assert bad == RejectedRow(f"{tmp_path}/prompts.jsonl:1", "not UTF-8: invalid start byte at byte 11")
    assert good.text == "fine"


def test_a_bad_line_among_three_is_an_error_where_that_is_asked_for(tmp_path: Path) -> None:
    lines = b'{"text": "one"}\n{"text":\n{"text": "three"}\n'
    rows = read_bytes(tmp_path, lines)
    assert (len(usable(rows)), len(rejected(rows))) == (2, 1)
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: not JSON"):
        read_bytes(tmp_path, lines, on_bad_row="error")


def test_a_file_of_bad_lines_and_an_empty_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row can be used; the first: .*prompts\.jsonl:1: not JSON"):
        read_bytes(tmp_path, b'{"text":\n{"text":\n')
    with pytest.raises(DataError, match="there are no rows"):
        read_bytes(tmp_path, b"\n")


def test_unknown_columns_are_an_error_that_lists_them_and_the_formats(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"query": "a", "reply": "b"}] * 3)
    with pytest.raises(DataError) as caught:
        read(file)
    assert "found query, reply" in str(caught.value)
    for format_name in ("messages", "conversations", "instruction, input, output", "question, answer", "text"):
        assert format_name in str(caught.value)
    assert usable(read(file, columns={"prompt": "query", "response": "reply"}))[2].messages == (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    )


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b", "extra": 1}])
    with pytest.raises(DataError, match="no row has the column sytem; columns found: text, extra"):
        read(file, columns={"system": "sytem"})
    with pytest.raises(DataError, match="no row has the column sytem"):
        read(file, columns={"system": "sytem"}, limit=1)


def test_columns_may_be_null_in_one_file_and_text_in_the_next(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "1.jsonl", [{"prompt": "a", "system": None}])
    write_jsonl(tmp_path / "2.jsonl", [{"prompt": "b", "system": "Be brief."}, {"prompt": "c", "extra": [1]}])
    rows = usable(read(tmp_path))
    assert [row.messages[-1]["content"] for row in rows] == ["a", "b", "c"]
    assert [len(row.messages) for row in rows] == [1, 2, 1]


def test_a_row_of_megabytes_is_a_row(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "word " * 600_000}, {"text": "small"}])
    assert [len(row.text) for row in usable(read(file))] == [3_000_000, 5]


def test_corpora_are_streamed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "fine"}] * 3)
    with file.open("ab") as stream:
        stream.write(b'{"text": ')
    rows = read_prompts(PromptsConfig.model_validate({"sources": [{"path": str(file)}], "on_bad_row": "error"}))
    assert [next(rows).text for _ in range(3)] == ["fine"] * 3  # the bad end is not read yet
    with pytest.raises(DataError, match=":4: not JSON"):
        next(rows)


def test_limits_count_readable_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\nbad\n{"text": "b"}\n{"text": "c"}\n')
    rows = read(file, limit=2)
    assert [row.text for row in usable(rows)] == ["a", "b"]
    assert [row.source[-1] for row in rejected(rows)] == ["2"]


def test_weights_give_proportions_until_a_source_ends(tmp_path: Path) -> None:
    big = write_jsonl(tmp_path / "big.jsonl", [{"text": f"big {n}"} for n in range(100)])
    small = write_jsonl(tmp_path / "small.jsonl", [{"text": f"small {n}"} for n in range(10)])
    sources = [{"path": str(big), "weight": 3}, {"path": str(small), "weight": 1}]
    rows = usable(list(read_prompts(PromptsConfig.model_validate({"sources": sources}))))
    assert sum(row.text.startswith("small") for row in rows) == 10
    assert 30 <= sum(row.text.startswith("big") for row in rows) <= 33


def test_shuffling_follows_the_seed_and_loses_nothing(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(200)])

    def order(seed: int, **more: int) -> list[str]:
        return [row.text for row in usable(read(file, {"shuffle": {"seed": seed, **more}}))]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1), key=int) == sorted(order(1, buffer_size=7), key=int) == [str(n) for n in range(200)]
    assert order(1, buffer_size=7) != order(1, buffer_size=1) == [str(n) for n in range(200)]


def test_rejected_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "rejected.jsonl"
    write_rejected(path, [RejectedRow("a:1", "too long: 9 tokens"), RejectedRow("a:2", "half a pair: \ud800")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"source": "a:1", "reason": "too long: 9 tokens"},
        {"source": "a:2", "reason": "half a pair: \ud800"},
    ]


def test_reasons_are_counted_by_kind() -> None:
    assert counts_by_kind(["too long: 9", "duplicate: of a:1", "too long: 8"]) == "2 too long, 1 duplicate"
