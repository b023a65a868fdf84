"""Near-duplicates and decontamination, on texts whose similarity is known."""

import json
from pathlib import Path

import pytest

from llmdistill.config.prompts import DecontaminationConfig, NearDuplicatesConfig
from llmdistill.errors import DataError
from llmdistill.prompts.decontamination import EvaluationData
from llmdistill.prompts.duplicates import NearDuplicates
from llmdistill.prompts.ngrams import words
from llmdistill.prompts.rejects import DroppedRowError
from llmdistill.prompts.shapes import PromptRow
from tests.prompts.makers import assistant, chat, make, make_tokenizer, user, write_jsonl

WORDS = [f"w{number}" for number in range(100)]


def text(row: list[str], source: str = "a:1") -> PromptRow:
    return PromptRow(source, text=" ".join(row))


def passes(filter_, row: PromptRow) -> bool:
    try:
        filter_.check(row)
    except DroppedRowError:
        return False
    return True


@pytest.mark.parametrize(("threshold", "dropped"), [(0.90, True), (0.93, False)])
def test_the_decision_is_the_exact_jaccard_similarity(threshold: float, dropped: bool) -> None:
    # With single words: 95 in common of 105 is .9048; the order of words does not count.
    near = NearDuplicates(NearDuplicatesConfig(threshold=threshold, ngram=1))
    assert passes(near, text(WORDS))
    other = text([f"v{number}" for number in range(5)] + WORDS[:4:-1], "a:2")
    assert passes(near, other) is not dropped
    if dropped:
        with pytest.raises(DroppedRowError, match=r"near-duplicate: similarity 0\.90 to a:1"):
            near.check(other)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_all_pairs_above_the_threshold_are_found(threshold: float) -> None:
    for number in range(50):
        near = NearDuplicates(NearDuplicatesConfig(threshold=threshold, ngram=1))
        row = [f"{number} {word}".replace(" ", "_") for word in WORDS]
        assert passes(near, text(row))
        common = -(-round(threshold * 200) // 2)  # of 100 + (100 - common) words in all, at least the threshold
        assert not passes(near, text(row[:common]))


def test_case_punctuation_and_short_rows() -> None:
    near = NearDuplicates(NearDuplicatesConfig())
    assert passes(near, chat(user("What is 1 + 1?")))
    assert not passes(near, chat(user("what is 1... 1")))
    assert passes(near, chat(user("What is 1 + 2?")))
    assert passes(near, chat(user("?")))


def test_near_duplicates_are_listed_with_the_row_that_stays() -> None:
    rows = [text(WORDS, "a:1"), text([*WORDS[:-1], "x"], "a:2"), text(WORDS, "a:3")]
    corpus = make(rows, make_tokenizer(), near_duplicates={}, max_model_len=4096)
    assert [request.source for request in corpus.requests] == ["a:1"]
    assert [row.reason for row in corpus.rejected] == [
        "near-duplicate: similarity 0.98 to a:1",
        "duplicate: the same prompt as a:1",
    ]


@pytest.fixture
def evaluation(tmp_path: Path) -> EvaluationData:
    rows = [
        {"question": " ".join(WORDS[:20]), "answer": " ".join(WORDS[50:70])},
        {"question": "Why?", "answer": "Yes."},
    ]
    path = write_jsonl(tmp_path / "evaluation.jsonl", rows)
    return EvaluationData(DecontaminationConfig.model_validate({"sources": [{"path": str(path)}]}))


@pytest.mark.parametrize(
    ("row", "clean"),
    [
        (text(["so", *WORDS[3:16], "there"]), False),
        (text(["so", *WORDS[3:15], "there"]), True),
        (chat(user("Go on."), assistant("Then " + " ".join(WORDS[52:65]).upper() + "!")), False),
        (text([*WORDS[14:20], *WORDS[50:60]]), True),
        (chat(user("why")), False),
        (chat(user("Is it so?"), assistant("Yes.")), True),
        (chat(user("Why not?")), True),
        (chat(user("???")), True),
    ],
)
def test_thirteen_shared_words_or_a_whole_question_contaminate(evaluation, row: PromptRow, clean: bool) -> None:
    assert passes(evaluation, row) is clean


def test_contaminated_rows_are_listed_with_the_evaluation_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "evaluation.jsonl", [{"text": "Why?"}])
    rows = [chat(user("why")), chat(user("when"), source="a:2")]
    corpus = make(rows, make_tokenizer(), decontamination={"sources": [{"path": str(path)}]})
    assert [row.reason for row in corpus.rejected] == [f"contaminated: a user message is also in {path}:1"]
    assert [request.source for request in corpus.requests] == ["a:2"]


def test_evaluation_data_must_be_readable_in_full(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text(json.dumps({"text": "Why?"}) + "\nbad\n")
    with pytest.raises(DataError, match=r"evaluation\.jsonl:2: not JSON"):
        make([chat(user("Hi"))], make_tokenizer(), decontamination={"sources": [{"path": str(path)}]})


def test_words() -> None:
    assert words("The ﬁrst, “SECOND” 3rd—naïve") == ["the", "first", "second", "3rd", "naïve"]
