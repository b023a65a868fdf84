"""The teacher on vLLM; this file and `vllm_worker.py`, its part within vLLM's processes, are the only ones that use it.

Where the capture needs more than the most likely tokens, a worker extension writes the columns of `columns.py`. It fits
vLLM's V1 model runner, which is the only one on CPUs and is asked for on GPUs; the engine says so when it cannot.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import SamplingConfig, TeacherConfig
from llmdistill.errors import ConfigError, EngineError
from llmdistill.teacher.capture import draw_seed
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.extract import rows_of_prompt, rows_of_response
from llmdistill.teacher.vllm_worker import SEED_ARGUMENT, WorkerExtension
from llmdistill.types import Record, Request

_BATCHED_TOKENS = 2048
"""Tokens that vLLM schedules at once; bounds its float32 log-softmax of prompts (tokens × vocabulary × 4 bytes)."""
_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


class VLLMEngine:
    """One vLLM engine. Many requests at once share its continuous batch.

    Args:
        folder: the teacher's model folder.
        teacher: engine settings.
        capture: what is kept.
        vocabulary_size: ids of the tokenizer are below this; the model's head may be larger.
        cores: CPU cores for the engine; empty on GPUs.

    Raises:
        ConfigError: the environment rules out what the capture needs.

    """

    def __init__(
        self,
        folder: Path,
        teacher: TeacherConfig,
        capture: CaptureConfig,
        vocabulary_size: int,
        cores: tuple[int, ...],
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if cores:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(teacher.kv_cache_gib)
            # Compiling the one small compiled function of the sampler costs 15 s a start and gains nothing on a core.
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
        self._columns = plan_columns(capture, vocabulary_size, head_size(folder), on_cpu=bool(cores))
        if self._columns.statistics:
            _choose_runner(capture)
        import vllm

        self.version = f"vllm-{vllm.__version__}"
        self._folder = folder
        self._teacher = teacher
        self._on_cpu = bool(cores)
        self._engine: Any = None
        self._requests = 0

    async def start(self) -> None:
        """Load the weights; seconds for a small teacher, minutes for a large one.

        Raises:
            EngineError: the engine cannot capture what is asked for.

        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = self.arguments()
        loop = asyncio.get_running_loop()
        self._engine = await loop.run_in_executor(None, lambda: AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))
        if self._columns.statistics:
            await self._install_capture()

    def arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's `AsyncEngineArgs`."""
        teacher = self._teacher
        arguments: dict[str, Any] = {
            "model": str(self._folder),
            "dtype": teacher.dtype,
            "tensor_parallel_size": teacher.tensor_parallel,
            "max_model_len": teacher.max_model_len,
            "max_logprobs": self._columns.width,
            "logprobs_mode": "raw_logprobs",
            "max_num_seqs": teacher.requests_per_shard * teacher.units_in_flight,
            "max_num_batched_tokens": max(_BATCHED_TOKENS, teacher.max_model_len),
            "enable_prefix_caching": False,
            "enable_log_requests": False,
            "disable_log_stats": True,
            "trust_remote_code": False,
            "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        }
        if teacher.pipeline_parallel > 1:
            # Its workers go into the placement group that the replica is in, each node's part being a stage.
            arguments |= {
                "pipeline_parallel_size": teacher.pipeline_parallel,
                "distributed_executor_backend": "ray",
            }
        if self._on_cpu:
            arguments["enforce_eager"] = True
            # A prompt that is prefilled in parts makes vLLM rewind the request's random generator, which CPU
            # generators cannot do and the engine dies of; so prompts are prefilled whole here.
            arguments["enable_chunked_prefill"] = False
        else:
            arguments["gpu_memory_utilization"] = teacher.gpu_memory_utilization
        return arguments

    async def answer(self, request: Request) -> Record:
        """See `TeacherEngine.answer`."""
        return await self._ask(request, self._parameters(request))

    async def _ask(self, request: Request, parameters: Any) -> Record:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._requests += 1
        prompt = {"prompt_token_ids": list(request.token_ids)}
        final = None
        try:
            async for output in self._engine.generate(prompt, parameters, f"{self._requests}"):
                final = output
        except VLLMValidationError as error:
            raise ValueError(str(error)) from None
        except EngineDeadError as error:
            raise EngineError(f"the vLLM engine died: {error}", where=request.source) from None
        if final is None or not final.finished:
            raise EngineError("vLLM returned no finished answer", where=request.source)
        if list(final.prompt_token_ids) != list(request.token_ids):
            raise EngineError("vLLM answered another prompt than the one sent", where=request.source)
        return self._scored(request, final) if request.seed is None else self._generated(request, final)

    async def respond(self, token_ids: Sequence[int], sampling: SamplingConfig, seed: int) -> list[int]:
        """A plain response, nothing captured: how an evaluation lets any model of this engine answer.

        Raises:
            ValueError: vLLM refuses this prompt.

        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests += 1
        response: list[int] = []
        try:
            prompt = {"prompt_token_ids": list(token_ids)}
            async for output in self._engine.generate(prompt, parameters, f"{self._requests}"):
                response = list(output.outputs[0].token_ids)
        except VLLMValidationError as error:
            raise ValueError(str(error)) from None
        return response

    async def load_weights(self, file: Path) -> None:
        """See `TeacherEngine.load_weights`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._engine.collective_rpc("take_weights", args=(str(file),))
        except EngineDeadError as error:
            raise EngineError(f"the vLLM engine died of new weights: {error}", where=str(self._folder)) from None
        except Exception as error:
            raise EngineError(f"vLLM refuses the weights: {error}", where=str(self._folder)) from None

    def stop(self) -> None:
        """End the engine's processes."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    async def _install_capture(self) -> None:
        refusals = await self._engine.collective_rpc("install_capture", args=(asdict(self._columns),))
        for refusal in filter(None, refusals):
            raise EngineError(
                f"{self.version} cannot capture kind '{self._columns.kind}' here: {refusal}",
                where="capture.kind",
                fix="use capture.kind: top_k without capture.temperatures, or teacher.engine: huggingface",
            )
        # The columns of two requests are read with every check there is; plain log-probabilities would not pass.
        for seed in (None, 0):
            request = Request(b"self-check".ljust(16), (1, 2, 3), "the self-check", seed, (False, True, True))
            parameters = self._parameters(request)
            parameters.max_tokens = 1
            await self._ask(request, parameters)

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common: dict[str, Any] = {
            "flat_logprobs": True,
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        if self._columns.statistics:
            common["extra_args"] = {SEED_ARGUMENT: draw_seed(request.key)}
        if request.seed is None:
            return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=self._columns.width, **common)
        sampling = self._teacher.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed,
            logprobs=self._columns.width,
            **common,
        )

    def _generated(self, request: Request, output: Any) -> Record:
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise ValueError(f"vLLM ended the response with '{completion.finish_reason}'")
        token_ids = np.array([*request.token_ids, *completion.token_ids], np.int32)
        return Record(
            key=request.key,
            token_ids_N=token_ids,
            supervised_N=np.arange(len(token_ids)) >= len(request.token_ids),
            rows=rows_of_response(completion.logprobs, completion.token_ids, self._columns),
            finish_reason=completion.finish_reason,
            split=request.split,
        )

    def _scored(self, request: Request, output: Any) -> Record:
        assert request.supervised is not None
        return Record(
            key=request.key,
            token_ids_N=np.array(request.token_ids, np.int32),
            supervised_N=np.array(request.supervised, bool),
            rows=rows_of_prompt(output.prompt_logprobs, request.token_ids, request.supervised, self._columns),
            finish_reason="scored",
            split=request.split,
        )


def plan_columns(capture: CaptureConfig, vocabulary_size: int, head: int, on_cpu: bool) -> Columns:
    """The layout to ask vLLM for: with statistics wherever the extension must or can be used at no cost.

    Plain `top_k` on GPUs keeps whatever model runner vLLM prefers, and so has no entropies; not where the model's head
    is larger than the vocabulary, since its padding rows must not be taken for tokens.
    """
    extended = on_cpu or capture.kind != "top_k" or bool(capture.spec_fields()["temperatures"])
    return Columns.of(capture, vocabulary_size, statistics=extended or head != vocabulary_size)


def head_size(folder: Path) -> int:
    """Rows of a model's head, as its config says; 0 where it does not."""
    config = json.loads((folder / "config.json").read_text())
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _choose_runner(capture: CaptureConfig) -> None:
    if os.environ.get(_RUNNER, "0") not in ("0", "false", "False"):
        raise ConfigError(
            f"capture.kind '{capture.kind}' needs vLLM's V1 model runner, and {_RUNNER} asks for V2, which can give"
            " `top_k` without temperatures, for models whose head is as large as the tokenizer's vocabulary",
            where=_RUNNER,
            fix=f"unset {_RUNNER}, or capture only that",
        )
    os.environ[_RUNNER] = "0"
