"""Hand-computed values, in float64; nothing here is compared with the formula that it tests."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from llmdistill.config.objectives import AnyObjective
from llmdistill.objectives.terms import Term, make_terms
from llmdistill.objectives.total import row_sums, row_values, weighted_total
from tests.objectives.makers import FLOAT, dense, logits_of, top_k

P, Q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]


def term(type: str, **options: object) -> Term:
    return make_terms([TypeAdapter(AnyObjective).validate_python({"type": type, **options})])[0]


VALUES = [
    ("forward_kl", {}, 0.0851228),
    ("reverse_kl", {}, 0.0920329),
    ("jsd", {}, 0.0219012),
    ("jsd", {"beta": 0.1}, 0.00769469),
    ("jsd", {"beta": 0.9}, 0.00818476),
    ("jsd", {"beta": 0.0}, 0.0851228),
    ("jsd", {"beta": 1.0}, 0.0920329),
    ("total_variation", {}, 0.2),
    # .7·log(.7/.52) + .2·log(.2/.29) + .1·log(.1/.19), and .5·log(.5/.68) + .3·log(.3/.21) + .2·log(.2/.11)
    ("skew_forward_kl", {"alpha": 0.1}, 0.06957797),
    ("skew_reverse_kl", {"alpha": 0.1}, 0.07282753),
    # 2 Σ (√p - √q)²
    ("alpha_beta", {}, 0.08808676),
    ("alpha_beta", {"alpha": 1.0, "beta": 0.0}, 0.0851228),
    ("alpha_beta", {"alpha": 0.0, "beta": 1.0}, 0.0920329),
    # ½ Σ (p - q)² = ½ (.04 + .01 + .01)
    ("alpha_beta", {"alpha": 1.0, "beta": 1.0}, 0.03),
    # |p - q| = .2, .1, .1; the head is the first id: w = ½
    ("adaptive_kl", {}, 0.5 * (0.0851228 + 0.0920329)),
    # the target stands at the teacher at the end of the training
    ("taid", {}, 0.0851228),
    ("hard_ce", {}, -math.log(0.5)),
    ("sequence_ce", {}, -math.log(0.5)),
]


@pytest.mark.parametrize(("name", "options", "expected"), VALUES)
def test_three_outcomes(name: str, options: dict[str, float], expected: float) -> None:
    for targets in (dense(logits_of(P)), top_k(logits_of(P), 3)):
        if name.endswith("_ce"):
            targets = dense(logits_of(P), actual=[0])
        value = row_values(logits_of(Q), targets, [term(name, **options)])
        assert value.dtype is FLOAT
        assert value.item() == pytest.approx(expected, abs=6e-8)


def test_taid_on_its_way() -> None:
    """Half way the target is √(p·q) normalised: (.35, .06, .02)^½ = .5916080, .2449490, .1414214 over .9779783."""
    objective = TypeAdapter(AnyObjective).validate_python({"type": "taid", "start": 0.5})
    value = row_values(logits_of(Q), dense(logits_of(P)), make_terms([objective], progress=0.0)).item()
    mixed = [0.6049296, 0.2504647, 0.1446059]
    assert value == pytest.approx(sum(m * math.log(m / q) for m, q in zip(mixed, Q, strict=True)), abs=2e-7)


def test_z_loss() -> None:
    logits = torch.tensor([[math.log(2.0), math.log(3.0), math.log(5.0)]], dtype=FLOAT)
    assert row_values(logits, dense(logits), [term("z_loss")]).item() == pytest.approx(math.log(10.0) ** 2)


@pytest.mark.parametrize(
    ("temperature", "value", "norm"), [(1.0, 1.1504208, 0.81347), (2.0, 1.2806267, 0.90554), (4.0, 1.3196299, 0.93312)]
)
@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_temperature(temperature: float, value: float, norm: float, kind: str) -> None:
    """T² stands in value and gradient exactly once."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]], dtype=FLOAT)
    student = torch.tensor([[0.0, 1.0, 2.0]], dtype=FLOAT, requires_grad=True)
    targets = dense(teacher) if kind == "dense" else top_k(teacher, 3, temperatures=(2.0, 4.0))
    found = row_sums(student, targets, [term("forward_kl", temperature=temperature)]).sum()
    found.backward()
    assert student.grad is not None
    assert found.item() == pytest.approx(value, abs=6e-8)
    assert student.grad.norm().item() == pytest.approx(norm, abs=6e-6)


