import torch
from torch import nn

from llmdistill.objectives.hidden import hidden_mse
from llmdistill.objectives.layer_map import uniform_map
from llmdistill.student.projectors import Projectors


def test_widths_are_joined_per_pair() -> None:
    pairs = uniform_map(2, 4)
    projectors = Projectors(pairs, 16, 32)
    states = torch.randn(5, 16)
    first, second = (projectors(states, pair) for pair in pairs)
    assert first.shape == second.shape == (5, 32)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.norm(dim=1), states.norm(dim=1))
    hidden_mse(first, torch.randn(5, 32)).sum().backward()
    assert projectors.maps["1_2"].weight.grad.abs().max() > 0
    assert projectors.maps["2_4"].weight.grad is None


def test_equal_widths_need_no_map() -> None:
    projectors = Projectors(uniform_map(2, 4), 16, 16)
    assert not list(projectors.parameters())
    states = torch.randn(5, 16)
    assert projectors(states, uniform_map(2, 4)[0]) is states


def test_same_model_and_identity_map_have_loss_zero() -> None:
    """Five hidden states of a four-layer model, the last after the final norm."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaModel(config).eval()
    nn.init.normal_(model.norm.weight, mean=3.0)
    with torch.no_grad():
        output = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == 5
    assert torch.equal(states[-1], output.last_hidden_state)
    for pair in uniform_map(4, 4):
        assert hidden_mse(states[pair.student][0], states[pair.teacher][0]).abs().max() == 0.0
