"""A teacher without weights: seeded, deterministic, fast. For tests of everything around an engine."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.teacher.capture import draw_seed, fill_columns
from llmdistill.teacher.columns import Columns
from llmdistill.types import Record, Request

_FAVOURITES = 256


class FakeEngine:
    """Its distribution of the next token depends on the last token alone (a random Markov chain).

    Args:
        teacher: `sampling` is obeyed, but for top_p.
        capture: what is kept.
        vocabulary_size: ids are below this.
        end_token_id: ends a response.

    """

    version = "fake-1"

    def __init__(self, teacher: TeacherConfig, capture: CaptureConfig, vocabulary_size: int, end_token_id: int) -> None:
        self._sampling = teacher.sampling
        self._columns = Columns.of(capture, vocabulary_size)
        self._vocabulary_size = vocabulary_size
        self._end = end_token_id
        self._weights = 0
        self.logprobs = functools.lru_cache(maxsize=4096)(self._logprobs)

    async def start(self) -> None:
        """Nothing to load."""

    async def answer(self, request: Request) -> Record:
        """See `TeacherEngine.answer`."""
        token_ids = list(request.token_ids)
        finish_reason = "scored"
        supervised = request.supervised
        if request.seed is not None:
            finish_reason = self._continue(token_ids, request.seed)
            supervised = tuple(i >= len(request.token_ids) for i in range(len(token_ids)))
        assert supervised is not None
        tokens_N, supervised_N = np.array(token_ids, np.int32), np.array(supervised, bool)
        positions_R = np.flatnonzero(supervised_N)
        logprobs_RV = np.stack([self.logprobs(token_ids[position - 1]) for position in positions_R.tolist()])
        actual_R = torch.from_numpy(tokens_N[positions_R]).long()
        seeds_R = np.full(len(positions_R), draw_seed(request.key), np.uint64)
        ids_RW, values_RW = fill_columns(torch.from_numpy(logprobs_RV), actual_R, seeds_R, positions_R, self._columns)
        rows = self._columns.rows(ids_RW.numpy(), values_RW.numpy())
        return Record(request.key, tokens_N, supervised_N, rows, finish_reason, request.split)

    async def load_weights(self, file: Path) -> None:
        """Other weights are another chain."""
        self._weights = int.from_bytes(hashlib.blake2b(file.read_bytes(), digest_size=6).digest(), "big")
        self.logprobs.cache_clear()

    def stop(self) -> None:
        """Nothing to free."""

    def _continue(self, token_ids: list[int], seed: int) -> str:
        generator = np.random.default_rng(seed)
        for _ in range(self._sampling.max_new_tokens):
            logprobs_V = self.logprobs(token_ids[-1])
            if self._sampling.temperature > 0:
                logprobs_V = logprobs_V / self._sampling.temperature + generator.gumbel(size=self._vocabulary_size)
            token_ids.append(int(logprobs_V.argmax()))
            if token_ids[-1] == self._end:
                return "stop"
        return "length"

    def _logprobs(self, last_token: int) -> np.ndarray:
        """float32 [V]: some favourites, the end token among them, over a flat rest."""
        generator = np.random.default_rng((self._weights << 20) + last_token)
        logits = np.zeros(self._vocabulary_size)
        favourites = generator.integers(0, self._vocabulary_size, min(_FAVOURITES, self._vocabulary_size))
        logits[favourites] = generator.normal(8, 3, len(favourites))
        logits[self._end] = 10
        logits -= np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        return logits.astype(np.float32)
