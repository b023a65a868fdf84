"""Hidden states, attention maps, relations and geometry, on hand-made tensors."""

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.objectives.attention import attention_kl, attention_mse, require_attentions
from llmdistill.objectives.hidden import hidden_cosine, hidden_mse
from llmdistill.objectives.layer_map import LayerPair, explicit_map, last_map, uniform_map
from llmdistill.objectives.relation import relation
from llmdistill.objectives.relational import relational_angle, relational_distance
from tests.objectives.makers import FLOAT, random_logits


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((4, 28), [(1, 7), (2, 14), (3, 21), (4, 28)]),
        ((2, 3), [(1, 2), (2, 3)]),
        ((3, 3), [(1, 1), (2, 2), (3, 3)]),
        ((12, 30, 3), [(4, 10), (8, 20), (12, 30)]),
        ((6, 12, 1), [(6, 12)]),
    ],
)
def test_uniform_map(sizes: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert uniform_map(*sizes) == [LayerPair(*pair) for pair in expected]


def test_every_map_pairs_the_same_kind_of_state() -> None:
    """The last entry of `hidden_states` is after the final norm, all others before it."""
    for student in range(1, 9):
        for teacher in range(student, 33):
            for pair in (*uniform_map(student, teacher), *last_map(student, teacher, count=student)):
                assert (pair.student == student) == (pair.teacher == teacher)
                assert 0 <= pair.teacher <= teacher
    assert last_map(4, 28, 2) == [LayerPair(3, 27), LayerPair(4, 28)]
    with pytest.raises(ConfigError, match=r"\(4, 27\) pairs a state after the final norm with one before it"):
        explicit_map([(4, 27)], 4, 28)
    with pytest.raises(ConfigError, match=r"\(6, 12\) is not a pair of layers 0 … 11"):
        explicit_map([(6, 12)], 11, 11)
    with pytest.raises(ConfigError, match="at least as deep"):
        uniform_map(5, 4)


def test_hidden_values_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    assert hidden_mse(student, teacher).tolist() == [4.5, 2.5]
    assert hidden_cosine(student, teacher).tolist() == pytest.approx([0.2, 1.0])
    assert hidden_mse(teacher.bfloat16(), teacher.bfloat16()).dtype is torch.float32
    assert hidden_cosine(torch.zeros(1, 2), teacher[:1]).isfinite().all()


def test_other_widths_are_refused_and_never_reshaped() -> None:
    for function in (hidden_mse, hidden_cosine):
        with pytest.raises(ValueError, match=r"\(4, 16\) and the teacher's \(2, 32\).*project"):
            function(torch.zeros(4, 16), torch.zeros(2, 32))


def test_attention_by_hand() -> None:
    teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], dtype=FLOAT)
    student = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]], dtype=FLOAT)
    rows = torch.tensor([[True, True]])
    expected = 0.5 * math.log(2.0) + 0.5 * math.log(0.5 / 0.75)
    assert attention_kl(student, teacher, rows).tolist() == pytest.approx([0.0, expected])
    assert attention_mse(student, teacher, rows).tolist() == pytest.approx([0.0, 0.125])
    assert attention_kl(student, teacher, torch.tensor([[False, True]])).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("function", [attention_kl, attention_mse])
def test_attention_of_other_heads_and_with_padding(function: object) -> None:
    teacher, student = numbers(2, 4, 5, 5).softmax(3), numbers(2, 2, 5, 5, seed=1).softmax(3).requires_grad_()
    rows = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = function(student, teacher, rows)
    assert found.shape == (7,)
    averaged = function(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True), rows)
    torch.testing.assert_close(found, averaged)
    wide = [torch.nn.functional.pad(side, (0, 3, 0, 3)) for side in (student, teacher)]
    padded = function(*wide, torch.nn.functional.pad(rows, (0, 3)))
    torch.testing.assert_close(padded, found)
    (gradient,) = torch.autograd.grad(padded.sum(), student)
    assert gradient.isfinite().all()
    assert gradient[1, :, 2:].abs().max() == 0.0


def test_missing_attention_maps_are_an_error() -> None:
    for attentions in (None, (), (None, None)):
        with pytest.raises(ConfigError, match="0 attention maps for 2 layers") as caught:
            require_attentions(attentions, 2)
        assert "attn_implementation='eager'" in str(caught.value)
    assert len(require_attentions((torch.zeros(1), torch.zeros(1)), 2)) == 2


