"""The teacher on transformers: slower than vLLM, but every kind of capture and hidden states on any device.

Requests that wait are answered in batches by one thread: generated first (where asked for), then scored in one forward
pass, so that generated and scored rows come from the same code.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_model

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError, EngineError
from llmdistill.teacher.capture import draw_seed, fill_columns
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.drawn_tokens import DrawTokens
from llmdistill.teacher.halving import in_halves
from llmdistill.types import Record, Request

_BATCHED_TOKENS = 2048
"""Tokens of a batch, padding included; bounds the logits (tokens × vocabulary × 2 or 4 bytes)."""
_ROWS = 256
"""Rows whose float32 log-probabilities exist at once."""


@dataclass
class _Sequence:
    """A request with its whole text."""

    request: Request
    token_ids: list[int]
    supervised: list[bool]
    finish_reason: str


class HuggingFaceEngine:
    """One model in this process.

    Args:
        folder: the teacher's model folder.
        teacher: engine settings; `tensor_parallel` counts cores, and must be 1 on GPUs.
        capture: what is kept.
        vocabulary_size: ids of the tokenizer are below this; the model's head may be larger.
        end_token_id: the tokenizer's; ends a response, as those of the model's generation config do.
        cores: CPU cores of the engine; empty on GPUs.

    Raises:
        ConfigError: the settings ask for what this engine cannot do.

    """

    version = f"transformers-{transformers.__version__}"

    def __init__(
        self,
        folder: Path,
        teacher: TeacherConfig,
        capture: CaptureConfig,
        vocabulary_size: int,
        end_token_id: int,
        cores: tuple[int, ...],
    ) -> None:
        if not cores and teacher.tensor_parallel > 1:
            raise ConfigError(
                f"the huggingface engine runs on one GPU, not on {teacher.tensor_parallel}",
                where="teacher.tensor_parallel",
                fix="use 1, or teacher.engine: vllm",
            )
        self._folder = folder
        self._teacher = teacher
        self._columns = Columns.of(capture, vocabulary_size)
        self._hidden_layers: tuple[int, ...] = capture.spec_fields()["hidden_layers"]
        self._end_ids = {end_token_id}
        self._cores = cores
        self._model: Any = None
        self._waiting: deque[tuple[Request, asyncio.Future[Record]]] = deque()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the weights."""
        await asyncio.get_running_loop().run_in_executor(None, self._load)

    async def answer(self, request: Request) -> Record:
        """See `TeacherEngine.answer`."""
        new = self._teacher.sampling.max_new_tokens if request.seed is not None else 0
        if len(request.token_ids) + new > self._teacher.max_model_len:
            raise ValueError(f"{len(request.token_ids)} tokens and {new} new ones exceed {self._teacher.max_model_len}")
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await future

    async def load_weights(self, file: Path) -> None:
        """See `TeacherEngine.load_weights`."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, load_model, self._model, str(file))
        except RuntimeError as error:
            raise EngineError(f"the weights do not fit: {error}", where=str(self._folder)) from None

    def stop(self) -> None:
        """Free the model."""
        self._model = None

    def _load(self) -> None:
        if self._cores:
            torch.set_num_threads(len(self._cores))
        device = "cpu" if self._cores else "cuda"
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(self._folder), dtype=getattr(torch, self._teacher.dtype), trust_remote_code=False
        )
        layers = loaded.config.get_text_config().num_hidden_layers
        if any(layer > layers for layer in self._hidden_layers):
            raise ConfigError(
                f"the teacher has the layers 0 (embedding) … {layers}, found {list(self._hidden_layers)}",
                where="capture.hidden_layers",
            )
        ends = loaded.generation_config.eos_token_id
        self._end_ids |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        # The model's own settings (penalties and the like) are not what was asked for.
        loaded.generation_config = transformers.GenerationConfig(eos_token_id=sorted(self._end_ids), pad_token_id=0)
        self._model = loaded.to(device).eval()

    async def _serve(self) -> None:
        """Answer what waits, batch by batch, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take_batch()
            requests = [request for request, _ in batch]
            answers: Sequence[Record | Exception]
            try:
                answers = await loop.run_in_executor(None, in_halves, requests, self._answer)
            except Exception as error:
                fault = EngineError(f"transformers failed: {type(error).__name__}: {error}", where=requests[0].source)
                answers = [fault] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _take_batch(self) -> list[tuple[Request, asyncio.Future[Record]]]:
        batch: list[tuple[Request, asyncio.Future[Record]]] = []
        longest = 0
        while self._waiting:
            request = self._waiting[0][0]
            new = self._teacher.sampling.max_new_tokens if request.seed is not None else 0
            longest = max(longest, len(request.token_ids) + new)
            mixed = batch and (batch[0][0].seed is None) != (request.seed is None)
            if mixed or (batch and longest * (len(batch) + 1) > _BATCHED_TOKENS):
                break
            batch.append(self._waiting.popleft())
        return batch

    @torch.inference_mode()
    def _answer(self, requests: Sequence[Request]) -> list[Record | ValueError]:
        if requests[0].seed is None:
            sequences = [
                _Sequence(request, list(request.token_ids), list(request.supervised or ()), "scored")
                for request in requests
            ]
        else:
            sequences = self._generate(requests)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        ids_BT, mask_BT = self._padded([sequence.token_ids for sequence in sequences], longest, left=False)
        output = self._model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            use_cache=False,
            output_hidden_states=bool(self._hidden_layers),
        )
        answers: list[Record | ValueError] = []
        for number, sequence in enumerate(sequences):
            try:
                answers.append(self._record(sequence, output, number))
            except ValueError as error:
                answers.append(error)
        return answers

    def _record(self, sequence: _Sequence, output: Any, number: int) -> Record:
        tokens_N = np.array(sequence.token_ids, np.int32)
        supervised_N = np.array(sequence.supervised, bool)
        positions_R = np.flatnonzero(supervised_N)
        # Row t predicts token t+1: what is said at a position is about the next one.
        slots_R = torch.from_numpy(positions_R - 1).to(output.logits.device)
        actual_R = torch.from_numpy(tokens_N[positions_R].astype(np.int64)).to(output.logits.device)
        seeds_R = np.full(len(positions_R), draw_seed(sequence.request.key), np.uint64)
        logits_RV = output.logits[number]
        parts = [
            fill_columns(
                logits_RV[slots_R[start : start + _ROWS]].float().log_softmax(dim=1),
                actual_R[start : start + _ROWS],
                seeds_R[start : start + _ROWS],
                positions_R[start : start + _ROWS],
                self._columns,
            )
            for start in range(0, max(len(positions_R), 1), _ROWS)
        ]
        ids_RW, values_RW = (torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True))
        hidden = [output.hidden_states[layer][number, slots_R].float().cpu() for layer in self._hidden_layers]
        return Record(
            key=sequence.request.key,
            token_ids_N=tokens_N,
            supervised_N=supervised_N,
            rows=self._columns.rows(ids_RW, values_RW),
            finish_reason=sequence.finish_reason,
            split=sequence.request.split,
            hidden_LRD=torch.stack(hidden).numpy() if hidden else None,
        )

    def _generate(self, requests: Sequence[Request]) -> list[_Sequence]:
        longest = max(len(request.token_ids) for request in requests)
        ids_BT, mask_BT = self._padded([list(request.token_ids) for request in requests], longest, left=True)
        sampling = self._teacher.sampling
        seeds = [request.seed or 0 for request in requests]
        generated_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # DrawTokens has drawn
            logits_processor=[DrawTokens(seeds, longest, sampling.temperature, sampling.top_p)],
        )
        found = []
        for request, row in zip(requests, generated_BT[:, longest:].tolist(), strict=True):
            stop = next((place for place, token in enumerate(row) if token in self._end_ids), None)
            response = row if stop is None else row[: stop + 1]
            supervised = [False] * len(request.token_ids) + [True] * len(response)
            reason = "length" if stop is None else "stop"
            found.append(_Sequence(request, [*request.token_ids, *response], supervised, reason))
        return found

    def _padded(self, sequences: list[list[int]], longest: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask int64 [B, longest]."""
        ids_BT = torch.zeros(len(sequences), longest, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, token_ids in enumerate(sequences):
            place = slice(longest - len(token_ids), longest) if left else slice(0, len(token_ids))
            ids_BT[row, place] = torch.tensor(token_ids)
            mask_BT[row, place] = 1
        return ids_BT.to(self._model.device), mask_BT.to(self._model.device)
