"""Shared parts: a real teacher, a tiny one, a real vLLM engine, a real Ray cluster."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.types import Record, Request

Ask = Callable[[list[Request]], list[Record]]
Capture = Callable[[CaptureConfig, list[Request]], list[Record]]


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """What a test sets for its own process (engines do) must not reach the processes that later tests start."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a model folder, converted once a machine."""
    from llmdistill.teacher.source import resolve_teacher

    return resolve_teacher("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tokenizer(teacher_folder: Path):
    from llmdistill.prompts.render import load_tokenizer

    return load_tokenizer(teacher_folder)


@pytest.fixture(scope="session")
def tiny_teacher(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of 4 layers and width 64 with the real tokenizer."""
    from llmdistill.student.folder import copy_tokenizer
    from tests.helpers import save_random_llama

    folder = save_random_llama(
        tmp_path_factory.mktemp("tiny_teacher"),
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    copy_tokenizer(teacher_folder, folder)
    return folder


@pytest.fixture(scope="session")
def vllm_engine(teacher_folder: Path) -> Iterator[tuple[Any, Callable[[Coroutine], Any]]]:
    """A real vLLM engine on the real teacher in float32, shared by all tests that need one, and what waits for it."""
    from llmdistill.teacher.vllm_engine import VLLMEngine

    teacher = TeacherConfig.model_validate(
        {"model": str(teacher_folder), "dtype": "float32", "max_model_len": 512, "sampling": {"max_new_tokens": 24}}
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=240)

    engine = VLLMEngine(teacher_folder, teacher, CaptureConfig(top_k=80), 49152, cores=(0, 1))
    wait(engine.start())
    yield engine, wait
    loop.call_soon_threadsafe(engine.stop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=20)


@pytest.fixture(scope="session")
def vllm_capture(vllm_engine) -> Capture:
    """The same engine, with any capture."""
    from llmdistill.teacher.columns import Columns

    engine, wait = vllm_engine

    async def ask(capture: CaptureConfig, requests: list[Request]) -> list[Record]:
        engine._columns = Columns.of(capture, 49152)
        await engine._install_capture()
        return list(await asyncio.gather(*(engine.answer(request) for request in requests)))

    return lambda capture, requests: wait(ask(capture, requests))


@pytest.fixture(scope="session")
def vllm_ask(vllm_capture: Capture) -> Ask:
    """The same engine with the 64 most likely tokens."""
    return lambda requests: vllm_capture(CaptureConfig(top_k=64), requests)


@pytest.fixture
def ray() -> Iterator[None]:
    """A real Ray cluster of this machine."""
    from llmdistill.cluster import ray_cluster

    with ray_cluster(ClusterConfig()):
        yield
