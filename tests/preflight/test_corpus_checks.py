import json
from pathlib import Path

import pytest

from llmdistill.preflight import corpus
from llmdistill.preflight.check_corpus import check_lengths, check_rows
from llmdistill.preflight.corpus import sample_corpus
from tests.preflight.makers import make_config, make_corpus, make_facts


def test_case_l8_too_long_prompts_are_counted_and_named() -> None:
    """Longest sequence 16, prompts of 5, 16 and 40 ids: room for one new token is needed."""
    config = make_config(
        teacher={"max_model_len": 16, "sampling": {"max_new_tokens": 1}},
        train={"sequence_length": 16, "tokens_per_step": 16},
    )
    found, sequences = check_lengths(config, make_facts(corpus=make_corpus((5, 16, 40))))
    assert found.level == "warning"
    assert "2 of 3 sampled rows" in found.what
    assert "prompts.jsonl:3 has 40, prompts.jsonl:2 has 16" in found.what
    assert "teacher.max_model_len=41" in found.fix
    assert sequences.level == "ok"


def test_nothing_but_too_long_prompts_is_an_error() -> None:
    config = make_config(teacher={"max_model_len": 64, "sampling": {"max_new_tokens": 64}})
    (found,) = check_lengths(config, make_facts())
    assert (found.level, found.exit_status) == ("error", 2)


@pytest.mark.parametrize(("mode", "level"), [("generate", "warning"), ("score", "error")])
def test_records_that_no_sequence_holds_are_found_before_the_teacher_runs(mode: str, level: str) -> None:
    config = make_config(prompts={"mode": mode}, train={"sequence_length": 64, "tokens_per_step": 64})
    facts = make_facts(corpus=make_corpus((10, 20, 30) if mode == "generate" else (10, 20, 70)))
    found = check_lengths(config, facts)[1]
    assert found.level == level
    assert f"train.sequence_length={94 if mode == 'generate' else 70}" in found.fix


def test_rows_that_cannot_be_used_are_shown() -> None:
    facts = make_facts(corpus=make_corpus(rejected=(("prompts.jsonl:9", "not JSON"),), sampled=4, rows=4))
    (found,) = check_rows(make_config(), facts)
    assert found.level == "warning"
    assert "1 of 4" in found.what
    assert "prompts.jsonl:9: not JSON" in found.what


def test_a_large_corpus_is_judged_by_a_sample(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SCANNED_ROWS", 50)
    monkeypatch.setattr(corpus, "SAMPLED_ROWS", 10)
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Tell me about {n}. " + "long " * (50 * (n == 25))}]}
        for n in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(prompts={"sources": [{"path": str(path)}]}, teacher={"max_model_len": 8})
    found = sample_corpus(config, tokenizer)
    assert (found.rows, found.exact, found.sampled, len(found.lengths)) == (80, True, 10, 10)
    assert max(found.lengths) > 50
    assert found.sources[found.lengths.index(max(found.lengths))] == f"{path}:26"
    monkeypatch.setattr(corpus, "_COUNTING_SECONDS", -1.0)
    assert corpus._count(iter(range(5000))) == (1000, False)
    assert corpus._count(iter(range(999))) == (999, True)
