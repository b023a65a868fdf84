import dataclasses

import pytest

from llmdistill.preflight.check_tokenizers import check_ends, check_template, check_tokenizers, check_vocabulary
from llmdistill.preflight.facts import Facts
from tests.preflight.makers import make_config, make_facts, make_model, make_tokenizer


def pair(teacher, student) -> Facts:
    return make_facts(teacher=make_model(tokenizer=teacher), student=make_model("student", student))


def test_case_v1_widths_are_reconciled_and_explained() -> None:
    """7B and larger Qwen2.5 (152,064) to 0.5B (151,936), with a tokenizer of 151,665."""
    tokenizer = make_tokenizer(151_665)
    facts = make_facts(
        teacher=make_model(tokenizer=tokenizer, vocab_size=152_064),
        student=make_model("student", tokenizer, vocab_size=151_936),
    )
    (found,) = check_vocabulary(make_config(), facts)
    assert found.level == "ok"
    for number in ("152,064", "151,936", "151,665", "399 of the teacher's", "271 of the student's"):
        assert number in found.what


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_head_narrower_than_the_tokenizer_is_refused(name: str) -> None:
    (found,) = check_vocabulary(make_config(), make_facts(**{name: make_model(name, vocab_size=99)}))
    assert (found.level, found.exit_status) == ("error", 2)
    assert f"the {name}'s head has 99 columns" in found.what
    assert "at least 100" in found.fix


def test_case_v2_swapped_ids_name_a_token_and_both_ids_and_offer_the_other_way() -> None:
    ids = {**make_tokenizer().ids, "t7": 8, "t8": 7}
    (found,) = check_tokenizers(make_config(), pair(make_tokenizer(), make_tokenizer(ids=ids)))
    assert (found.level, found.exit_status) == ("error", 2)
    assert "'t7' is 7 for the teacher and 8 for the student" in found.what
    assert "2 of 100" in found.what
    assert "sequence-level" in found.fix


def test_case_v2_a_superset_with_equal_ids_is_accepted() -> None:
    (found,) = check_tokenizers(make_config(), pair(make_tokenizer(100), make_tokenizer(103)))
    assert found.level == "ok"
    assert "100 common tokens" in found.what
    assert "3 more" in found.what


def test_case_v2_a_prefix_is_accepted_with_a_word() -> None:
    (found,) = check_tokenizers(make_config(), pair(make_tokenizer(100), make_tokenizer(98)))
    assert found.level == "warning"
    assert "2 of the teacher's" in found.what
    assert "'t98' (98)" in found.what


OWN = {"student": {"model": "student", "tokenizer": "own"}, "objectives": [{"type": "sequence_ce"}]}


def test_a_student_with_its_own_tokenizer_needs_an_end_and_a_template() -> None:
    other = make_tokenizer(ids={"x": 0, "y": 1}, size=2, end_id=1)
    facts, config = pair(make_tokenizer(), other), make_config(**OWN)
    checks = (check_tokenizers, check_vocabulary, check_ends, check_template)
    assert [check(config, facts)[0].level for check in checks] == ["ok"] * 4
    assert "2 tokens beside the teacher's 100" in check_tokenizers(config, facts)[0].what
    assert "1 ('y')" in check_ends(config, facts)[0].what
    bare = pair(make_tokenizer(), dataclasses.replace(other, end_id=None, template=None))
    assert [check(config, bare)[0].level for check in (check_ends, check_template)] == ["error", "error"]
    without = make_facts(student=dataclasses.replace(make_model("student"), tokenizer=None))
    assert check_tokenizers(config, without)[0].level == "error"


def test_an_own_tokenizer_that_is_the_teachers_is_a_waste() -> None:
    (found,) = check_tokenizers(make_config(**OWN), pair(make_tokenizer(), make_tokenizer()))
    assert found.level == "warning"
    assert "student.tokenizer: teacher" in found.fix


def test_an_id_that_means_another_token_is_a_conflict_too() -> None:
    ids = {name: number for name, number in make_tokenizer().ids.items() if name != "t5"} | {"other": 5}
    (found,) = check_tokenizers(make_config(), pair(make_tokenizer(), make_tokenizer(ids=ids)))
    assert found.level == "error"
    assert "5 is 't5' for the teacher and 'other' for the student" in found.what


def test_layers_of_the_teacher_have_its_tokenizer() -> None:
    (found,) = check_tokenizers(make_config(student={"from_teacher": {"layers": 2}}), make_facts())
    assert found.level == "ok"


def test_end_tokens_are_compared() -> None:
    assert check_ends(make_config(), make_facts())[0].level == "ok"
    other = pair(make_tokenizer(), make_tokenizer(end_id=3))
    (found,) = check_ends(make_config(), other)
    assert found.level == "warning"
    assert "99 ('t99')" in found.what
    assert "3 ('t3')" in found.what
    (found,) = check_ends(make_config(), pair(make_tokenizer(end_id=None), make_tokenizer()))
    assert found.level == "error"


def test_a_teacher_that_stops_elsewhere_than_its_tokenizer_says_is_shown() -> None:
    teacher = dataclasses.replace(make_model(), generation_ends=(4,))
    (found,) = check_ends(make_config(), make_facts(teacher=teacher))
    assert found.level == "warning"
    assert "generation_config.json with 4 ('t4')" in found.what


def test_templates_are_compared_and_one_is_needed_to_generate() -> None:
    assert check_template(make_config(), make_facts())[0].level == "ok"
    assert check_template(make_config(), pair(make_tokenizer(), make_tokenizer(template="x")))[0].level == "warning"
    without = pair(make_tokenizer(template=None), make_tokenizer())
    assert check_template(make_config(), without)[0].exit_status == 2
    assert check_template(make_config(prompts={"mode": "score"}), without)[0].level == "ok"
