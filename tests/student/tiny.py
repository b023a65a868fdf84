"""A tiny random model of every family, shaped like the real ones: grouped heads, fused weights, mixtures, patterns."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
DEEPSEEK = {
    **COMMON,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "norm_topk_prob": True,
}
TINY: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "llama_tied": {**COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "mistral": {**COMMON, "head_dim": 32, "sliding_window": 8},
    "smollm3": {**COMMON, "no_rope_layers": [1, 1, 0, 1, 1, 0]},
    "qwen2": {**COMMON, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen3": {**COMMON, "head_dim": 32, "tie_word_embeddings": True},
    "qwen3_moe": {
        **COMMON, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "mlp_only_layers": [0], "norm_topk_prob": True,
    },
    "gemma2": {**COMMON, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        **COMMON, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    },
    "phi3": {**COMMON, "tie_word_embeddings": False},
    "gpt2": {
        "vocab_size": 96, "n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.15, "n_inner": None,
    },
    "gpt_neox": {**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}, "tie_word_embeddings": False},
    "bloom": {
        "vocab_size": 96, "hidden_size": 64, "n_layer": 6, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "initializer_range": 0.15,
    },
    "deepseek_v2": {**DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 24, "n_group": 2, "topk_group": 1},
}  # fmt: skip

SEQUENCES = [list(range(3 + n, 33 + n)) for n in range(4)]


def tiny_model(name: str, **changes: Any) -> PreTrainedModel:
    """A float32 model; the same weights every time."""
    values = {"model_type": name, **TINY[name], **changes}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "gate.weight")) or "norm" in parameter_name or "ln_" in parameter_name:
                parameter += torch.randn_like(parameter) * 0.2  # zeros and ones would hide a wrong order
    return model
