"""Beside public implementations: equal where they are right, and why where they differ.

trl and liger-kernel are no dependencies; without them their tests are skipped.
To run them: `pip install --no-deps trl liger-kernel`.
"""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch.nn import KLDivLoss

from llmdistill.objectives.chunked_head import chunked_head
from llmdistill.objectives.targets import HeadTargets
from llmdistill.objectives.total import row_values
from tests.objectives.makers import FLOAT, dense, random_logits
from tests.objectives.test_worked_values import term

TEACHER, STUDENT = random_logits(6, 11, 1), random_logits(6, 11, 2)


def ours(name: str, **options: object) -> torch.Tensor:
    return row_values(STUDENT, dense(TEACHER), [term(name, **options)])[0]


def test_torch() -> None:
    log_p, log_q = TEACHER.log_softmax(1), STUDENT.log_softmax(1)
    none = KLDivLoss(reduction="none", log_target=True)(log_q, log_p).sum(1)
    torch.testing.assert_close(ours("forward_kl"), none)
    torch.testing.assert_close(ours("reverse_kl"), KLDivLoss(reduction="none", log_target=True)(log_p, log_q).sum(1))
    torch.testing.assert_close(ours("forward_kl").mean(), KLDivLoss(reduction="batchmean")(log_q, log_p.exp()))
    # "mean" divides by the vocabulary too, and "batchmean" by the first dimension alone.
    mean = KLDivLoss(reduction="mean", log_target=True)
    torch.testing.assert_close(mean(log_q, log_p) * 11, ours("forward_kl").mean())
    batchmean = KLDivLoss(reduction="batchmean", log_target=True)
    torch.testing.assert_close(batchmean(log_q.view(2, 3, 11), log_p.view(2, 3, 11)) / 3, ours("forward_kl").mean())


@pytest.fixture(scope="module")
def trl_jsd() -> Callable[..., torch.Tensor]:
    try:
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    except ImportError as error:
        pytest.skip(f"trl's generalized JSD cannot be imported: {error}")
    return GKDTrainer.generalized_jsd_loss


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trl_at_temperature_one(trl_jsd: Callable[..., torch.Tensor], beta: float) -> None:
    rows = trl_jsd(STUDENT[None], TEACHER[None], beta=beta, reduction="none")[0].sum(1)
    torch.testing.assert_close(ours("jsd", beta=beta), rows)
    labels = torch.tensor([[0, -100, 1, 2, 3, 4]])
    kept = ours("jsd", beta=beta)[labels[0] != -100]
    torch.testing.assert_close(trl_jsd(STUDENT[None], TEACHER[None], labels, beta=beta), kept.mean())


def test_trl_has_no_square_of_the_temperature(trl_jsd: Callable[..., torch.Tensor]) -> None:
    """So its gradient shrinks with T², and a temperature changes the balance with other losses."""
    rows = trl_jsd(STUDENT[None], TEACHER[None], temperature=2.0, reduction="none")[0].sum(1)
    torch.testing.assert_close(ours("jsd", temperature=2.0), 4 * rows)


def test_trl_is_nan_where_both_exclude_a_token(trl_jsd: Callable[..., torch.Tensor]) -> None:
    """0 · (-inf + inf): a vocabulary padded with -inf is enough."""
    teacher = torch.tensor([[2.0, 1.0, -torch.inf]], dtype=FLOAT)
    student = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=FLOAT)
    assert trl_jsd(student[None], teacher[None], beta=0.0).isnan()
    value = row_values(student, dense(teacher), [term("jsd", beta=0.0)]).item()
    assert value == pytest.approx(0.4621172, abs=6e-8)


@pytest.fixture(scope="module")
def liger() -> ModuleType:
    try:
        from liger_kernel.chunked_loss import jsd_loss
    except ImportError as error:
        pytest.skip(f"liger-kernel cannot be imported: {error}")
    module: ModuleType = jsd_loss
    return module


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_liger_formula(liger: ModuleType, beta: float) -> None:
    found = liger.LigerFusedLinearJSDFunction.distillation_loss_fn(STUDENT, TEACHER, beta)
    torch.testing.assert_close(ours("jsd", beta=beta).sum(), found)


def test_liger_fused_linear(liger: ModuleType) -> None:
    """Hidden states and heads in, as here: values and gradients, JSD and hard labels half and half, in float32."""
    hidden, weight = random_logits(6, 4, 3).float(), random_logits(11, 4, 4).float()
    teacher_hidden, teacher_weight = random_logits(6, 5, 5).float(), random_logits(11, 5, 6).float()
    labels = torch.tensor([0, 3, 10, 4, 4, 9])

    def run(fused: bool) -> list[torch.Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            targets = HeadTargets(actual_ids_R=labels, hidden_RD=teacher_hidden, head_weight=teacher_weight)
            loss = chunked_head(h, w, targets, [term("jsd", weight=0.5), term("hard_ce", weight=0.5)]).total / 6
        else:
            loss = liger.LigerFusedLinearJSDLoss(compiled=False)(h, w, teacher_hidden, teacher_weight, labels)
            loss = loss[0] if isinstance(loss, tuple) else loss
        return [loss.detach(), *torch.autograd.grad(loss, [h, w])]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
