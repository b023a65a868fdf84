"""What runs inside vLLM's worker processes (vLLM's `worker_extension_cls`): the capture, and taking new weights.

vLLM's V1 model runner picks log-probabilities in one function, `Sampler.gather_logprobs`, for scored prompts and for
generated tokens alike. `WorkerExtension` puts `fill_columns` in its place. That
function is told neither requests nor positions, so the runner's own state says whose rows these are; where the two do
not fit together, the worker fails instead of guessing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from llmdistill.teacher.capture import fill_columns
from llmdistill.teacher.columns import Columns

SEED_ARGUMENT = "llmdistill_draw_seed"
"""Key in a request's `SamplingParams.extra_args`: seed of its draws."""


class WorkerExtension:
    """Mixed into vLLM's worker class by its name."""

    model_runner: Any

    def install_capture(self, columns: dict[str, Any]) -> str:
        """From now on log-probabilities come as these columns.

        Returns:
            why this worker cannot, or nothing.

        """
        runner = self.model_runner
        needed = (("_get_prompt_logprobs_dict", runner), ("gather_logprobs", getattr(runner, "sampler", None)))
        missing = [name for name, owner in needed if not hasattr(owner, name)]
        if missing:
            return (
                f"the model runner {type(runner).__module__}.{type(runner).__name__} has no {' and no '.join(missing)}"
            )
        _Capture(runner, Columns(**columns)).install()
        return ""

    def take_weights(self, file: str) -> None:
        """Put the weights of a safetensors file, named as in the model's folder, in place of the loaded ones."""
        from safetensors import safe_open
        from vllm.platforms import current_platform

        with safe_open(file, framework="pt") as weights:
            names = sorted(weights.keys())
            # One tensor at a time: the engine's memory has room for no second model.
            self.model_runner.reload_weights(weights_iterator=((name, weights.get_tensor(name)) for name in names))
        if current_platform.is_cpu():
            _pack_tied_heads(self.model_runner.get_model())


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """On CPUs vLLM multiplies by packed copies, and does not renew that of a head that is tied to the embedding."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        # Others than embeddings and heads give their weight up once it is packed.
        if hasattr(layer, "cpu_linear") and isinstance(weight, torch.Tensor) and weight.numel():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


class _Capture:
    def __init__(self, runner: Any, columns: Columns) -> None:
        self._runner = runner
        self._columns = columns
        self._prompts: deque[tuple[np.uint64, int, list[int]]] | None = None
        """While prompts are captured: seed, first position and token ids of the calls to come."""

    def install(self) -> None:
        # Of the class, so that a second capture takes the place of the first.
        original = type(self._runner)._get_prompt_logprobs_dict.__get__(self._runner)

        def prompt_logprobs(hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
            self._prompts = self._expected_prompts(num_scheduled_tokens)
            try:
                return original(hidden_states, num_scheduled_tokens)
            finally:
                self._prompts = None

        self._runner._get_prompt_logprobs_dict = prompt_logprobs
        self._runner.sampler.gather_logprobs = self.gather_logprobs

    def gather_logprobs(self, logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        """Takes the place of vLLM's function of the same name and arguments."""
        from vllm.v1.outputs import LogprobsTensors

        if num_logprobs != self._columns.width:
            raise RuntimeError(
                f"asked for {num_logprobs} log-probabilities, the capture has {self._columns.width} columns"
            )
        seeds_R, positions_R = self._sampled() if self._prompts is None else self._prompt(token_ids)
        if len(seeds_R) != len(token_ids):
            raise RuntimeError(
                f"{len(token_ids)} rows of {len(seeds_R)} requests: the capture fits one token a request"
            )
        ids, values = fill_columns(logprobs, token_ids, seeds_R, positions_R, self._columns)
        return LogprobsTensors(ids, values, torch.zeros_like(token_ids))

    def _expected_prompts(self, scheduled: dict[str, int]) -> deque[tuple[np.uint64, int, list[int]]]:
        """The rows of this step in vLLM's order: of each prompt what is computed now, but for its last position."""
        expected: deque[tuple[np.uint64, int, list[int]]] = deque()
        for name in self._runner.num_prompt_logprobs:
            request = self._runner.requests[name]
            start = request.num_computed_tokens
            stop = min(start + scheduled.get(name, 0), len(request.prompt_token_ids) - 1)
            if stop > start:
                expected.append((_seed(request), start + 1, request.prompt_token_ids[start + 1 : stop + 1]))
        return expected

    def _prompt(self, token_ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        assert self._prompts is not None
        seed, start, expected = self._prompts.popleft()
        if token_ids.tolist() != expected:
            raise RuntimeError("vLLM scores other tokens of a prompt than expected")
        return np.full(len(expected), seed), np.arange(start, start + len(expected))

    def _sampled(self) -> tuple[np.ndarray, np.ndarray]:
        batch = self._runner.input_batch
        requests = len(batch.req_ids)
        scheduled = np.diff(self._runner.query_start_loc.np[: requests + 1])
        seeds = np.array([_seed(self._runner.requests[name]) for name in batch.req_ids], np.uint64)
        return seeds, batch.num_computed_tokens_cpu[:requests] + scheduled


def _seed(request: Any) -> np.uint64:
    arguments = request.sampling_params.extra_args
    if not arguments or SEED_ARGUMENT not in arguments:
        raise RuntimeError("a request came without a seed for its draws")
    return np.uint64(arguments[SEED_ARGUMENT])
