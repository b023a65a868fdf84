"""Parameters of a model from its config.json: its modules on torch's meta device, where weights have shapes only.

Source of the FLOPs: 2 per parameter and token in a forward pass, three times that in training, plus attention
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdistill.config.student import LoRAConfig
from llmdistill.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """Counts of a model."""

    parameters: int
    """All of them, tied ones once."""
    active: int
    """Those that one token passes through: of a mixture of experts, only the chosen experts."""
    multiplied: int
    """Active ones that are factors of a matrix product: without the embedding table, with the head even if tied."""
    largest_layer: int
    """Of the largest module that holds parameters itself."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    cached: int
    """Values that the KV cache holds of a token and layer: keys and values of every head, or one latent vector."""
    vocabulary: int
    weight_bits: int | None = None
    """Of a weight in a quantized checkpoint, which keeps them so in memory; None: as many as the precision has."""
    adapters: int = 0
    """Parameters of adapters, where they alone are trained; not among the others."""

    @property
    def trained(self) -> int:
        """Parameters with a gradient and a state of the optimizer."""
        return self.adapters or self.parameters

    def weight_bytes(self, item: float) -> float:
        """Bytes of all weights, at so many for each that is not quantized."""
        return self.parameters * (item if self.weight_bits is None else self.weight_bits / 8)

    def forward_flops(self, context: float) -> float:
        """FLOPs of a token's pass behind `context` others: 2 · multiplied + 4 · layers · heads · width · context."""
        return 2 * self.multiplied + 4 * self.layers * self.heads * self.head_width * context

    def kv_bytes(self, tensor_parallel: int = 1, item: int = 2) -> float:
        """KV cache of a token per GPU: keys and values of every layer, heads shared out as far as they go."""
        return self.layers * self.cached * item / min(tensor_parallel, self.kv_heads)


def model_size(config: Mapping[str, Any], key: str, lora: LoRAConfig | None = None) -> ModelSize:
    """Count without allocating.

    Args:
        config: config.json.
        key: of the configuration, for messages.
        lora: adapters that it gets.

    Raises:
        ConfigError: transformers does not know the architecture, or adapters do not fit it.

    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in config.items() if name != "model_type"}
    try:
        loaded = AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(loaded)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". Should contain")[0]
        raise ConfigError(
            f"no model can be made of its config.json: {reason}",
            where=key,
            fix="name a model whose architecture transformers knows without code from elsewhere",
        ) from None
    chosen = getattr(loaded, "num_experts_per_tok", None)
    total = active = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        # Experts lie in one tensor per layer, whose first axis counts them.
        sparse = ".experts." in name and chosen and parameter.ndim == 3
        active += parameter.numel() * chosen // len(parameter) if sparse else parameter.numel()
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    heads = loaded.num_attention_heads
    kv_heads = getattr(loaded, "num_key_value_heads", None) or heads
    head_width = getattr(loaded, "head_dim", None) or loaded.hidden_size // heads
    latent = getattr(loaded, "kv_lora_rank", None)  # multi-head latent attention, which no GPU holds a part of
    return ModelSize(
        parameters=total,
        active=active,
        multiplied=active - (0 if tied else embedding.numel()),
        largest_layer=max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()),
        layers=loaded.num_hidden_layers,
        hidden=loaded.hidden_size,
        heads=heads,
        kv_heads=1 if latent else kv_heads,
        head_width=head_width,
        cached=latent + loaded.qk_rope_head_dim if latent else 2 * kv_heads * head_width,
        vocabulary=loaded.vocab_size,
        weight_bits=_weight_bits(config.get("quantization_config") or {}),
        adapters=_adapters(model, lora) if lora else 0,
    )


def _adapters(model: PreTrainedModel, lora: LoRAConfig) -> int:
    from llmdistill.student.adapters import add_adapters

    add_adapters(model, lora, 0)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _weight_bits(quantization: Mapping[str, Any]) -> int | None:
    """Bits of the weights, by the forms of `quantization_config` that checkpoints on the hub have."""
    if quantization.get("quant_method") in ("fp8", "fbgemm_fp8"):
        return 8
    groups = quantization.get("config_groups")  # of compressed-tensors
    widths = [(group.get("weights") or {}).get("num_bits") for group in groups.values()] if groups else []
    bits = max(filter(None, widths), default=None) or quantization.get("bits") or quantization.get("w_bit")
    return int(bits) if bits else None
