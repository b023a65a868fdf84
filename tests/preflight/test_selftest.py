"""The self-test passes on what is shipped, and shows each fault that it is there to show."""

import dataclasses
from typing import Any

import pytest
import torch

from llmdistill.objectives import cross_entropy, terms
from llmdistill.preflight.selftest import self_test
from llmdistill.teacher import extract
from llmdistill.trainer import model
from tests.preflight.makers import make_config

ALL = [
    {"type": "forward_kl"}, {"type": "reverse_kl"}, {"type": "jsd"}, {"type": "skew_forward_kl"}, {"type": "taid"},
    {"type": "skew_reverse_kl"}, {"type": "adaptive_kl"}, {"type": "total_variation"}, {"type": "alpha_beta"},
    {"type": "hard_ce"}, {"type": "sequence_ce"}, {"type": "z_loss"},
]  # fmt: skip
ROUNDS = {"count": 2, "steps": 5, "prompts": 10}


def levels(config: Any) -> dict[str, str]:
    return {finding.check.removeprefix("self-test: "): finding.level for finding in self_test(config)}


@pytest.mark.parametrize("logprobs", ["u4", "u8", "u12", "f16"])
def test_everything_that_is_shipped_passes(logprobs: str) -> None:
    config = make_config(
        objectives=ALL, prompts={"mode": "score"}, capture={"logprobs": logprobs, "compression": "zstd"}
    )
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


@pytest.mark.parametrize("kind", ["sampled", "head_tail"])
def test_drawn_captures_pass(kind: str) -> None:
    config = make_config(objectives=[ALL[0], ALL[10]], capture={"kind": kind})
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


def test_live_teachers_and_inner_objectives_pass() -> None:
    inner = [
        {"type": "hidden_mse", "layers": [[12, 30]]}, {"type": "attention_kl"}, {"type": "relation", "heads": 9},
        {"type": "relational_angle"}, {"type": "deep_supervision", "layers": [6]}, {"type": "contrastive"},
        {"type": "self_distillation", "model": "runs/first/student"},
    ]  # fmt: skip
    config = make_config(objectives=[ALL[0], *inner], train={"soft_labels": "live"})
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


def test_objectives_on_either_text_pass() -> None:
    config = make_config(
        objectives=[ALL[3] | {"text": "teacher"}, ALL[5] | {"text": "student"}, ALL[10]], rounds=ROUNDS
    )
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_policy_gradients_pass(kind: str) -> None:
    objectives = [{"type": "policy_gradient"}, {"type": "policy_gradient", "text": "all", "discount": 0.9}]
    config = make_config(objectives=objectives, capture={"kind": kind}, rounds=ROUNDS)
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


def test_the_students_support_passes() -> None:
    objectives = [{"type": "reverse_kl", "support": "student", "student_top_k": 5}, {"type": "policy_gradient"}]
    config = make_config(objectives=objectives, train={"soft_labels": "live"}, rounds=ROUNDS)
    assert levels(config) == {"alignment": "ok", "gradients": "ok", "accumulation": "ok"}


def test_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    self_test(make_config())
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_that_are_one_position_off_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = extract.rows_of_prompt

    def shifted(*arguments: Any) -> Any:
        rows = right(*arguments)
        return dataclasses.replace(rows, ids_RK=rows.ids_RK[::-1].copy(), logprobs_RK=rows.logprobs_RK[::-1].copy())

    monkeypatch.setattr(extract, "rows_of_prompt", shifted)
    assert levels(make_config())["alignment"] == "error"


@pytest.mark.parametrize(("factor", "dead"), [(0.0, "sequence_ce"), (float("nan"), "forward_kl, sequence_ce")])
def test_an_objective_without_a_usable_gradient_is_named(
    factor: float, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        terms._TOKEN_VALUES, "sequence_ce", lambda rows: cross_entropy.token_ce(rows.student()) * factor
    )
    (found,) = [item for item in self_test(make_config(objectives=ALL[:1] + ALL[10:11])) if "gradients" in item.check]
    assert found.level == "error"
    assert f"no usable gradient of {dead}:" in found.what


def test_a_mean_of_means_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = model.ObjectivesHead.forward

    def mean(self: Any, passes: Any, weight: Any, targets: Any, batch: Any, *rest: Any) -> Any:
        total, values, squares = right(self, passes, weight, targets, batch, *rest)
        return total / len(batch.row_slots_R), values, squares

    monkeypatch.setattr(model.ObjectivesHead, "forward", mean)
    assert levels(make_config())["accumulation"] == "error"
