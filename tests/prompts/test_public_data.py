"""Files of public data sets as they are published: each is read in full, with a `columns:` line at most."""

from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.shapes import LATER_TURNS
from tests.prompts.makers import make, read, usable

DATA = Path(__file__).parents[3] / "shared" / "data"
TURNS = {"prompt": "turns"}
INSTANCES = {"input": "instances.input", "output": "instances.output"}

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"there is no folder {DATA.parent.name}/data beside the repository"
)


@pytest.mark.parametrize(
    ("name", "columns", "count", "roles"),
    [
        ("gsm8k_train.jsonl", {}, 7473, {"user assistant"}),
        ("gsm8k_test.jsonl", {}, 1319, {"user assistant"}),
        ("mt_bench_questions.jsonl", TURNS, 80, {"user"}),
        ("vicuna_questions.jsonl", TURNS, 80, {"user"}),
        ("self_instruct_seed_tasks.jsonl", INSTANCES, 175, {"user assistant"}),
        ("self_instruct_user_oriented.jsonl", INSTANCES, 252, {"user assistant"}),
        ("tinyshakespeare.txt", {}, 32777, {"text"}),
        ("wikitext2_test.txt", {}, 2891, {"text"}),
        ("wikitext2_valid.txt", {}, 2461, {"text"}),
    ],
)
def test_every_row_of_a_published_file_is_read(name: str, columns: dict[str, str], count: int, roles: set[str]) -> None:
    rows = read(DATA / name, columns=columns)
    assert len(usable(rows)) == len(rows) == count
    assert {" ".join(m["role"] for m in row.messages) if row.messages else "text" for row in usable(rows)} == roles


def test_published_questions_become_requests(tokenizer) -> None:
    sources = [
        {"path": str(DATA / name), "columns": TURNS} for name in ("vicuna_questions.jsonl", "mt_bench_questions.jsonl")
    ]
    corpus = make(read_prompts(PromptsConfig.model_validate({"sources": sources})), tokenizer)
    assert len(corpus.requests) == 158
    assert [row.reason.partition(":")[0] for row in corpus.rejected] == ["duplicate"] * 2
    assert corpus.changes == {LATER_TURNS: 78}


def test_a_training_set_is_clean_of_its_test_set(tokenizer) -> None:
    source = {"path": str(DATA / "gsm8k_test.jsonl")}
    config = PromptsConfig.model_validate(
        {"sources": [source, {"path": str(DATA / "vicuna_questions.jsonl"), "columns": TURNS}]}
    )
    corpus = make(read_prompts(config), tokenizer, decontamination={"sources": [source]})
    assert [row.reason.partition(":")[0] for row in corpus.rejected] == ["contaminated"] * 1319
    assert len(corpus.requests) == 80
