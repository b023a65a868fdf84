"""`teacher:` the model that is distilled, and the fleet that runs it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from llmdistill.config.base import Section
from llmdistill.config.filters import FiltersConfig


class SamplingConfig(Section):
    """How responses are drawn, in `generate` mode; the names are vLLM's."""

    temperature: float = Field(default=0.7, ge=0.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """1 keeps every token. On CPUs a value below 1 costs a sort of the vocabulary for each token."""
    max_new_tokens: PositiveInt = 256
    """A response that reaches this length ends there, without an end token."""
    samples: PositiveInt = 1
    """Responses per prompt."""
    seed: int = 0
    """Each request is seeded by a hash of this, its prompt and the number of its sample."""


class TeacherConfig(Section):
    """The teacher and its replicas."""

    model: str
    """A Hugging Face folder, a hub id, a GGUF file, or the short name `smollm2-135m-instruct`."""
    engine: Literal["vllm", "huggingface", "fake"] = "vllm"
    """`huggingface` is transformers: slower, but it can keep hidden states. `fake` is a seeded random teacher without
    weights, for tests of everything around it."""
    replicas: PositiveInt | Literal["auto"] = "auto"
    """`auto`: as many as the cluster's GPUs hold, or one a core where there is none."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or, without GPUs, cores) per replica."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the forward pass. Log-probabilities are computed in float32 from its logits."""
    max_model_len: PositiveInt = 2048
    """Longest prompt plus response, in tokens. Longer requests are rejected by name, never cut."""
    requests_per_shard: PositiveInt = 16
    """Requests in a work unit. A unit is written as one shard, and is what a crash can cost."""
    units_in_flight: PositiveInt = 4
    """Work units that a replica holds at once; its largest batch is `requests_per_shard * units_in_flight`."""
    max_rejected_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """A job ends when the engine rejects more than this share of its requests. Each is named in `rejected.jsonl`."""
    start_timeout_s: PositiveInt = 1800
    """An engine that is not ready after so many seconds counts as dead."""
    unit_timeout_s: PositiveInt = 3600
    """An engine that holds a work unit for longer than so many seconds counts as dead."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0)
    """vLLM's setting, on GPUs."""
    kv_cache_gib: PositiveInt = 1
    """Memory for the KV cache of a replica, on CPUs."""
    sampling: SamplingConfig = SamplingConfig()
    """Used in `generate` mode."""
    filters: FiltersConfig = FiltersConfig()
    """Which responses are kept, in `generate` mode."""
