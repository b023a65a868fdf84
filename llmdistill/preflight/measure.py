"""How much of the teacher's distribution each k keeps, measured with the real teacher on the CPU, so that k is chosen.

Rows are captured, encoded and decoded as in a run. What a cache says of a row is: the stored entries, and the rest of
the mass, of which nothing more is known, evenly over all other ids. KL(full ‖ stored) is the divergence from the
teacher's whole distribution to that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llmdistill.config.run import RunConfig
from llmdistill.errors import ClusterError
from llmdistill.preflight.corpus import sample_token_ids
from llmdistill.preflight.machine import available_bytes
from llmdistill.preflight.models import read_config
from llmdistill.preflight.parameters import model_size
from llmdistill.preflight.volume import capture_spec

if TYPE_CHECKING:
    import torch

KEPT = (8, 16, 32, 64, 128)
SEQUENCES = 8
"""Prompts, or texts in `score` mode."""
ROWS_PER_SEQUENCE = 64
"""Rows of each that are looked at; in `generate` mode, tokens that the teacher writes."""
_LONGEST = 512
_BYTES_PER_PARAMETER = 4


def measure_capture(config: RunConfig) -> dict[str, Any]:
    """Captured mass, divergence and bytes for each k.

    Raises:
        ClusterError: the teacher does not fit into this machine's memory.
        ConfigError: the teacher cannot be found.
        DataError: no prompt can be used.

    """
    import torch

    from llmdistill.prompts.render import load_tokenizer
    from llmdistill.teacher.source import resolve_teacher

    started = time.monotonic()
    folder = resolve_teacher(config.teacher.model)
    parameters = model_size(read_config(folder), "teacher.model").parameters
    _require_memory(parameters * _BYTES_PER_PARAMETER, config.teacher.model)
    tokenizer = load_tokenizer(folder)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(config.teacher.sampling.seed)
        rows = [
            _rows(model, config, ids, first, len(tokenizer))
            for ids, first in sample_token_ids(config, tokenizer, SEQUENCES)
        ]
    logprobs_RV = torch.cat(rows)
    return {
        "rows": len(logprobs_RV),
        "configured_k": config.capture.top_k if config.capture.kind == "top_k" else None,
        "by_k": [_one_k(logprobs_RV, k, config) for k in KEPT if k < logprobs_RV.shape[1]],
        "seconds": round(time.monotonic() - started, 1),
    }


def _require_memory(needed: int, name: str) -> None:
    held = available_bytes()
    if needed > held:
        raise ClusterError(
            f"--measure loads it in float32, {needed / 1e9:.1f} GB, and this machine has {held / 1e9:.1f} GB free",
            where=f"teacher.model: {name}",
            fix="measure on a machine with more memory, or plan without --measure",
        )


def _rows(model: Any, config: RunConfig, token_ids: list[int], first: int, vocabulary_size: int) -> torch.Tensor:
    """Log-probabilities [R, V] of some supervised rows of one sequence, evenly spread."""
    import torch

    sequence = torch.tensor([token_ids[:_LONGEST]])
    if config.prompts.mode == "generate":
        sampling = config.teacher.sampling
        sampled = sampling.temperature > 0
        first = sequence.shape[1]
        sequence = model.generate(
            sequence,
            max_new_tokens=min(ROWS_PER_SEQUENCE, sampling.max_new_tokens),
            do_sample=sampled,
            pad_token_id=0,
            attention_mask=torch.ones_like(sequence),
            **({"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampled else {}),
        )
    # Row t predicts token t+1.
    rows = torch.arange(max(first, 1) - 1, sequence.shape[1] - 1)
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), ROWS_PER_SEQUENCE)).long()]
    hidden_TD = model.base_model(sequence, use_cache=False).last_hidden_state[0, rows]
    logprobs: torch.Tensor = model.get_output_embeddings()(hidden_TD)[:, :vocabulary_size].float().log_softmax(dim=1)
    return logprobs


def _one_k(logprobs_RV: torch.Tensor, k: int, config: RunConfig) -> dict[str, float]:
    """Encode and decode as the cache does."""
    import torch

    from llmdistill.cache.codec import decode_logprobs, encode_logprobs
    from llmdistill.cache.size import CacheCounts, cache_bytes

    format = config.capture.logprobs
    kept, ids_RK = logprobs_RV.topk(k, dim=1)
    mass_R = kept.double().exp().sum(dim=1).clamp(max=1).float()
    stored = torch.from_numpy(encode_logprobs(kept.clamp(max=0).numpy(), format).copy())
    decoded_RK = decode_logprobs(stored, mass_R, format, k).double()
    p_RV, vocabulary_size = logprobs_RV.double().exp(), logprobs_RV.shape[1]
    rest_R = (1 - mass_R.double()).clamp(min=1e-12)
    believed_RV = (rest_R / (vocabulary_size - k)).log().unsqueeze(1).expand_as(p_RV).clone()
    believed_RV.scatter_(1, ids_RK, decoded_RK)
    spec = capture_spec(
        config.model_copy(update={"capture": config.capture.model_copy(update={"top_k": k})}), vocabulary_size
    )
    return {
        "k": k,
        "mass_mean": float(mass_R.mean()),
        "mass_p5": float(mass_R.quantile(0.05)),
        "kl": float((p_RV * (logprobs_RV.double() - believed_RV)).sum(dim=1).mean()),
        "bytes_per_row": cache_bytes(spec, CacheCounts(0, 0, 1, 0), config.capture.compression),
    }
