"""The fleet beside a bare vLLM engine, one replica beside two, and what the front end costs per token.

    python benchmarks/fleet.py --json

`score_efficiency`, `generate_efficiency`: tokens a second that one replica of the fleet commits to disk, by those of a
bare vLLM engine on the same core that is asked for the same log-probabilities and writes nothing.
`scaling_two_replicas`: two replicas by one. Every engine is loaded once, their rounds are interleaved, and the median
ratio counts. `frontend_us_per_token`: CPU time of the process that turns vLLM's output into shards, with a random model
of two tiny layers over 151,936 ids. `capture_us_per_row`: CPU time of the columns in vLLM's worker, beside what vLLM's
own choice of the most likely takes there.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import ray

from llmdistill.cluster import ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.teacher.dispatch import Dispatcher
from llmdistill.teacher.engines import make_engine
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.replica import Replica, Target
from llmdistill.teacher.replicas import Replicas
from llmdistill.teacher.source import resolve_teacher
from llmdistill.teacher.vllm_engine import VLLMEngine, head_size
from llmdistill.types import CaptureSpec, Request

SCORED, PROMPT, NEW = 256, 32, 32
"""Tokens of a scored sequence, of a prompt, and of a response."""
FRONT_END_VOCABULARY = 151_936


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("top_k", "sampled", "head_tail"), default="top_k")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--requests", type=int, default=16, help="of a round of one replica")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--front-end-tokens", type=int, default=8192)
    parser.add_argument("--front-end-only", action="store_true", help="a minute, and right on a busy machine, too")
    parser.add_argument("--json", action="store_true", help="one JSON document and nothing else")
    arguments = parser.parse_args()
    capture = CaptureConfig(kind=arguments.kind, top_k=arguments.top_k)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(ClusterConfig()):
        document: dict[str, Any] = {"kind": capture.kind}
        if not arguments.front_end_only:
            document |= measure_fleet(Path(folder), capture, arguments.requests, arguments.rounds)
        document |= measure_front_end(Path(folder), capture, arguments.front_end_tokens)
    document |= measure_capture(arguments.top_k)
    print(json.dumps(document, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in document.items()))


class BareEngine:
    """vLLM without anything of ours but its arguments: asks, and throws the answers away."""

    def __init__(self, folder: Path, teacher: TeacherConfig, capture: CaptureConfig, cores: tuple[int, ...]) -> None:
        vocabulary = head_size(folder)
        self._wanted = VLLMEngine(folder, teacher, capture, vocabulary, cores)
        self._width = self._wanted._columns.width
        self._engine: Any = None

    async def start(self) -> None:
        """Load."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = self._wanted.arguments()
        arguments.pop("worker_extension_cls", None)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def ask(self, requests: list[Request]) -> float:
        """Seconds that the answers took."""
        started = time.monotonic()
        await asyncio.gather(*(self._one(f"{started}-{number}", request) for number, request in enumerate(requests)))
        return time.monotonic() - started

    async def _one(self, name: str, request: Request) -> None:
        parameters = self._wanted._parameters(request)
        parameters.extra_args = None
        async for _ in self._engine.generate({"prompt_token_ids": list(request.token_ids)}, parameters, name):
            pass


