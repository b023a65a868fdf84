"""What the capture does not hold is refused when the file is read, with both ways out."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from llmdistill.config.objectives import AnyObjective, require_captured, require_sequence_level
from llmdistill.config.run import RunConfig

ADAPTER: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)
BASE = {"output": "x", "prompts": {"sources": [{"path": "a"}]}, "teacher": {"model": "t"}, "student": {"model": "s"}}
ROUNDS = {"count": 2, "steps": 5, "prompts": 10}
TOP_K = {"kind": "top_k", "temperatures": (2.0,), "mode": "generate", "sampling": (0.7, 1.0)}


def check(objective: dict, **capture: object) -> None:
    require_captured([ADAPTER.validate_python(objective)], **(TOP_K | capture))


@pytest.mark.parametrize(
    ("objective", "capture", "parts"),
    [
        (
            {"type": "jsd", "temperature": 3.0},
            {},
            ["objectives.0.temperature: 3 needs", "only 1, 2 is captured", "use 1.0"],
        ),
        (
            {"type": "forward_kl", "temperature": 2.0},
            {"kind": "sampled"},
            ["sampled entries are right on average at temperature 1 only", "use 1.0"],
        ),
        (
            {"type": "forward_kl", "tail": "ground_truth"},
            {},
            ["found sampling at temperature 0.7 and top_p 1", "use tail: bucket, or prompts.mode: generate"],
        ),
        (
            {"type": "forward_kl", "tail": "ground_truth", "text": "student"},
            {"sampling": (1.0, 1.0)},
            ["not on the student's; use tail: bucket, or text: teacher"],
        ),
        ({"type": "forward_kl", "tail": "ground_truth"}, {"mode": "score"}, ["found score", "use tail: bucket, or"]),
        (
            {"type": "forward_kl", "tail": "ground_truth", "temperature": 2.0},
            {"sampling": (1.0, 1.0)},
            ["holds at temperature 1 only, not at 2", "use tail: bucket, or temperature 1.0"],
        ),
        (
            {"type": "forward_kl", "tail": "bucket"},
            {"kind": "head_tail"},
            ["objectives.0.tail: head_tail entries", "leave it out, or use capture.kind: top_k"],
        ),
        (
            {"type": "reverse_kl"},
            {"kind": "sampled"},
            ["reverse_kl is not linear", "use forward_kl, or capture.kind: head_tail or top_k"],
        ),
        (
            {"type": "reverse_kl", "support": "student"},
            {},
            ["p of the student's; use support: teacher, or train.soft_labels: live"],
        ),
        ({"type": "hard_ce"}, {}, ["use sequence_ce, or prompts.mode: score"]),
    ],
)
def test_refused(objective: dict, capture: dict, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^objectives\.0\.") as caught:
        check(objective, **capture)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "capture"),
    [
        ({"type": "jsd", "temperature": 2.0}, {}),
        ({"type": "forward_kl", "tail": "ground_truth"}, {"sampling": (1.0, 1.0)}),
        ({"type": "forward_kl"}, {"kind": "sampled"}),
        ({"type": "forward_kl"}, {"kind": "head_tail"}),
        ({"type": "reverse_kl", "tail": "renormalize"}, {"kind": "head_tail"}),
        ({"type": "hard_ce"}, {"mode": "score"}),
        ({"type": "z_loss"}, {"kind": "sampled"}),
        ({"type": "policy_gradient"}, {"kind": "sampled"}),
        ({"type": "reverse_kl", "support": "student", "student_top_k": 8}, {"live": True}),
    ],
)
def test_accepted(objective: dict, capture: dict) -> None:
    parsed = ADAPTER.validate_python(objective)
    require_captured([parsed], **(TOP_K | capture))
    assert parsed.type == objective["type"]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"type": "alpha_beta", "alpha": 0.0, "beta": 0.0}, "use 1 and 0 for the forward KL"),
        ({"type": "reverse_kl", "student_top_k": 8}, "counts the ids of support: student; set that too"),
        ({"type": "policy_gradient", "text": "teacher"}, "'all' or 'student'"),
        ({"type": "policy_gradient", "discount": 1.5}, "less than or equal to 1"),
        ({"type": "jsd", "beta": 1.5}, "less than or equal to 1"),
        ({"type": "jsd", "temperature_schedule": {"start": 0.0}}, "start and end must be above 0"),
        ({"type": "jsd", "bta": 0.5}, "Extra inputs are not permitted"),
        ({"type": "taid", "tail": "none"}, "'bucket' or 'renormalize'"),
        ({"type": "reverse_kl", "tail": "ground_truth"}, "'bucket', 'renormalize' or 'none'"),
        ({"type": "hidden_mae"}, "does not match any of the expected tags"),
        ({"type": "sequence_ce", "schedule": {"shape": "step"}}, "'constant', 'linear' or 'cosine'"),
    ],
)
def test_options_that_make_no_sense(objective: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(objective)


def test_a_live_teacher_needs_no_capture_and_has_no_tail() -> None:
    check({"type": "jsd", "temperature": 3.0}, live=True)
    check({"type": "reverse_kl"}, kind="sampled", live=True)
    with pytest.raises(
        ValueError, match=r"objectives\.0\.tail: .* have no tail; leave it out, or use train\.soft_labels"
    ):
        check({"type": "jsd", "tail": "renormalize"}, live=True)
    moving = {"type": "forward_kl", "temperature_schedule": {"start": 4.0, "end": 1.0}}
    check(moving, live=True)
    with pytest.raises(ValueError, match=r"objectives\.0\.temperature_schedule: .* use a fixed one of these, or"):
        check(moving)


def test_a_type_may_stand_once_for_each_text() -> None:
    base = BASE | {"rounds": ROUNDS}
    kl, on_student = {"type": "forward_kl"}, {"type": "forward_kl", "text": "student"}
    config = RunConfig.model_validate(base | {"objectives": [kl, on_student]})
    assert [objective.name for objective in config.objectives] == ["forward_kl", "forward_kl_student"]
    best = {"metric_for_best_model": "eval_forward_kl_student"}
    assert RunConfig.model_validate(base | {"objectives": [kl, on_student], "train": best})
    with pytest.raises(ValidationError, match=r"once in objectives for each text, found \['forward_kl_student', 'forw"):
        RunConfig.model_validate(base | {"objectives": [on_student, on_student]})


TRUTH = {"type": "forward_kl", "tail": "ground_truth"}
DRAWN = {"sampling": {"temperature": 1.0, "top_p": 1.0}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"objectives": [{"type": "jsd", "text": "student"}]},
            r"objectives\.0\.text: .* add the section rounds, or use another text",
        ),
        ({"objectives": [{"type": "policy_gradient"}]}, "no record is the student's without rounds"),
        (
            {"objectives": [{"type": "policy_gradient"}], "rounds": ROUNDS | {"sampling": {"temperature": 0.7}}},
            r"objectives\.0\.type: .* use rounds\.sampling with temperature 1 and top_p 1, or reverse_kl",
        ),
        (
            {"objectives": [TRUTH], "teacher": {"model": "t"} | DRAWN, "rounds": ROUNDS},
            r"objectives\.0\.tail: .* rounds bring the student's; use text: teacher, or tail: bucket",
        ),
        (
            {"train": {"select": {"by": "perplexity", "keep": 0.5}}, "rounds": ROUNDS},
            "train.select: .* leave it out, or the rounds",
        ),
    ],
)
def test_text_that_is_not_there_is_refused(sections: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(BASE | {"objectives": [{"type": "forward_kl"}]} | sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"objectives": [{"type": "jsd", "text": "teacher"}]},
        {"objectives": [{"type": "policy_gradient"}], "rounds": ROUNDS},
        {"objectives": [{"type": "policy_gradient", "text": "all"}]},
        {"objectives": [TRUTH | {"text": "teacher"}], "teacher": {"model": "t"} | DRAWN, "rounds": ROUNDS},
        {"objectives": [TRUTH], "teacher": {"model": "t"} | DRAWN},
    ],
)
def test_text_that_is_there_is_accepted(sections: dict) -> None:
    assert RunConfig.model_validate(BASE | sections)


@pytest.mark.parametrize(
    "objective",
    [{"type": "forward_kl"}, {"type": "jsd"}, {"type": "hidden_mse"}, {"type": "relation"}, {"type": "attention_kl"}],
)
def test_rows_of_two_tokenizers_are_not_compared(objective: dict) -> None:
    parsed = [ADAPTER.validate_python({"type": "sequence_ce"}), ADAPTER.validate_python(objective)]
    message = rf"objectives\.1\.type: {objective['type']} compares .* token by token"
    with pytest.raises(ValueError, match=message) as caught:
        require_sequence_level(parsed)
    for way_out in ("sequence_ce", "likelihood_matching", "the teacher's tokenizer"):
        assert way_out in str(caught.value)


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "sequence_ce"},
        {"type": "hard_ce"},
        {"type": "z_loss"},
        {"type": "likelihood_matching"},
        {"type": "deep_supervision", "layers": [1]},
    ],
)
def test_tokens_and_texts_may_be_any_tokenizers(objective: dict) -> None:
    parsed = ADAPTER.validate_python(objective)
    require_sequence_level([parsed])
    with pytest.raises(ValueError, match=r"objectives\.1\.type: forward_kl"):
        require_sequence_level([parsed, ADAPTER.validate_python({"type": "forward_kl"})])


def test_objectives_are_frozen() -> None:
    objective = ADAPTER.validate_python({"type": "jsd"})
    with pytest.raises(ValidationError, match="frozen"):
        objective.weight = 2.0  # type: ignore[misc]


def test_no_torch() -> None:
    code = "import sys, llmdistill.config.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
