"""What is known of each architecture, in one table: how the axes of its weights follow from its shape.

An axis of a weight is written as the *spaces* that it runs over:

    hidden   channels of the residual stream
    head     query heads; kv: key and value heads; each of them several rows wide
    mlp      neurons of the feed-forward layer
    expert   routed experts
    -        an axis that pruning leaves alone (vocabulary, positions, rotary dimensions, low ranks)

`a|b` is a fused axis, first all of a and then all of b. How wide an item of a space is (the size of a head, or three
times that where query, key and value of a head lie side by side) follows from the axis: its length over its items.
A module's bias runs over its outputs: the first axis of a weight, the last one in GPT-2, whose weights are transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdistill.errors import ConfigError

SPACES = ("hidden", "head", "kv", "mlp", "expert")


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps what. Paths within a layer are relative to it."""

    outside: Mapping[str, str]
    """Modules outside of the layers → axes."""
    inside: Mapping[str, str]
    """Modules of a layer → axes; a layer has some of them."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Modules of a layer whose outputs are what the layer reads of the residual stream."""
    attention_output: str = "self_attn.o_proj"
    """Module of a layer that reads the heads' outputs, one after the other."""
    mlp_output: str = "mlp.down_proj"
    """Module of a layer that reads the neurons."""
    router: str | None = None
    """Module of a layer that returns (logits, weights, indices) of the experts."""
    fields: Mapping[str, str | None] = field(default_factory=dict)
    """Space → key of the config, where it is not the usual one; None: the architecture has no key for it."""
    heads_fill_hidden: bool = False
    """The head's size is no key of the config but hidden / heads, here or in the engines that serve the model."""
    transposed: bool = False
    """Weights lie as [inputs, outputs]."""
    mlp_over_hidden: int | None = None
    """Neurons for each hidden channel, where the architecture fixes it."""

    def field(self, space: str) -> str | None:
        """The config's key for the size of a space."""
        return self.fields.get(space, _FIELDS[space])

    def axes(self, name: str) -> tuple[str, ...]:
        """Axes of a parameter or buffer.

        Args:
            name: the full name outside of layers, or the name within the layer.

        Raises:
            ConfigError: the family has no such weight.

        """
        table = {**self.outside, **self.inside}
        if name in table:
            return tuple(table[name].split())
        module, _, leaf = name.rpartition(".")
        if module in table and leaf in ("weight", "bias"):
            axes = tuple(table[module].split())
            if leaf == "weight":
                return axes
            return (axes[-1] if self.transposed else axes[0],)
        raise ConfigError(
            f"the weight {name} is not known, so its width cannot be cut",
            where="student.from_teacher",
            fix="cut layers only, or give student.model",
        )


_FIELDS = {
    "hidden": "hidden_size",
    "head": "num_attention_heads",
    "kv": "num_key_value_heads",
    "mlp": "intermediate_size",
    "expert": "num_experts",
}

