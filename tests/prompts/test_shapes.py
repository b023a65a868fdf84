"""Formats of rows: one dialogue in all of them is one conversation."""

import json
from pathlib import Path

import pytest

from llmdistill.prompts.dialogue import ROLES
from llmdistill.prompts.rejects import BadRowError
from llmdistill.prompts.shapes import LATER_TURNS, PromptRow, conversation, expanded
from tests.prompts.makers import assistant, read, rejected, system, usable, user, write_jsonl


def shape(value, **columns: str) -> PromptRow:
    ((where, row),) = expanded(value, columns, "a:1")
    return conversation(row, columns, where)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
        ({"messages": [user([{"type": "text", "text": "q"}, {"type": "text", "text": "r"}])]}, [user("q\nr")]),
        ({"messages": json.dumps([user("q")])}, [user("q")]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            [system("s"), user("q"), assistant("a")],
        ),
        ({"conversations": [user("q"), assistant("a")], "system": "s"}, [system("s"), user("q"), assistant("a")]),
        ({"instruction": "q", "input": "", "output": "a"}, [user("q"), assistant("a")]),
        ({"instruction": "q", "input": "r", "output": "a", "text": "joined"}, [user("q\n\nr"), assistant("a")]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [system("s"), user("q"), assistant("a")]),
        ({"prompt": "q", "response": "a", "system": ""}, [user("q"), assistant("a")]),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, [user("q"), assistant("a")]),
        ({"prompt": ["q"], "completion": "a"}, [user("q"), assistant("a")]),
        ({"question": "q", "answer": "a", "id": 1}, [user("q"), assistant("a")]),
        ({"messages": None, "prompt": "q"}, [user("q")]),
    ],
)
def test_formats(value, expected) -> None:
    assert list(shape(value).messages or ()) == expected


def test_text_stays_text() -> None:
    assert shape({"text": " Once. "}).text == " Once. "


def test_alpaca_rows_without_input_make_one_prompt_and_may_lack_an_output() -> None:
    rows = [
        {"instruction": "q"} | extra for extra in ({}, {"input": ""}, {"input": None}, {"input": " ", "output": ""})
    ]
    assert {json.dumps(shape(row).messages) for row in rows} == {json.dumps([user("q")])}


def test_a_list_of_user_turns_asks_the_first() -> None:
    row = shape({"turns": ["first", "second"], "category": "writing"}, prompt="turns")
    assert row.messages == (user("first"),)
    assert row.changes == (LATER_TURNS,)
    assert shape({"turns": ["only"]}, prompt="turns").changes == ()


def test_columns_lead_into_nested_objects_and_lists() -> None:
    assert shape({"data": {"q": "q"}}, prompt="data.q").messages == (user("q"),)
    assert shape({"data.q": "q"}, prompt="data.q").messages == (user("q"),)
    value = {"instruction": "i", "instances": [{"input": "x", "output": "a"}, {"input": "", "output": "b"}]}
    columns = {"input": "instances.input", "output": "instances.output"}
    rows = [(where, conversation(row, columns, where).messages) for where, row in expanded(value, columns, "a:7")]
    assert rows == [
        ("a:7[1]", (user("i\n\nx"), assistant("a"))),
        ("a:7[2]", (user("i"), assistant("b"))),
    ]


@pytest.mark.parametrize(
    ("value", "column", "references"),
    [
        ({"question": "q", "answer": "#### 4"}, None, ["#### 4"]),
        ({"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}, None, ["b"]),
        ({"messages": [user("q")]}, None, [None]),
        ({"prompt": "q", "reference": "not asked for"}, None, [None]),
        ({"question": "q", "answer": "a", "gold": "g"}, "gold", ["g"]),
        ({"question": "q", "answer": "a"}, "answer", ["a"]),
        ({"question": "q", "answer": "a"}, "gold", [None]),
        ({"question": "q", "gold": ["several"]}, "gold", [None]),
        ({"question": "q", "labels": {"gold": "g"}}, "labels.gold", ["g"]),
        ({"text": "t", "gold": "g"}, "gold", ["g"]),
    ],
)
def test_a_reference_is_the_column_asked_for_or_the_rows_own_answer(value, column, references) -> None:
    rows = [conversation(row, {}, where) for where, row in expanded(value, {}, "a:1", column)]
    assert [row.reference for row in rows] == references
    assert [row.messages for row in rows] == [shape(value).messages]


def test_references_lie_beside_prompts_in_a_list() -> None:
    value = {"qas": [{"q": "1", "gold": "a"}, {"q": "2"}]}
    columns = {"prompt": "qas.q"}
    rows = [conversation(row, columns, where) for where, row in expanded(value, columns, "a:1", "qas.gold")]
    assert [row.reference for row in rows] == ["a", None]


def test_a_mapped_column_decides_the_format() -> None:
    assert shape({"prompt": "p", "question": "q"}, text="question").text == "q"
    assert shape({"messages": "metadata", "q": "q"}, prompt="q").messages == (user("q"),)
    assert shape({"prompt": "template name", "q": "q"}, question="q").messages == (user("q"),)


def test_one_bad_item_of_a_list_does_not_hide_the_others(tmp_path: Path) -> None:
    items = [{"input": "x"}, {"input": 3}, {"input": "z"}]
    file = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "i", "instances": items}])
    rows = read(file, columns={"input": "instances.input"})
    assert [row.source for row in usable(rows)] == [f"{file}:1[1]", f"{file}:1[3]"]
    assert [row.source for row in rejected(rows)] == [f"{file}:1[2]"]


TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_tool_calls_take_one_form() -> None:
    as_text = {**TOOL_CALL, "function": {"name": "add", "arguments": '{"a": 1, "b": null}'}}
    padded = {**TOOL_CALL, "function": {"name": "add", "arguments": {"a": 1, "b": None}}, "index": None}
    for call in (TOOL_CALL, as_text, padded):
        row = shape(
            {
                "messages": [
                    {"role": "user", "content": "1+1?", "tool_calls": None},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "content": "2", "tool_call_id": "c1", "name": None},
                ],
                "tools": json.dumps([{"name": "add", "strict": None}]),
            }
        )
        assert row.messages == (
            user("1+1?"),
            assistant("", tool_calls=[TOOL_CALL]),
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
        )
        assert row.tools == ({"name": "add"},)


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ("user user", "message 2 is from 'user' after a 'user' message"),
        ("assistant user", "message 1 is from 'assistant' at the start"),
        ("user system", "message 2 is from 'system' after a 'user' message"),
        ("system system user", "message 2 is from 'system' after a 'system' message"),
        ("user assistant assistant", "message 3 is from 'assistant' after a 'assistant' message"),
        ("user tool", "message 2 is from 'tool' after a 'user' message"),
        ("system", "nothing but a system message"),
        ("system user assistant user", None),
        ("user assistant tool tool assistant user", None),
    ],
)
def test_role_order(roles: str, fault: str | None) -> None:
    value = {"messages": [{"role": role, "content": "x"} for role in roles.split()]}
    if fault is None:
        assert len(shape(value).messages or ()) == len(roles.split())
        return
    with pytest.raises(BadRowError, match=fault):
        shape(value)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"messages": {"role": "user"}}, "must be a list of messages"),
        ({"messages": "Hi"}, 'must be a list of messages, found "Hi"'),
        ({"messages": [{"content": "x"}]}, "unknown role: null; known: " + ", ".join(ROLES)),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ({"messages": [user([{"type": "image_url", "image_url": "x"}])]}, 'unknown part: .* found "image_url"'),
        ({"messages": [user([])]}, "non-empty string"),
        ({"messages": [user({"a": 1})]}, "non-empty string"),
        ({"messages": [user("x"), assistant("", tool_calls=[{"function": {}}])]}, "a call needs function.name"),
        ({"messages": [user("x"), assistant("y", tool_calls="f()")]}, "only an assistant has a list of them"),
        (
            {"messages": [user("x"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
            "arguments are not JSON",
        ),
        ({"prompt": []}, "must be a list of messages"),
        ({"prompt": ["a", 1]}, "a message must be an object"),
        ({"prompt": ["a", "b"], "completion": "c"}, "one answer to several user turns"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a non-empty string"),
        ({"instruction": "a", "input": 3}, "'input' must be a non-empty string, found 3"),
        ({"prompt": "a", "system": 3}, "'system' must be a non-empty string"),
        ({"messages": [system("a"), user("b")], "system": "c"}, "a system message and a column 'system'"),
        ({"prompt": "a", "tools": ["f"]}, "'tools' must be a list of schemas"),
    ],
)
def test_what_makes_no_conversation_is_refused_with_its_reason(value, fault: str) -> None:
    with pytest.raises(BadRowError, match=fault):
        shape(value)


def test_columns_may_not_lead_into_two_lists() -> None:
    with pytest.raises(BadRowError, match="two lists, a and b"):
        shape({"a": [{"x": "1"}], "b": [{"x": "1"}]}, prompt="a.x", completion="b.x")
    with pytest.raises(BadRowError, match="'a' must be a list of objects, found"):
        shape({"a": []}, prompt="a.x")
