"""What doctor says of rounds, before anything is paid."""

import re

import pytest

from llmdistill.preflight.check_rounds import check_rounds
from llmdistill.preflight.check_run import check_batch
from tests.preflight.makers import make_config, make_corpus, make_facts, make_machine


def rounds_of(**settings: object):
    return make_config(
        prompts={"held_out": 0.0},
        rounds={"count": 4, "steps": 10, "prompts": 3, "sampling": {"temperature": 1.0}} | settings,
    )


def test_what_fits_is_said() -> None:
    (found,) = check_rounds(rounds_of(), make_facts(corpus=make_corpus((10, 20, 30))))
    assert found.level == "ok" and "4 rounds of 3 of 3 prompts and 10 steps" in found.what
    assert "40 steps in 4 rounds" in check_batch(rounds_of(), make_facts(), None)[0].what
    assert check_rounds(make_config(), make_facts()) == []


@pytest.mark.parametrize(
    ("settings", "what", "fix", "status"),
    [
        ({"prompts": 9}, "wants 9 prompts, the corpus has about 3", "rounds.prompts=3", 2),
        ({"sampling": {"max_new_tokens": 1010}}, "up to 1040 tokens, more than train.sequence_length 1024", "1040", 2),
        ({"ahead": True}, r"at once \(rounds.ahead\) need 3 of CPU, this machine has 2", "ahead to false", 4),
        ({"replicas": 5}, "the student's replicas need 5 of CPU", "lower rounds.replicas", 4),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, what: str, fix: str, status: int) -> None:
    facts = make_facts(corpus=make_corpus((10, 20, 30)), machine=make_machine(cpus=2))
    (found,) = [finding for finding in check_rounds(rounds_of(**settings), facts) if finding.level == "error"]
    assert found.exit_status == status
    assert fix in found.fix
    assert re.search(what, found.what)
