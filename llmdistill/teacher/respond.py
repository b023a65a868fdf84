"""Answers of any model folder to prompts, by vLLM, in this process: no fleet, nothing captured."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import SamplingConfig, TeacherConfig


def respond(
    folder: Path,
    teacher: TeacherConfig,
    requests: Sequence[tuple[Sequence[int], SamplingConfig, int]],
) -> list[list[int]]:
    """Token ids of the response to each request; the end token is among them.

    Args:
        folder: a Hugging Face model folder.
        teacher: engine settings (memory, precision, longest sequence).
        requests: prompt's token ids, how to sample, and the seed.

    Raises:
        ValueError: vLLM refuses a prompt.

    """
    import torch
    from transformers import AutoConfig

    os.environ.setdefault("TQDM_DISABLE", "1")  # vLLM's bars would tear our own
    from llmdistill.teacher.vllm_engine import VLLMEngine

    cores = () if torch.cuda.is_available() else tuple(range(os.cpu_count() or 1))
    vocabulary_size = AutoConfig.from_pretrained(str(folder)).vocab_size
    engine = VLLMEngine(folder, teacher, CaptureConfig(top_k=1), vocabulary_size, cores)

    async def answer_all() -> list[list[int]]:
        await engine.start()
        return list(await asyncio.gather(*(engine.respond(*request) for request in requests)))

    try:
        return asyncio.run(answer_all())
    finally:
        engine.stop()
