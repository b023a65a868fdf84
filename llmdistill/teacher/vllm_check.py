"""Whether vLLM serves a model folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import SamplingConfig, TeacherConfig
from llmdistill.teacher.vllm_engine import VLLMEngine
from llmdistill.types import Request


def write_tokens(folder: Path, count: int = 16) -> list[int]:
    """Load a folder and write at most `count` tokens, greedily.

    Raises:
        EngineError: vLLM died of it.

    """
    teacher = TeacherConfig(
        model=str(folder), max_model_len=64, sampling=SamplingConfig(temperature=0.0, max_new_tokens=count)
    )
    cores = () if torch.cuda.is_available() else (0,)
    engine = VLLMEngine(folder, teacher, CaptureConfig(top_k=1), cores)

    async def ask() -> list[int]:
        await engine.start()
        try:
            record = await engine.answer(Request(bytes(16), (1, 2, 3), str(folder), seed=0))
        finally:
            engine.stop()
        return [int(token) for token in record.token_ids_N[record.supervised_N]]

    return asyncio.run(ask())
