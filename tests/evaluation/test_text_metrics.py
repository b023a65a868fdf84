from __future__ import annotations

import pytest

from llmdistill.evaluation.intervals import Bootstrap
from llmdistill.evaluation.text_metrics import Answer, exact_match, gsm8k_match, rouge_l, score


def test_rouge_l_by_hand() -> None:
    """Longest common subsequence of 4 words, answer of 5 and reference of 6: F1 = 2·4/(5+6)."""
    assert rouge_l("the cat sat on mats", "the cat is on the mats") == pytest.approx(8 / 11)
    assert rouge_l("", "anything") == 0


def test_exact_match_forgives_case_and_white_space_only() -> None:
    assert exact_match(" Paris\n is  nice", "paris is nice") == 1
    assert exact_match("Paris.", "Paris") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("So she has 5 + 7 = 12.", "5+7 = <<5+7=12>>12\n#### 12", 1.0),
        ("The total is $1,200.50", "#### 1200.50", 1.0),
        ("It is 12, not 13", "#### 12", 0.0),
        ("no idea", "#### 12", 0.0),
        ("-3 degrees: -3", "#### -3", 1.0),
        ("The answer is 12", "The answer is 12", None),
    ],
)
def test_gsm8k_answers(answer: str, reference: str, right: float | None) -> None:
    assert gsm8k_match(answer, reference) == right


def test_scores_are_means_with_intervals_over_prompts() -> None:
    answers = [Answer(0, "12", "#### 12"), Answer(1, "5", "#### 6"), Answer(2, "yes", "yes"), Answer(2, "no", "yes")]
    result = score(answers, 3, Bootstrap(3, 200))
    assert result["gsm8k"] == 0.5  # of the two references with a number
    assert result["exact_match"] == pytest.approx(1 / 4)
    low, high = result["intervals"]["exact_match"]
    assert 0 <= low < result["exact_match"] < high
    assert score(answers[2:], 3, Bootstrap(3, 50))["gsm8k"] is None
