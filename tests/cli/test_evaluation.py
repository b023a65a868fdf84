"""The evaluate stage on a cache that the fake engine filled: no Ray, no training, the real models and files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.cli import stages
from llmdistill.cli.evaluation import evaluate_run
from llmdistill.cli.teachers import capture_spec
from llmdistill.config.evaluate import GenerationConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.evaluation.methods import METRICS
from llmdistill.observe.provenance import provenance
from llmdistill.observe.report.page import write_report
from llmdistill.observe.run_folder import RunFolder
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.requests import make_requests
from llmdistill.student.creation import create_from_teacher
from llmdistill.teacher.fake_engine import FakeEngine


@pytest.fixture
def run(tiny_teacher: Path, tokenizer, tmp_path: Path) -> stages.Run:
    """A run that has got as far as export; its prompts come from two files, of which one has answers."""
    for name in ("sums", "facts"):
        rows = [{"question": f"Tell me of {name} {n}.", "gold": f"{n} it is\n#### {n}"} for n in range(12)]
        if name == "sums":
            rows = [row | {"answer": "Its answer is 7.\n#### 7"} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "prompts": {
                "sources": [{"path": str(tmp_path / f"{n}.jsonl")} for n in ("sums", "facts")],
                "held_out": 0.5,
            },
            "teacher": {
                "model": str(tiny_teacher),
                "engine": "fake",
                "max_model_len": 128,
                "sampling": {"max_new_tokens": 12, "temperature": 1.0},
            },
            "capture": {"top_k": 16},
            "student": {"from_teacher": {"layers": 2}},
            "objectives": [{"type": "forward_kl"}],
            "evaluate": {"baseline": False, "bootstrap": 100, "samples": 2, "speed": None},
        }
    )
    found = stages.Run(config, RunFolder(tmp_path / "run"))
    found.folder.path.mkdir()
    spec = capture_spec(config, config.teacher, found.tokenizer_folder, tokenizer)
    asked = {"teacher": (config.teacher, spec)}
    requests = make_requests(read_prompts(config.prompts), tokenizer, config.prompts, asked).requests
    engine = FakeEngine(config.teacher, config.capture, len(tokenizer), tokenizer.eos_token_id)
    records = [asyncio.run(engine.answer(request)) for request in requests]
    write_shard(shard_folder(found.folder.cache), records, spec, "fake-1")
    write_index(found.folder.cache)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), found.folder.untrained)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=3), found.folder.student)
    return found


def evaluated(run: stages.Run, **changes: object) -> dict:
    settings = run.config.evaluate.model_copy(update=changes)
    config = run.config.model_copy(update={"evaluate": settings})
    models = {"untrained": run.folder.untrained, "student": run.folder.student}
    evaluate_run(config, run.folder, models, lambda: run.teacher_folder, lambda line: None)
    return json.loads(run.folder.evaluation.read_text())


def test_one_document_holds_every_part(run: stages.Run) -> None:
    document = evaluated(run)
    assert set(document["models"]) == {"untrained", "student"}
    assert document["comparison"]["baseline"] == "untrained"
    for values in document["models"].values():
        assert all(values[metric] is not None for metric in METRICS)
        low, high = values["intervals"]["kl"]
        assert low <= values["kl"] <= high
        for kind in ("source", "position", "entropy"):
            assert sum(group["rows"] for group in values["by"][kind].values()) == document["held_out_rows"]
    sources = document["models"]["student"]["by"]["source"]
    assert set(sources) == {"sums", "facts"}
    assert sum(group["records"] for group in sources.values()) == document["held_out_records"]
    assert document["shape"]["layers_from"] == [0, 3]
    assert len(document["samples"]) == 2
    for sample in document["samples"]:
        assert len(sample["tokens"]) == len(sample["kl"]["student"]) <= 12
        assert "<|im_start|>user\nTell me of" in sample["prompt"]
    run.folder.config.write_text(run.config.model_dump_json())
    run.folder.provenance.write_text(json.dumps(provenance()))
    page = write_report(run.folder).read_text()
    assert f"{document['models']['student']['kl']:.4f}" in page
    assert "sums.jsonl" in page


@pytest.mark.timeout(300)
def test_references_of_the_corpus_go_before_responses_of_the_cache(
    run: stages.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are planted; what is tested is which reference each meets. tests/teacher/test_respond.py has vLLM."""
    asked: list[list] = []

    def respond(folder: Path, teacher: object, requests: list) -> list[list[int]]:
        asked.append(requests)
        return [[2] for _ in requests]  # the end token alone: an empty answer

    monkeypatch.setattr("llmdistill.teacher.respond.respond", respond)
    generation = evaluated(run, generation=GenerationConfig(prompts=5, samples=2, reference="gold"))["generation"]
    assert (generation["prompts"], generation["references_from_corpus"]) == (5, 5)
    student = generation["models"]["student"]
    assert (student["greedy"]["answers"], student["sampled"]["answers"]) == (5, 10)
    assert student["greedy"]["gsm8k"] == 0.0
    assert [sampling.temperature for _, sampling, _ in asked[0]] == [0.0] * 5 + [1.0] * 10
    assert len({seed for _, _, seed in asked[0][5:]}) == 10
    other = evaluated(run, generation=GenerationConfig(prompts=5, reference="absent"))["generation"]
    assert (other["references_from_corpus"], other["references_from_cache"]) == (0, 5)
    assert other["models"]["student"]["greedy"]["gsm8k"] is None


@pytest.mark.timeout(300)
def test_the_rows_own_answers_are_references_that_no_teacher_saw(
    run: stages.Run, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llmdistill.teacher.respond.respond",
        lambda folder, teacher, requests: [tokenizer.encode("It is 7") for _ in requests],
    )
    document = evaluated(run, generation=GenerationConfig())
    own = document["models"]["student"]["by"]["source"][run.config.prompts.sources[0].known_as]["records"]
    generation = document["generation"]
    assert 0 < own < generation["prompts"] == document["held_out_records"]
    assert (generation["references_from_corpus"], generation["references_from_cache"]) == (
        own,
        generation["prompts"] - own,
    )
    assert generation["models"]["student"]["greedy"]["gsm8k"] == 1.0
    reader = CacheReader(run.folder.cache)
    texts = [tokenizer.decode(reader.read(number).token_ids_N) for number in range(len(reader))]
    assert any("Tell me of sums" in text for text in texts)
    assert not any("Its answer" in text for text in texts)


def test_without_prompt_files_and_teacher_the_cache_is_enough(run: stages.Run) -> None:
    for source in run.config.prompts.sources:
        Path(source.path).unlink()

    def absent() -> Path:
        raise ConfigError("no such teacher")

    models = {"untrained": run.folder.untrained, "student": run.folder.student}
    evaluate_run(run.config, run.folder, models, absent, lambda line: None)
    document = json.loads(run.folder.evaluation.read_text())
    assert document["models"]["student"]["by"]["source"] is None
    assert document["groups_undefined"] == {"source": "the records hold no source"}
    assert document["shape"]["teacher"] is None
    assert document["models"]["student"]["kl"] > 0


def test_a_run_without_held_out_records_is_refused(run: stages.Run) -> None:
    config = run.config.model_copy(update={"prompts": run.config.prompts.model_copy(update={"held_out": 0.0})})
    with pytest.raises(DataError, match=r"raise prompts\.held_out"):
        evaluate_run(config, run.folder, {"student": run.folder.student}, lambda: run.teacher_folder, lambda line: None)
