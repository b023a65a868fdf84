"""From the configuration to an engine."""

from __future__ import annotations

from pathlib import Path

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.teacher.engine import TeacherEngine


def make_engine(
    folder: Path,
    teacher: TeacherConfig,
    capture: CaptureConfig,
    vocabulary_size: int,
    end_token_id: int,
    cores: tuple[int, ...],
) -> TeacherEngine:
    """The engine that `teacher.engine` names, not yet started."""
    if teacher.engine == "fake":
        from llmdistill.teacher.fake_engine import FakeEngine

        return FakeEngine(teacher, capture, vocabulary_size, end_token_id)
    if teacher.engine == "huggingface":
        from llmdistill.teacher.huggingface_engine import HuggingFaceEngine

        return HuggingFaceEngine(folder, teacher, capture, vocabulary_size, end_token_id, cores)
    if teacher.engine == "openai":
        from llmdistill.teacher.openai_engine import OpenAIEngine

        return OpenAIEngine(teacher, capture, vocabulary_size)
    from llmdistill.teacher.vllm_engine import VLLMEngine

    return VLLMEngine(folder, teacher, capture, vocabulary_size, cores)
