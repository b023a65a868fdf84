"""Every family, on a tiny model of it: cut, train, export, load, write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmdistill.config.student import FromTeacherConfig
from llmdistill.export.verify import verify_export
from llmdistill.objectives.targets import softcapped
from llmdistill.student.calibration import measure_importance
from llmdistill.student.creation import cut_from_teacher
from llmdistill.student.cutting import decoder_layers, keep_layers
from llmdistill.student.families import FAMILIES, family_of
from llmdistill.student.head import logit_softcap
from llmdistill.student.packing import forward_packed
from llmdistill.student.shape import shape_of
from llmdistill.student.trainable import require_trainable
from tests.student.tiny import SEQUENCES, TINY, tiny_model

KINDS = ("depth", "width", "both")


def wanted(name: str, kind: str) -> FromTeacherConfig:
    sizes: dict[str, Any] = {}
    if kind in ("depth", "both"):
        sizes["layers"] = 3
    if kind in ("width", "both"):
        sizes |= {"num_attention_heads": 2, "hidden_size": 32}
        if name != "bloom":
            sizes["intermediate_size"] = 72
        if "experts" in str(TINY[name]):
            sizes["experts"] = 4
    return FromTeacherConfig(**sizes)


def checksum(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_every_family_of_the_table_is_tested() -> None:
    assert {model.get("model_type", name) for name, model in TINY.items()} == set(FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_cut_train_export_load_write(name: str, kind: str, tmp_path: Path) -> None:
    teacher = tiny_model(name)
    before, state = checksum(teacher), torch.random.get_rng_state()
    made = cut_from_teacher(teacher, wanted(name, kind), SEQUENCES)
    assert checksum(teacher) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    student = made.student
    assert len(decoder_layers(student)[1]) == student.config.num_hidden_layers == (6 if kind == "width" else 3)
    again = cut_from_teacher(teacher, wanted(name, kind), SEQUENCES).student
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in student.state_dict().items())

    require_trainable(student)
    tokens = torch.tensor([SEQUENCES[0]])
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    hidden = forward_packed(student, tokens, torch.arange(tokens.shape[1])[None]).final_BTD
    logits = softcapped(hidden @ student.get_output_embeddings().weight.T, logit_softcap(student))
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in student.named_parameters()}
    # A router that picks nothing of an expert, or a top-k of all, may leave single weights without a gradient.
    assert not [key for key, gradient in gradients.items() if gradient is None]
    optimizer.step()

    student.save_pretrained(str(tmp_path))
    verify_export(tmp_path, student)
    reloaded, report = AutoModelForCausalLM.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not [keys for key, keys in report.items() if key.endswith("_keys") and keys]
    assert torch.equal(reloaded(tokens).logits, student.eval()(tokens).logits)
    if name == "llama_tied":
        assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight


@pytest.mark.parametrize("name", TINY)
def test_items_that_add_nothing_can_be_cut_without_a_trace(name: str) -> None:
    """Half of the heads and neurons of each layer write zeros: exactly they go, and the logits stay."""
    teacher = tiny_model(name)
    family, shape = family_of(teacher.config), shape_of(teacher.config, family_of(teacher.config))
    # ALiBi's slopes follow from the number of heads; of four heads the second and the fourth have those of two.
    idle_heads = [0, 2] if name == "bloom" else list(range(shape.head // 2))
    with torch.no_grad():
        for layer in decoder_layers(teacher)[1]:
            modules = dict(layer.named_modules())
            heads = modules[family.attention_output].weight
            (heads if family.transposed else heads.T).view(shape.head, -1, shape.hidden)[idle_heads] = 0
            if family.mlp_output in modules and not family.mlp_over_hidden:
                neurons = modules[family.mlp_output].weight
                (neurons if family.transposed else neurons.T)[::2] = 0
    # Where heads make up the hidden width, the width would have to go with them: cut the heads' weights alone.
    free = not (family.heads_fill_hidden and shape.hidden == shape.head * shape.head_dim)
    sizes: dict[str, Any] = {} if not free else {"num_attention_heads": shape.head // 2}
    if not family.mlp_over_hidden:
        sizes["intermediate_size"] = shape.mlp // 2
    if not sizes:
        pytest.skip("its widths cannot be cut one by one")
    tokens = torch.tensor([SEQUENCES[0]])
    student = cut_from_teacher(teacher, FromTeacherConfig(**sizes), SEQUENCES).student
    torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "phi3", "gpt2", "gpt_neox", "bloom", "smollm3"])
def test_idle_heads_are_the_ones_that_go_where_heads_make_up_the_width(name: str) -> None:
    teacher = tiny_model(name)
    family, shape = family_of(teacher.config), shape_of(teacher.config, family_of(teacher.config))
    with torch.no_grad():
        for layer in decoder_layers(teacher)[1]:
            heads = layer.get_submodule(family.attention_output).weight
            (heads if family.transposed else heads.T).view(shape.head, -1, shape.hidden)[:2] = 0
    importance = measure_importance(teacher, family, SEQUENCES)
    assert importance.head_LH[:, :2].max() == 0 < importance.head_LH[:, 2:].min()
    student = cut_from_teacher(teacher, FromTeacherConfig(num_attention_heads=2), SEQUENCES).student
    old_rows, new_rows = (model.get_input_embeddings().weight.T for model in (teacher, student))
    channels = [int((old_rows == row).all(dim=1).nonzero()) for row in new_rows]
    assert channels == sorted(channels) and len(channels) == 32
    for old, new in zip(decoder_layers(teacher)[1], decoder_layers(student)[1], strict=True):
        before, after = (layer.get_submodule(family.attention_output).weight for layer in (old, new))
        before, after = (before, after) if family.transposed else (before.T, after.T)
        assert torch.equal(after, before.unflatten(0, (4, -1))[2:].flatten(0, 1)[:, channels])


@pytest.mark.parametrize("name", TINY)
def test_keeping_all_layers_keeps_everything(name: str) -> None:
    teacher, tokens = tiny_model(name), torch.tensor([SEQUENCES[0]])
    assert torch.equal(keep_layers(teacher, range(6))(tokens).logits, teacher(tokens).logits)


@pytest.mark.parametrize("name", TINY)
def test_a_layer_that_is_skipped_in_the_teacher_is_a_layer_that_is_cut(name: str) -> None:
    """Leaving a layer out by hand in the teacher gives what the student without it computes: masks and lists follow."""
    teacher, tokens = tiny_model(name), torch.tensor([SEQUENCES[0]])
    kept = [0, 2, 3, 5]
    student = keep_layers(teacher, kept)
    with torch.no_grad():
        for number in (1, 4):
            layer = decoder_layers(teacher)[1][number]
            layer.forward = lambda hidden_states, *rest, **more: (  # type: ignore[method-assign]
                (hidden_states,) if name == "bloom" else hidden_states
            )
        torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits)
