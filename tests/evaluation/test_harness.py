from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.evaluation.harness import require_harness, run_tasks
from llmdistill.prompts.render import load_tokenizer
from llmdistill.student.creation import load_student

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the optional lm-eval harness is not installed"
)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of 12 questions that lm-eval reads from a file of this folder."""
    rows = [
        {"question": f"Two and {n} are", "choices": [str(n + 2), str(n + 3), "a fish"], "gold": 0} for n in range(12)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "sums.yaml"
    file.write_text(
        "task: sums\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'sums.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    return file


@needs_harness
@pytest.mark.timeout(300)
def test_figures_are_those_of_the_harness_and_of_the_model(
    task: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = run_tasks(tiny_teacher, [str(task)], limit=None)["sums"]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    arguments = {"pretrained": str(tiny_teacher), "device": "cpu", "batch_size": 4}
    own = simple_evaluate("hf", model_args=arguments, tasks=["sums"], task_manager=manager)["results"]["sums"]
    for metric in ("acc,none", "acc_norm,none", "acc_stderr,none"):
        assert found[metric] == pytest.approx(own[metric], abs=1e-4), metric

    # And those of the model itself: the choice with the largest sum of log-probabilities.
    model, tokenizer = load_student(tiny_teacher, torch.bfloat16).eval(), load_tokenizer(tiny_teacher)
    right = 0
    for row in map(json.loads, (tmp_path / "sums.jsonl").read_text().splitlines()):
        context = tokenizer(row["question"])["input_ids"]
        sums = []
        for choice in row["choices"]:
            whole = torch.tensor(tokenizer(f"{row['question']} {choice}")["input_ids"])
            with torch.inference_mode():
                logprobs = model(whole.unsqueeze(0)).logits[0].float().log_softmax(-1)
            sums.append(logprobs[:-1].gather(1, whole[1:, None])[len(context) - 1 :].sum().item())
        right += int(np.argmax(sums) == row["gold"])
    assert found["acc,none"] == pytest.approx(right / 12)


@needs_harness
def test_an_unknown_task_is_named(tiny_teacher: Path) -> None:
    with pytest.raises(ConfigError, match="knows no task no_such_task"):
        run_tasks(tiny_teacher, ["no_such_task"], limit=1)


@needs_harness
def test_a_file_that_is_no_task_is_named(tmp_path: Path, tiny_teacher: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"list\.yaml: is no task"):
        run_tasks(tiny_teacher, [str(tmp_path / "list.yaml")], limit=1)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"llmdistill\[lm-eval\]"):
        require_harness()
