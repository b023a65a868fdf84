"""One dialogue in every format and container has the same token ids, masks and keys."""

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llmdistill.config.prompts import PromptsConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.types import Request
from tests.prompts.makers import assistant, make, system, user

QUESTION, ANSWER, SYSTEM = 'What, "exactly",\nis the capital of France? é', "Paris.", "Be brief."

SHAPES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "messages": ({"messages": [system(SYSTEM), user(QUESTION), assistant(ANSWER)]}, {}),
    "content parts": (
        {
            "messages": [
                make([{"type": "text", "text": text}])
                for make, text in zip((system, user, assistant), (SYSTEM, QUESTION, ANSWER), strict=True)
            ]
        },
        {},
    ),
    "conversations": (
        {
            "conversations": [
                {"from": "system", "value": SYSTEM},
                {"from": "human", "value": QUESTION},
                {"from": "gpt", "value": ANSWER},
            ]
        },
        {},
    ),
    "alpaca": ({"instruction": QUESTION, "input": "", "output": ANSWER, "system": SYSTEM}, {}),
    "alpaca with input": (
        {"instruction": QUESTION.split("\n")[0], "input": QUESTION.split("\n")[1], "output": ANSWER, "system": SYSTEM},
        {},
    ),
    "prompt and completion": ({"prompt": QUESTION, "completion": ANSWER, "system": SYSTEM}, {}),
    "prompt and response": ({"prompt": QUESTION, "response": ANSWER, "system": SYSTEM}, {}),
    "question and answer": ({"question": QUESTION, "answer": ANSWER, "system": SYSTEM}, {}),
    "turns": (
        {"turns": [QUESTION], "reference": ANSWER, "s": SYSTEM},
        {"prompt": "turns", "response": "reference", "system": "s"},
    ),
    "instances": (
        {"q": QUESTION, "s": SYSTEM, "instances": [{"input": "", "output": ANSWER}]},
        {"instruction": "q", "system": "s", "input": "instances.input", "output": "instances.output"},
    ),
}

CONTAINERS = ["jsonl", "json", "parquet", "csv", "jsonl.gz", "json.zst", "parquet.gz", "csv.zst"]


def write(path: Path, row: dict[str, Any]) -> None:
    name, _, compression = path.name[1:].partition(".")[2].partition(".")
    if name == "jsonl":
        data = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    elif name == "json":
        data = json.dumps([row], indent=1).encode()
    elif name == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        data = path.read_bytes()
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, row.keys())
            writer.writeheader()
            writer.writerow({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
        data = path.read_bytes()
    path.write_bytes({"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[compression](data))


def request_of(path: Path, columns: dict[str, str], mode: str, tokenizer) -> Request:
    config = PromptsConfig.model_validate({"sources": [{"path": str(path), "columns": columns}], "mode": mode})
    corpus = make(read_prompts(config), tokenizer, mode=mode)
    assert not corpus.rejected
    (request,) = corpus.requests
    return request


@pytest.mark.parametrize(
    ("shape", "container"),
    # A cell of CSV holds a text, or messages in JSON; a list of turns there would be taken for the text of a prompt.
    [pair for pair in itertools.product(SHAPES, CONTAINERS) if pair not in {("turns", "csv"), ("turns", "csv.zst")}],
)
def test_twins(tmp_path: Path, tokenizer, container: str, shape: str) -> None:
    row, columns = SHAPES[shape]
    path = tmp_path / f"a.{container}"
    write(path, row)
    for mode in ("generate", "score"):
        found = request_of(path, columns, mode, tokenizer)
        # Instruction and input are joined by a blank line.
        question = QUESTION.replace("\n", "\n\n") if shape == "alpaca with input" else QUESTION
        (expected,) = make(
            read_prompts_of(tmp_path, [system(SYSTEM), user(question), assistant(ANSWER)]), tokenizer, mode=mode
        ).requests
        assert (found.token_ids, found.supervised, found.key, found.split) == (
            expected.token_ids,
            expected.supervised,
            expected.key,
            expected.split,
        )


def read_prompts_of(folder: Path, messages: list[dict[str, Any]]):
    write(folder / "reference.jsonl", {"messages": messages})
    return read_prompts(PromptsConfig.model_validate({"sources": [{"path": str(folder / "reference.jsonl")}]}))


@pytest.mark.parametrize("container", [*CONTAINERS, "txt", "txt.gz", "txt.zst"])
def test_twins_of_a_text(tmp_path: Path, tokenizer, container: str) -> None:
    text = "Once upon a time, there was a café."
    path = tmp_path / f"a.{container}"
    if container.startswith("txt"):
        compress = {"txt": bytes, "txt.gz": gzip.compress, "txt.zst": zstandard.compress}[container]
        path.write_bytes(compress(f"{text}\n".encode()))
    else:
        write(path, {"text": text})
    request = request_of(path, {}, "score", tokenizer)
    assert request.token_ids == tuple(tokenizer(text)["input_ids"])
    assert request_of(path, {}, "generate", tokenizer).token_ids == tuple(
        tokenizer.apply_chat_template([user(text)], add_generation_prompt=True, return_dict=False)
    )
