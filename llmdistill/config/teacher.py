"""`teacher:` the model that is distilled, and the fleet that runs it."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

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


class ServerConfig(Section):
    """A vLLM server that runs already, such as `vllm serve`, asked through its OpenAI-compatible interface."""

    base_url: str
    """Its address, such as `http://host:8000/v1`."""
    model: str | None = None
    """The name that the server has for the model (`--served-model-name`); without it, `teacher.model`."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, on every node that a replica may run on."""
    patience_s: NonNegativeInt = 600
    """How long a request is tried again while the server is away or overloaded; then its replica counts as dead."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be an address such as http://host:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError("base_url must hold no user, password or query; name the key's variable in api_key_env")
        return value.rstrip("/")


class TeacherConfig(Section):
    """The teacher and its replicas."""

    model: str
    """A Hugging Face folder, a hub id, a GGUF file, or the short name `smollm2-135m-instruct`."""
    engine: Literal["vllm", "huggingface", "openai", "fake"] = "vllm"
    """`huggingface` is transformers: slower, but it can keep hidden states. `openai` asks a vLLM server that runs
    already (`teacher.server`); `model` is then only its configuration and tokenizer. `fake` is a seeded random teacher
    without weights, for tests of everything around it."""
    server: ServerConfig | None = None
    """Where the `openai` engine finds the teacher."""
    replicas: PositiveInt | Literal["auto"] = "auto"
    """`auto`: as many as the cluster's GPUs hold, or one a core where there is none, also on nodes that join later; one
    for `openai`."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or, without GPUs, cores) of one node per replica, or per stage of one."""
    pipeline_parallel: PositiveInt = 1
    """Stages of a replica, each on a node of its own: for a teacher that the GPUs of no node hold. `vllm` on GPUs
    only."""
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

    @model_validator(mode="after")
    def _stages_of_vllm(self) -> Self:
        if self.pipeline_parallel > 1 and self.engine != "vllm":
            raise ValueError(f"pipeline_parallel: the {self.engine} engine has no stages; use 1, or engine: vllm")
        return self

    @model_validator(mode="after")
    def _server_where_it_is_asked(self) -> Self:
        if (self.engine == "openai") != (self.server is not None):
            raise ValueError("engine: openai and a section server belong together")
        if self.engine == "openai" and self.tensor_parallel > 1:
            raise ValueError("tensor_parallel is a matter of the server's own command with engine: openai")
        return self

    @property
    def served_name(self) -> str:
        """What a server calls the model."""
        return (self.server.model if self.server else None) or self.model
