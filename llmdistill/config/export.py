"""`export:` the folder that comes out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmdistill.config.base import Section


class ExportConfig(Section):
    """The student as a Hugging Face folder; it is always loaded back and compared before it gets its name."""

    max_shard_size: str = Field(default="5GB", pattern=r"^\d+(\.\d+)?(KB|MB|GB)$")
    """Weights are split into safetensors files of at most this size."""
    gguf: bool | Literal["float16", "float32"] = False
    """Also write a GGUF file (LLaMA, Mistral and Qwen students); `true` is float16, or float32 for a float32
    student."""
    verify_vllm: bool = False
    """Also load the folder into vLLM and let it write."""
    licence: str | None = None
    """Licence in the model card, as the hub names it (`apache-2.0`)."""
    push_to_hub: str | None = None
    """Repository (`name/model`) that the folder is uploaded to with the hub's own login, made private where it is
    new."""
