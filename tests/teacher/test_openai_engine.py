"""The teacher behind a real server of vLLM on loopback, beside an engine in this process with the same weights."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.cache.index import committed_keys
from llmdistill.cli.stages import Run
from llmdistill.cli.teachers import capture_spec
from llmdistill.cluster import ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.load import load_config
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError, EngineError
from llmdistill.observe.run_folder import RunFolder
from llmdistill.prompts.render import load_tokenizer
from llmdistill.teacher.engines import make_engine
from llmdistill.teacher.fleet import run_fleet
from llmdistill.teacher.openai_engine import OpenAIEngine
from llmdistill.types import CaptureSpec, Record, Request, TopKRows
from tests.processes import Processes
from tests.test_cluster import free_port

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
VOCABULARY, TOP_K = 49152, 16
KEY = "secret-of-the-test"
REQUESTS = [Request(n.to_bytes(16, "big"), tuple(range(40 + n, 60 + 2 * n)), f"a:{n}", seed=n) for n in range(6)]
SCORED = [
    Request(request.key, request.token_ids, request.source, supervised=(False, *[True] * (len(request.token_ids) - 1)))
    for request in REQUESTS
]


def settings(model: Path, **fields: Any) -> TeacherConfig:
    sampling = {"max_new_tokens": 8, "temperature": 0.0}
    common = {"model": str(model), "dtype": "float32", "max_model_len": 128, "sampling": sampling}
    return TeacherConfig.model_validate({**common, "requests_per_shard": 2, **fields})


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tiny_teacher: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    environment = {**os.environ, "VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    with Processes(tmp_path_factory.mktemp("server"), environment) as processes:
        # What `vllm serve` runs; the command itself does not start in the build for CPUs.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--model={tiny_teacher}", "--served-model-name=tiny"]
        command += ["--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--max-model-len=128", "--enforce-eager"]
        process = processes.start("vllm", *command, f"--max-logprobs={TOP_K}", "--no-enable-chunked-prefill")
        deadline = time.monotonic() + 250
        while not healthy(port):
            assert process.poll() is None and time.monotonic() < deadline, processes.output("vllm")[-3000:]
            time.sleep(0.2)
        yield processes


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def behind(port: int, model: Path, **fields: Any) -> TeacherConfig:
    server = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "tiny", "api_key_env": "TEST_KEY", "patience_s": 60}
    return settings(model, engine="openai", server=server, **fields)


async def ask(engine: Any, requests: Sequence[Request]) -> list[Record]:
    await engine.start()
    try:
        return list(await asyncio.gather(*(engine.answer(request) for request in requests)))
    finally:
        engine.stop()


class Forwarder:
    """Passes connections on to the server; at a chosen request it drops all, and refuses the next connections."""

    def __init__(self, port: int, fails_at: int, refused: int) -> None:
        self._port, self._fails_at, self._refuse = port, fails_at, refused
        self._requests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(timeout=20)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.refused = 0

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=20)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._requests >= self._fails_at and self.refused < self._refuse:
            self.refused += 1
            writer.close()
            return
        to_server, from_server = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pump(reader, from_server, counts=True), self._pump(to_server, writer, counts=False))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: bool) -> None:
        while data := await reader.read(1 << 16):
            self._requests += counts and data.count(b"POST /v1/completions")
            if self._requests >= self._fails_at and self.refused < self._refuse:
                break
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.slow
def test_it_gives_what_an_engine_in_this_process_gives(
    server: Processes, port: int, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    capture = CaptureConfig(top_k=TOP_K)
    there = asyncio.run(ask(OpenAIEngine(behind(port, tiny_teacher), capture, VOCABULARY), REQUESTS + SCORED))
    alone = make_engine(tiny_teacher, settings(tiny_teacher, engine="huggingface"), capture, VOCABULARY, 2, (0,))
    here = asyncio.run(ask(alone, REQUESTS + SCORED))
    for one, other in zip(there, here, strict=True):
        assert one.token_ids_N.tolist() == other.token_ids_N.tolist()
        assert one.supervised_N.tolist() == other.supervised_N.tolist()
        assert one.finish_reason == other.finish_reason
        assert isinstance(one.rows, TopKRows) and isinstance(other.rows, TopKRows)
        np.testing.assert_allclose(one.rows.actual_logprobs_R, other.rows.actual_logprobs_R, atol=2e-4)
        np.testing.assert_allclose(one.rows.logprobs_RK, other.rows.logprobs_RK, atol=2e-4)
        # Equally likely tokens may change places.
        assert (one.rows.ids_RK == other.rows.ids_RK).mean() > 0.99


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_loses_nothing(
    server: Processes, port: int, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    # Three requests try the server out, two are the first unit; then more refusals than the client's own retries.
    forwarder = Forwarder(port, fails_at=6, refused=7)
    teacher = behind(forwarder.port, tiny_teacher, units_in_flight=1)
    spec = CaptureSpec("generate", "top_k", TOP_K, VOCABULARY, "t", "k", "openai", "float32", {})
    factory = functools.partial(make_engine, tiny_teacher, teacher, CaptureConfig(top_k=TOP_K), VOCABULARY, 2)
    try:
        with ray_cluster(ClusterConfig()):
            report = run_fleet(REQUESTS, factory, teacher, tmp_path, spec, lambda report: None)
    finally:
        forwarder.close()
    assert (report.records, report.deaths, forwarder.refused) == (6, [], 7)
    assert committed_keys(tmp_path, spec) == {request.key for request in REQUESTS}


@pytest.mark.slow
def test_what_the_server_cannot_do_is_said_before_any_work(
    server: Processes, port: int, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(teacher: TeacherConfig, top_k: int = TOP_K) -> str:
        with pytest.raises(ConfigError) as caught:
            asyncio.run(ask(OpenAIEngine(teacher, CaptureConfig(top_k=top_k), VOCABULARY), []))
        assert KEY not in str(caught.value)
        return str(caught.value)

    monkeypatch.setenv("TEST_KEY", f"{KEY}-of-another-server")
    teacher = behind(port, tiny_teacher)
    assert "it refuses the key" in start(teacher)
    monkeypatch.setenv("TEST_KEY", KEY)
    assert "serves tiny, not 'other'" in start(
        teacher.model_copy(update={"server": teacher.server.model_copy(update={"model": "other"})})
    )
    assert "longest sequence is 128 tokens" in start(behind(port, tiny_teacher, max_model_len=256))
    assert f"--max-logprobs {TOP_K + 1}" in start(teacher, TOP_K + 1)

    engine = OpenAIEngine(teacher, CaptureConfig(top_k=TOP_K), VOCABULARY)
    with pytest.raises(ValueError, match="maximum"):
        asyncio.run(ask(engine, [Request(bytes(16), tuple(range(3, 140)), "a:1", seed=0)]))


def test_a_key_that_is_not_there_and_a_server_that_never_answers(
    tiny_teacher: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    teacher = behind(free_port(), tiny_teacher)
    with pytest.raises(ConfigError, match="the environment variable TEST_KEY is not set"):
        OpenAIEngine(teacher, CaptureConfig(), VOCABULARY)
    assert teacher.server is not None
    server = teacher.server.model_copy(update={"patience_s": 0, "api_key_env": None})
    engine = OpenAIEngine(teacher.model_copy(update={"server": server}), CaptureConfig(), VOCABULARY)
    with pytest.raises(EngineError, match="has not answered for 0 s"):
        asyncio.run(ask(engine, []))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["capture.kind=sampled"], "neither samples of its distribution"),
        (["capture.temperatures=[2.0]"], "capture.kind: top_k without temperatures"),
        (["capture.hidden_layers=[1]"], "the openai engine gives no hidden states"),
        (["teacher.server=null"], "belong together"),
        (["teacher.server.base_url=http://user:secret@host/v1"], "no user, password or query"),
        (["teacher.tensor_parallel=2"], "the server's own command"),
    ],
)
def test_settings_that_no_server_can_fulfil_are_refused(overrides: list[str], message: str) -> None:
    server = ["teacher.engine=openai", "teacher.server={base_url: 'http://host/v1'}", "capture.kind=top_k"]
    server += ["capture.temperatures=[]", "objectives=[{type: forward_kl}]"]
    assert load_config(QUICKSTART, server).teacher.served_name
    with pytest.raises(ConfigError, match=message):
        load_config(QUICKSTART, [*server, *overrides])


def test_weights_behind_a_server_need_not_be_here(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "without_weights"
    shutil.copytree(tiny_teacher, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = load_tokenizer(folder)

    def spec(name: str) -> CaptureSpec:
        overrides = [f"teacher.model={folder}", "teacher.engine=openai", "objectives=[{type: forward_kl}]"]
        overrides += [f"teacher.server={{base_url: 'http://host/v1', model: {name}}}", "capture={kind: top_k}"]
        run = Run(load_config(QUICKSTART, overrides), RunFolder(tmp_path))
        assert run.tokenizer_folder == folder
        return capture_spec(run.config, run.config.teacher, folder, tokenizer)

    assert spec("one") == spec("one")
    assert spec("one").engine == "openai"
    assert spec("one").teacher != spec("two").teacher
