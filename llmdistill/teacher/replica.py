"""One replica of the teacher: takes work units, writes shards, returns facts about them and no tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmdistill.cache.index import shard_folder
from llmdistill.cache.shard import Compression, write_shard
from llmdistill.errors import EngineError
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.engine import TeacherEngine
from llmdistill.types import CaptureSpec, Record, Request

EngineFactory = Callable[[tuple[int, ...]], TeacherEngine]
"""Makes the engine of a replica on these CPU cores (none: on its GPUs)."""


@dataclass(frozen=True)
class UnitResult:
    """What became of a work unit."""

    records: int
    tokens: int
    """Prompt and response."""
    rows: int
    bytes: int
    seconds: float
    rejected: tuple[RejectedRow, ...]


class Replica:
    """Runs in a process of its own; several units are in flight at once, so that the engine's batch stays full.

    Args:
        make_engine: called in the replica's process.
        cache: folder of the cache.
        spec: what is captured.
        compression: of the shards.
        cores: CPU cores of this replica; empty on GPUs.

    """

    def __init__(
        self,
        make_engine: EngineFactory,
        cache: Path,
        spec: CaptureSpec,
        compression: Compression,
        cores: tuple[int, ...],
    ) -> None:
        self._engine = make_engine(cores)
        self._cache = cache
        self._spec = spec
        self._compression = compression

    async def start(self) -> None:
        """Load the engine."""
        await self._engine.start()

    async def run_unit(self, requests: Sequence[Request]) -> UnitResult:
        """Answer all requests of a unit and commit them as one shard.

        A request that the engine refuses is returned as rejected; the others are kept.

        Raises:
            EngineError: the engine is dead, or returned something impossible.
            DataError: the shard cannot be written.

        """
        started = time.monotonic()
        answers = await asyncio.gather(*(self._answer(request) for request in requests))
        records = [answer for answer in answers if isinstance(answer, Record)]
        rejected = tuple(answer for answer in answers if isinstance(answer, RejectedRow))
        if not records:
            return UnitResult(0, 0, 0, 0, time.monotonic() - started, rejected)
        try:
            summary = await asyncio.get_running_loop().run_in_executor(
                None,
                write_shard,
                shard_folder(self._cache),
                records,
                self._spec,
                self._engine.version,
                self._compression,
            )
        except ValueError as error:
            raise EngineError(f"the engine's output is impossible: {error}", where=requests[0].source) from None
        return UnitResult(
            summary.records, summary.tokens, summary.rows, summary.bytes, time.monotonic() - started, rejected
        )

    def stop(self) -> None:
        """Free the engine."""
        self._engine.stop()

    async def _answer(self, request: Request) -> Record | RejectedRow:
        try:
            return await self._engine.answer(request)
        except ValueError as error:
            return RejectedRow(request.source, f"the engine refuses it: {error}")