def test_softmax_of_the_tutorials() -> None:
    """Logits (6, 3, 1): (.9465, .0471, .0064) at T = 1 and (.7662, .1710, .0629) at T = 2, seen through the losses."""
    logits = torch.tensor([[6.0, 3.0, 1.0]], dtype=FLOAT)
    losses = [row_values(logits, dense(logits, actual=[i]), [term("sequence_ce")]).item() for i in range(3)]
    assert [round(math.exp(-loss), 4) for loss in losses] == [0.9465, 0.0471, 0.0064]
    point = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=FLOAT)
    value = row_values(logits, dense(point), [term("forward_kl", temperature=2.0)]).item() / 4
    assert math.exp(-value) == pytest.approx(0.7662, abs=6e-5)


def test_top_k_has_a_tail() -> None:
    """P = (.4, .3, .3), q = (.6, .2, .2), one id kept: with the bucket above 0, without it below."""
    targets = top_k(logits_of([0.4, 0.3, 0.3]), 1)
    student = logits_of([0.6, 0.2, 0.2])
    assert row_values(student, targets, [term("forward_kl")]).item() == pytest.approx(0.0810930, abs=6e-8)
    assert row_values(student, targets, [term("forward_kl", tail="none")]).item() == pytest.approx(-0.162186, abs=6e-7)
    reverse = top_k(logits_of([0.9, 0.1]), 1)
    student = logits_of([0.6, 0.4])
    assert row_values(student, reverse, [term("reverse_kl")]).item() == pytest.approx(0.311239, abs=6e-7)
    assert row_values(student, reverse, [term("reverse_kl", tail="none")]).item() == pytest.approx(-0.243279, abs=6e-7)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "none"])
def test_both_sides_are_normalised_alike(tail: str) -> None:
    """P = q = (.6, .3, .1), two kept: 0 and no gradient. Renormalising the teacher alone would give .1053605."""
    student = logits_of([0.6, 0.3, 0.1]).requires_grad_()
    value = row_sums(student, top_k(logits_of([0.6, 0.3, 0.1]), 2), [term("forward_kl", tail=tail)]).sum()
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert student.grad is not None
    if tail != "none":
        assert student.grad.abs().max() < 1e-15


def test_the_denominator_is_the_global_step() -> None:
    """One micro-batch of 1 token with loss 4 and one of 3 tokens with loss 1 each: 1.75, and not 2.5."""
    terms = [term("sequence_ce")]

    def sums(losses: list[float]) -> torch.Tensor:
        student = logits_of(*([math.exp(-loss), 1 - math.exp(-loss)] for loss in losses))
        return row_sums(student, dense(torch.zeros_like(student)), terms)

    parts = [weighted_total(sums(losses), terms, 4) for losses in ([4.0], [1.0, 1.0, 1.0])]
    assert sum(parts).item() == pytest.approx(1.75)


def test_a_value_per_token_knows_no_vocabulary_and_no_padding() -> None:
    """Two equal tokens: the mean is the value of one (torch's 'mean' would divide by V too, 'batchmean' by 1)."""
    teacher, student = (
        torch.tensor([[2.0, 1.0, 0.0]] * 2, dtype=FLOAT),
        torch.tensor([[0.0, 1.0, 2.0]] * 2, dtype=FLOAT),
    )
    terms = [term("forward_kl")]
    assert weighted_total(row_sums(student, dense(teacher), terms), terms, 2).item() == pytest.approx(1.1504208)
    wide = [torch.nn.functional.pad(side, (0, 5), value=-torch.inf) for side in (student, teacher)]
    assert weighted_total(row_sums(wide[0], dense(wide[1]), terms), terms, 2).item() == pytest.approx(1.1504208)


def test_record_weights_count_rows() -> None:
    student = logits_of([0.5, 0.5], [0.25, 0.75], [0.1, 0.9])
    plain = dense(torch.zeros_like(student))
    weighted = type(plain)(
        actual_ids_R=plain.actual_ids_R, logits_RV=plain.logits_RV, row_weights_R=torch.tensor([1.0, 0.0, 2.0])
    )
    found = row_sums(student, weighted, [term("sequence_ce")]).item()
    assert found == pytest.approx(-math.log(0.5) - 2 * math.log(0.1))