def measure_fleet(folder: Path, capture: CaptureConfig, count: int, rounds: int) -> dict[str, Any]:
    """Efficiency and scaling."""
    model = resolve_teacher("smollm2-135m-instruct")
    teacher = TeacherConfig.model_validate(
        {
            "model": str(model),
            "replicas": 2,
            "max_model_len": 512,
            "requests_per_shard": max(count // 4, 1),
            "sampling": {"max_new_tokens": NEW, "temperature": 1.0},
        }
    )
    vocabulary = head_size(model)
    spec = CaptureSpec("score", vocabulary_size=vocabulary, teacher="", tokenizer="", engine="vllm", dtype="bfloat16",
                       **capture.spec_fields())  # fmt: skip
    bare: Any = ray.remote(BareEngine).options(num_cpus=0).remote(model, teacher, capture, (0,))
    ray.get(bare.start.remote())
    # The end token is no id: responses have their full length, for every engine the same work.
    factory = functools.partial(make_engine, model, teacher, capture, vocabulary, -1)
    fleet = Replicas(teacher, factory, None)
    fleet.begin(FleetReport(), Dispatcher([], 1), Target(folder / "cache", spec))
    fleet.start(2)
    never = threading.Event()
    while len([handle for handle in fleet._handles.values() if handle.ready]) < 2:
        fleet.wait(never)

    def commit(requests: list[Request], replicas: int) -> float:
        """Tokens a second."""
        for index, handle in fleet._handles.items():
            handle.limit = teacher.units_in_flight if index < replicas else 0
        before, started = fleet.report.tokens, time.monotonic()
        fleet.dispatcher = Dispatcher(requests, teacher.requests_per_shard)
        while fleet.busy(never):
            fleet.wait(never)
        assert not fleet.report.rejected and not fleet.report.restarts
        return (fleet.report.tokens - before) / (time.monotonic() - started)

    document: dict[str, Any] = {"cores_of_a_replica": 1}
    numbers = iter(range(1 << 30))
    for mode in ("score", "generate"):
        measured: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
        for round_ in range(rounds + 1):
            requests = [make_request(mode, next(numbers), vocabulary) for _ in range(4 * count)]
            one, two, warm = requests[:count], requests[count : 3 * count], round_ == 0
            before = fleet.report.tokens
            rates = {"one": commit(one, 1)}
            rates["bare"] = (fleet.report.tokens - before) / ray.get(bare.ask.remote(one))
            rates["two"] = commit(two, 2)
            for name, rate in rates.items():
                measured[name] += [] if warm else [rate]
        document |= {f"{mode}_{name}_tokens_per_second": round(statistics.median(v), 1) for name, v in measured.items()}
        document[f"{mode}_efficiency"] = ratio(measured["one"], measured["bare"])
        key = "scaling_two_replicas" if mode == "score" else "scaling_two_replicas_generate"
        document[key] = ratio(measured["two"], measured["one"])
    fleet.stop()
    ray.kill(bare)
    return document


def make_request(mode: str, number: int, vocabulary: int) -> Request:
    """Random ids, another sequence for each number."""
    generator = np.random.default_rng(number)
    key = number.to_bytes(16, "little")
    if mode == "generate":
        return Request(key, tuple(generator.integers(3, vocabulary, PROMPT).tolist()), "a", seed=number)
    ids = tuple(generator.integers(3, vocabulary, SCORED).tolist())
    return Request(key, ids, "a", supervised=(False, *[True] * (SCORED - 1)))


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median of the ratios of the rounds."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


class FrontEnd(Replica):
    """A replica that says what CPU time its process took."""

    async def seconds(self) -> float:
        """CPU seconds so far."""
        return time.process_time()


def measure_front_end(folder: Path, capture: CaptureConfig, tokens: int) -> dict[str, Any]:
    """CPU time per token from vLLM's output to the shard."""
    model = folder / "tiny"
    make_tiny(model)
    teacher = TeacherConfig.model_validate({"model": str(model), "max_model_len": 512, "requests_per_shard": 8})
    spec = CaptureSpec("score", vocabulary_size=FRONT_END_VOCABULARY, teacher="", tokenizer="", engine="vllm",
                       dtype="bfloat16", **capture.spec_fields())  # fmt: skip
    factory = functools.partial(make_engine, model, teacher, capture, FRONT_END_VOCABULARY, 2)
    actor: Any = ray.remote(FrontEnd).options(num_cpus=1).remote(factory, folder / "front", spec, "none")
    ray.get(actor.start.remote((0,)))
    used = []
    for round_ in range(2):
        units = -(-tokens // (8 * SCORED))
        first = 1000 * (round_ + 1)
        requests = [make_request("score", first + n, FRONT_END_VOCABULARY) for n in range(8 * units)]
        before = ray.get(actor.seconds.remote())
        ray.get([actor.run_unit.remote(requests[8 * unit : 8 * unit + 8]) for unit in range(units)])
        used.append((ray.get(actor.seconds.remote()) - before) / (len(requests) * SCORED))
    ray.get(actor.stop.remote())
    ray.kill(actor)
    return {"frontend_us_per_token": round(1e6 * min(used), 2)}


def measure_capture(top_k: int, rows: int = 256) -> dict[str, Any]:
    """CPU time on one core, per row over 151,936 ids, of each kind, and of vLLM's own choice of the most likely."""
    import torch

    from llmdistill.teacher.capture import fill_columns
    from llmdistill.teacher.columns import Columns

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logprobs = (3 * torch.randn(rows, FRONT_END_VOCABULARY, generator=generator)).log_softmax(1)
    actual = torch.zeros(rows, dtype=torch.int64)
    seeds, positions = np.zeros(rows, np.uint64), np.arange(rows)

    def cpu_us(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(3):
            before = time.process_time()
            work()
            times.append(time.process_time() - before)
        return round(1e6 * min(times) / rows, 1)

    found = {"plain": cpu_us(lambda: (logprobs.topk(top_k, dim=1), (logprobs >= logprobs[:, :1]).sum(1)))}
    for kind in ("top_k", "sampled", "head_tail"):
        columns = Columns.of(CaptureConfig(kind=kind, top_k=top_k), FRONT_END_VOCABULARY)
        found[kind] = cpu_us(functools.partial(fill_columns, logprobs, actual, seeds, positions, columns))
    return {"capture_us_per_row": found}


def make_tiny(folder: Path) -> None:
    """A random LLaMA over Qwen's vocabulary, with a tokenizer that nobody asks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmdistill.student.folder import copy_tokenizer

    config = LlamaConfig(
        vocab_size=FRONT_END_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(folder))
    copy_tokenizer(resolve_teacher("smollm2-135m-instruct"), folder)


if __name__ == "__main__":
    main()
