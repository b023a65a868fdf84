"""What the trainer takes for granted of a model, checked on a few tokens before the first step."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.objectives.targets import softcapped
from llmdistill.student.head import logit_softcap
from llmdistill.trainer.states import StateNeeds, forward_states


@torch.no_grad()
def require_usable(model: PreTrainedModel, where: str, packing: bool = True) -> None:
    """Check that the head is what the chunked head computes, and that packed records do not see each other.

    Args:
        model: on any device, in any precision, whole.
        where: its name, for the message.
        packing: whether sequences hold several records.

    Raises:
        ConfigError: one of them does not hold.

    """
    was_training = model.training
    model.eval()
    device = model.device
    first, second = (torch.arange(4, device=device) + start for start in (1, 9))
    token_ids_BT = torch.cat([first, second]).unsqueeze(0) % model.config.vocab_size
    positions_BT = torch.arange(4, device=device).repeat(2).unsqueeze(0)
    alone = token_ids_BT[:, 4:]
    final_BTD = forward_states(model, alone, positions_BT[:, 4:], StateNeeds()).final_BTD
    logits_BTV = final_BTD @ model.get_output_embeddings().weight.T
    logits_BTV = softcapped(logits_BTV, logit_softcap(model))
    if not _close(model(alone, use_cache=False).logits, logits_BTV):
        raise ConfigError(
            f"{type(model).__name__} computes its logits otherwise than by the weight of its head (a bias or a scale)",
            where=where,
            fix="use a model with a plain head",
        )
    if packing:
        _require_record_bounds(model, token_ids_BT, positions_BT, final_BTD, where)
    model.train(was_training)


def _require_record_bounds(
    model: PreTrainedModel,
    token_ids_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    final_BTD: torch.Tensor,
    where: str,
) -> None:
    packed_BTD = forward_states(model, token_ids_BT, positions_BT, StateNeeds()).final_BTD[:, 4:]
    if not _close(packed_BTD, final_BTD):
        raise ConfigError(
            f"the records of a packed sequence see each other in {type(model).__name__}: it does not take their bounds"
            " from the positions",
            where=where,
            fix="set train.packing: false",
        )


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    # Relative to the size of the values: kernels round differently, what is wrong here is wrong by far more.
    tolerance = 0.05 if found.dtype in (torch.bfloat16, torch.float16) else 1e-3
    difference, size = (found.float() - expected.float()).abs().max(), expected.float().abs().max()
    return bool(difference <= tolerance * size)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm behind the last block, for predictions of earlier ones.

    Raises:
        ConfigError: it cannot be found.

    """
    for name in ("norm", "ln_f", "final_layer_norm"):
        norm = getattr(model.base_model, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ConfigError(
        f"the final norm of {type(model).__name__} is not known",
        where="objectives: deep_supervision",
        fix="leave the objective out for this family",
    )