def test_relation_by_hand() -> None:
    """Two tokens, one head of width 1: teacher (1, 1) relates evenly, student (1, 0) by softmax (1, 0)."""
    teacher, student = torch.ones(1, 2, 1, dtype=FLOAT), torch.tensor([[[1.0], [0.0]]], dtype=FLOAT)
    first = math.log(0.5) - 0.5 * (math.log(0.7310586) + math.log(0.2689414))
    found = relation(student, teacher, torch.tensor([[0, 0]]), torch.tensor([[True, True]]), heads=1)
    assert found.tolist() == pytest.approx([first, 0.0], abs=1e-7)


def test_relation_knows_records_and_any_width() -> None:
    teacher, student = numbers(1, 6, 12), numbers(1, 6, 8, seed=1)
    segments = torch.tensor([[0, 0, 0, 1, 1, -1]])
    found = relation(student, teacher, segments, segments >= 0, heads=4)
    alone = [
        relation(student[:, a:b], teacher[:, a:b], torch.zeros(1, b - a), torch.ones(1, b - a, dtype=torch.bool), 4)
        for a, b in ((0, 3), (3, 5))
    ]
    torch.testing.assert_close(found, torch.cat(alone))
    counted = torch.tensor([[False, True, False, False, True, False]])
    torch.testing.assert_close(relation(student, teacher, segments, counted, 4), found[[1, 4]])
    assert found.min() > 0
    torch.testing.assert_close(relation(teacher, teacher, segments, segments >= 0, 4), torch.zeros(5, dtype=FLOAT))
    with pytest.raises(ValueError, match="5 relation heads do not divide a width of 8"):
        relation(student, teacher, segments, segments >= 0, heads=5)


def test_distances_by_hand() -> None:
    """A 3-4-5 triangle against an equilateral one: in units of their means (¾, 1, 5/4) and (1, 1, 1)."""
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=FLOAT)
    teacher = torch.tensor([[0.0, 0.0], [7.0, 0.0], [3.5, 7 * 3**0.5 / 2]], dtype=FLOAT)
    a, b = 0.5 * 0.25**2, 0.0  # distances 0-1 (¾), 0-2 (1), 1-2 (5/4)
    found = relational_distance(student, teacher, torch.zeros(3))
    assert found.tolist() == pytest.approx([(a + b) / 2, (a + a) / 2, (b + a) / 2])


def test_angles_by_hand() -> None:
    """Cosines at the corners: 3-4-5 triangle (0, .6, .8), equilateral (½, ½, ½); both ordered pairs are the same."""
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=FLOAT)
    teacher = torch.tensor([[0.0, 0.0], [7.0, 0.0], [3.5, 7 * 3**0.5 / 2]], dtype=FLOAT)
    found = relational_angle(student, teacher, torch.zeros(3))
    assert found.tolist() == pytest.approx([0.5 * 0.25, 0.5 * 0.01, 0.5 * 0.09])


@pytest.mark.parametrize("function", [relational_distance, relational_angle])
def test_geometry_is_invariant_and_stays_within_records(function: object) -> None:
    teacher, student = numbers(6, 5), numbers(6, 3, seed=1)
    one = torch.zeros(6, dtype=torch.int64)
    rotation = torch.linalg.qr(numbers(5, 5, seed=2)).Q
    assert function(teacher @ rotation * 3 + 1, teacher, one).abs().max() < 1e-12
    assert function(student, teacher, one).min() > 0
    lonely = torch.tensor([0, 0, 0, 1, 2, 2])
    before = function(student, teacher, lonely)
    assert before[3] == 0.0  # alone in its record
    for rows in (slice(0, 3), slice(4, 6)):
        torch.testing.assert_close(function(student[rows], teacher[rows], lonely[rows]), before[rows])


@pytest.mark.parametrize("function", [relational_distance, relational_angle])
def test_equal_vectors_have_finite_gradients(function: object) -> None:
    student = torch.ones(4, 3, dtype=FLOAT, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(student, numbers(4, 3), torch.zeros(4)).sum(), student)
    assert gradient.isfinite().all()


def test_gradchecks() -> None:
    teacher = numbers(5, 4, seed=1)
    student = numbers(5, 4).requires_grad_()
    one = torch.zeros(5)
    for function in (
        lambda x: hidden_mse(x, teacher),
        lambda x: hidden_cosine(x, teacher),
        lambda x: relational_distance(x, teacher, one),
        lambda x: relational_angle(x, teacher, one),
        lambda x: relation(x[None], teacher[None], torch.tensor([[0, 0, 0, 1, 1]]), one[None] == 0, 2),
        lambda x: attention_kl(
            (x @ x.T).softmax(1)[None, None], random_logits(5, 5, 3).softmax(1)[None, None], one[None] == 0
        ),
        lambda x: attention_mse(
            (x @ x.T).softmax(1)[None, None], random_logits(5, 5, 3).softmax(1)[None, None], one[None] == 0
        ),
    ):
        torch.autograd.gradcheck(function, (student,))
