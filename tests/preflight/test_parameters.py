import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.config.student import LoRAConfig
from llmdistill.errors import ConfigError
from llmdistill.preflight.parameters import model_size
from tests.preflight.makers import QWEN3_1_7B, QWEN3_32B

MIXTRAL = {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


def test_published_counts() -> None:
    """32.8 B and 1.7 B of the Qwen3 models' cards; 46.7 B and 12.9 B active of Mixtral's."""
    assert model_size(QWEN3_32B, "teacher.model").parameters == 32_762_123_264
    small = model_size(QWEN3_1_7B, "student")
    assert small.parameters == small.active == small.multiplied == 1_720_574_976
    mixtral = model_size(MIXTRAL, "teacher.model")
    assert (mixtral.parameters, mixtral.active) == (46_702_792_704, 12_879_925_248)


def test_the_embedding_is_multiplied_only_where_it_is_the_head() -> None:
    large = model_size(QWEN3_32B, "teacher.model")
    assert large.multiplied == large.parameters - 151_936 * 5120


def test_counts_are_those_of_a_real_model() -> None:
    shape = {**QWEN3_1_7B, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    config = AutoConfig.for_model(**shape)
    real = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert model_size(shape, "student").parameters == real
    assert torch.empty(0).device.type == "cpu"


def test_adapters_are_counted_beside_the_weights() -> None:
    size = model_size(QWEN3_1_7B, "student", LoRAConfig(r=16))
    # Queries and output 2048 ↔ 2048, keys and values 2048 → 1024, three of 2048 ↔ 6144, in 28 layers.
    assert size.adapters == 28 * 16 * (2 * 4096 + 2 * 3072 + 3 * 8192) == 17_432_576
    assert size.trained == size.adapters
    assert size.parameters == model_size(QWEN3_1_7B, "student").trained == 1_720_574_976
    with pytest.raises(ConfigError, match="c_attn"):
        model_size(QWEN3_1_7B, "student", LoRAConfig(target_modules=("c_attn",)))


def test_the_kv_cache_is_shared_out_as_far_as_heads_go() -> None:
    model = model_size(QWEN3_32B, "teacher.model")
    assert model.kv_bytes() == 64 * 2 * 8 * 128 * 2
    assert [model.kv_bytes(size) for size in (2, 8, 16)] == [131_072, 32_768, 32_768]
    latent = model_size({"model_type": "deepseek_v3"}, "teacher.model")
    assert latent.kv_bytes() == latent.kv_bytes(8) == 61 * (512 + 64) * 2
    assert latent.active == pytest.approx(37.5e9, rel=0.01)


def test_flops_of_a_token() -> None:
    model = model_size(QWEN3_1_7B, "student")
    assert model.forward_flops(0) == 2 * 1_720_574_976
    assert model.forward_flops(1000) - model.forward_flops(0) == 4 * 28 * 16 * 128 * 1000


def test_an_unknown_architecture_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^student: no model can be made of its config.json: [^\n]{,120}\n  fix"):
        model_size({"model_type": "nonsense"}, "student")


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (None, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
        ({"quant_method": "of_tomorrow"}, None),
    ],
)
def test_quantized_checkpoints_say_how_wide_their_weights_are(quantization: dict | None, bits: int | None) -> None:
    config = QWEN3_1_7B | ({"quantization_config": quantization} if quantization else {})
    assert model_size(config, "teacher.model").weight_bits == bits
