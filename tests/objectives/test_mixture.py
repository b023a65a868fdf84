import pytest
import torch

from llmdistill.objectives.mixture import mix_dense, mix_weighted
from llmdistill.objectives.targets import WeightedTargets
from llmdistill.objectives.total import row_values
from tests.objectives.makers import dense, logits_of
from tests.objectives.test_worked_values import term


def test_dense_teachers_mix_their_probabilities_and_not_their_logits() -> None:
    """(.8, .2) and (.2, .8) at 1 : 3 give (.35, .65), whatever constant their logits carry."""
    mixed = mix_dense([dense(logits_of([0.8, 0.2])), dense(logits_of([0.2, 0.8]) + 9.0)], [1.0, 3.0])
    assert mixed.logits_RV.exp()[0].tolist() == pytest.approx([0.35, 0.65])


def test_weighted_teachers_give_the_mean_of_their_cross_entropies() -> None:
    def teacher(ids: list[int], weights: list[float]) -> WeightedTargets:
        return WeightedTargets(
            actual_ids_R=torch.tensor([0]), ids_RK=torch.tensor([ids]), weights_RK=torch.tensor([weights])
        )

    first, second = teacher([0, 1], [0.6, 0.4]), teacher([2], [1.0])
    student = logits_of([0.5, 0.3, 0.2])
    alone = [row_values(student, each, [term("forward_kl")]).item() for each in (first, second)]
    mixed = row_values(student, mix_weighted([first, second], [0.25, 0.75]), [term("forward_kl")]).item()
    assert mixed == pytest.approx(0.25 * alone[0] + 0.75 * alone[1], rel=1e-6)