_OUTSIDE = {"model.embed_tokens": "- hidden", "model.norm": "hidden", "lm_head": "- hidden"}
_ATTENTION = {
    "self_attn.q_proj": "head hidden",
    "self_attn.k_proj": "kv hidden",
    "self_attn.v_proj": "kv hidden",
    "self_attn.o_proj": "hidden head",
}
_HEAD_NORMS = {"self_attn.q_norm": "-", "self_attn.k_norm": "-"}
_NORMS = {"input_layernorm": "hidden", "post_attention_layernorm": "hidden"}
_FOUR_NORMS = {**_NORMS, "pre_feedforward_layernorm": "hidden", "post_feedforward_layernorm": "hidden"}
_GATED = {"mlp.gate_proj": "mlp hidden", "mlp.up_proj": "mlp hidden", "mlp.down_proj": "hidden mlp"}
_EXPERTS = {
    "mlp.gate": "expert hidden",
    "mlp.experts.gate_up_proj": "expert - hidden",
    "mlp.experts.down_proj": "expert hidden -",
}
_SHARED_EXPERTS = {
    "mlp.gate.e_score_correction_bias": "expert",
    "mlp.shared_experts.gate_proj": "- hidden",
    "mlp.shared_experts.up_proj": "- hidden",
    "mlp.shared_experts.down_proj": "hidden -",
}
_LATENT_ATTENTION = {
    "self_attn.q_proj": "head hidden",
    "self_attn.q_a_proj": "- hidden",
    "self_attn.q_a_layernorm": "-",
    "self_attn.q_b_proj": "head -",
    "self_attn.kv_a_proj_with_mqa": "- hidden",
    "self_attn.kv_a_layernorm": "-",
    "self_attn.kv_b_proj": "head -",
    "self_attn.o_proj": "hidden head",
}
_DEEPSEEK = Family(
    _OUTSIDE,
    {**_LATENT_ATTENTION, **_NORMS, **_GATED, **_EXPERTS, **_SHARED_EXPERTS},
    router="mlp.gate",
    fields={"expert": "n_routed_experts"},
)
_LLAMA = Family(_OUTSIDE, {**_ATTENTION, **_NORMS, **_GATED})
# vLLM reads the head's size of these two as hidden / heads; Phi-3 checks its rotary factors against the same.
_QWEN2 = Family(_OUTSIDE, {**_ATTENTION, **_NORMS, **_GATED}, heads_fill_hidden=True)
_PHI3 = Family(
    _OUTSIDE,
    {
        "self_attn.qkv_proj": "head|kv|kv hidden",
        "self_attn.o_proj": "hidden head",
        "mlp.gate_up_proj": "mlp|mlp hidden",
        "mlp.down_proj": "hidden mlp",
        **_NORMS,
    },
    heads_fill_hidden=True,
)
_GPT2 = Family(
    {
        "transformer.wte": "- hidden",
        "transformer.wpe": "- hidden",
        "transformer.ln_f": "hidden",
        "lm_head": "- hidden",
    },
    {
        "ln_1": "hidden",
        "ln_2": "hidden",
        "attn.c_attn": "hidden head|head|head",
        "attn.c_proj": "head hidden",
        "mlp.c_fc": "hidden mlp",
        "mlp.c_proj": "mlp hidden",
    },
    norms=("ln_1", "ln_2"),
    attention_output="attn.c_proj",
    mlp_output="mlp.c_proj",
    fields={"hidden": "n_embd", "head": "n_head", "kv": None, "mlp": "n_inner"},
    heads_fill_hidden=True,
    transposed=True,
)
_GPT_NEOX = Family(
    {
        "gpt_neox.embed_in": "- hidden",
        "gpt_neox.final_layer_norm": "hidden",
        "lm_head": "- hidden",
    },
    {
        **_NORMS,
        "attention.query_key_value": "head hidden",
        "attention.dense": "hidden head",
        "mlp.dense_h_to_4h": "mlp hidden",
        "mlp.dense_4h_to_h": "hidden mlp",
    },
    attention_output="attention.dense",
    mlp_output="mlp.dense_4h_to_h",
    fields={"kv": None},
    heads_fill_hidden=True,
)
_BLOOM = Family(
    {
        "transformer.word_embeddings": "- hidden",
        "transformer.word_embeddings_layernorm": "hidden",
        "transformer.ln_f": "hidden",
        "lm_head": "- hidden",
    },
    {
        **_NORMS,
        "self_attention.query_key_value": "head hidden",
        "self_attention.dense": "hidden head",
        "mlp.dense_h_to_4h": "mlp hidden",
        "mlp.dense_4h_to_h": "hidden mlp",
    },
    attention_output="self_attention.dense",
    mlp_output="mlp.dense_4h_to_h",
    fields={"head": "n_head", "kv": None, "mlp": None},
    heads_fill_hidden=True,
    mlp_over_hidden=4,
)
_FOUR_NORM_NAMES = ("input_layernorm", "pre_feedforward_layernorm")

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "smollm3": Family(_OUTSIDE, {**_ATTENTION, **_NORMS, **_GATED}, heads_fill_hidden=True),
    "qwen2": _QWEN2,
    "qwen3": Family(_OUTSIDE, {**_ATTENTION, **_HEAD_NORMS, **_NORMS, **_GATED}),
    "qwen3_moe": Family(_OUTSIDE, {**_ATTENTION, **_HEAD_NORMS, **_NORMS, **_GATED, **_EXPERTS}, router="mlp.gate"),
    "gemma2": Family(_OUTSIDE, {**_ATTENTION, **_FOUR_NORMS, **_GATED}, norms=_FOUR_NORM_NAMES),
    "gemma3_text": Family(_OUTSIDE, {**_ATTENTION, **_HEAD_NORMS, **_FOUR_NORMS, **_GATED}, norms=_FOUR_NORM_NAMES),
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "bloom": _BLOOM,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}
"""`model_type` of the config → family."""


def family_of(config: Any) -> Family:
    """The family of a model.

    Raises:
        ConfigError: it is not in the table.

    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"how the widths of '{config.model_type}' hang together is not known",
            where="student.from_teacher",
            fix=f"cut layers only, or use one of: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[config.model_type]
