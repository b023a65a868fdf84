"""One replica of the teacher: takes work units, writes shards, returns facts about them and no tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from llmdistill.cache.index import shard_folder, shard_storage
from llmdistill.cache.shard import Compression, ShardSummary, shard_name, write_shard
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import EngineError
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.engine import TeacherEngine
from llmdistill.teacher.filters import ResponseFilter
from llmdistill.teacher.gates import check_record
from llmdistill.types import CaptureSpec, Record, Request

EngineFactory = Callable[[tuple[int, ...]], TeacherEngine]
"""Makes the engine of a replica on these CPU cores (none: on its GPUs)."""
FilterFactory = Callable[[], ResponseFilter]
"""Makes the filter of a replica."""


Filtered = tuple[tuple[bytes, RejectedRow], ...]
"""Keys of the responses that the filters dropped, and why."""


@dataclass(frozen=True)
class Target:
    """Where a job's records go."""

    cache: Path
    """Folder of the cache."""
    spec: CaptureSpec
    """What is captured."""
    compression: Compression = "none"
    """Of the shards."""


@dataclass(frozen=True)
class UnitResult:
    """What became of a work unit."""

    records: int
    tokens: int
    """Prompt and response."""
    rows: int
    bytes: int
    rejected: tuple[RejectedRow, ...]
    filtered: Filtered = ()


class Replica:
    """Runs in a process of its own; several units are in flight at once, so that the engine's batch stays full.

    Args:
        make_engine: called in the replica's process.
        make_filter: makes what drops responses, in the replica's process.

    """

    def __init__(self, make_engine: EngineFactory, make_filter: FilterFactory | None = None) -> None:
        # What these raise must reach the driver as it is, and a constructor's errors do not.
        self._make_engine = make_engine
        self._make_filter = make_filter

    async def node(self) -> str:
        """Id of the node that it was placed on."""
        return str(ray.get_runtime_context().get_node_id())

    async def start(self, cores: tuple[int, ...]) -> None:
        """Load the engine on these cores of the node; on its GPUs where there are none."""
        self._filter = None if self._make_filter is None else self._make_filter()
        self._engine = self._make_engine(cores)
        await self._engine.start()

    async def load_weights(self, file: Path) -> None:
        """Put other weights into the running engine; nothing may be in flight. See `TeacherEngine.load_weights`."""
        await self._engine.load_weights(file)

    async def run_unit(self, requests: Sequence[Request], target: Target) -> UnitResult:
        """Answer all requests of a unit and commit them as one shard.

        A request that the engine refuses is returned as rejected; the others are kept. Nothing is committed unless
        every record passes `check_record`.

        Raises:
            EngineError: the engine is dead, or returned something impossible.
            DataError: the shard cannot be written.

        """
        answers = await asyncio.gather(*(self._answer(request, target.spec) for request in requests))
        records = [answer for answer in answers if isinstance(answer, Record)]
        rejected = tuple(answer for answer in answers if isinstance(answer, RejectedRow))
        filtered: Filtered = ()
        if self._filter is not None:
            records, dropped = self._filter.apply(records)
            sources = {request.key: request.source for request in requests}
            filtered = tuple(
                (record.key, RejectedRow(sources[record.key], f"filtered: {reason}")) for record, reason in dropped
            )
        if not records:
            return UnitResult(0, 0, 0, 0, rejected, filtered)
        try:
            summary = await asyncio.get_running_loop().run_in_executor(None, self._commit, records, target)
        except ValueError as error:
            raise EngineError(f"the engine's output is impossible: {error}", where=requests[0].source) from None
        return UnitResult(summary.records, summary.tokens, summary.rows, summary.bytes, rejected, filtered)

    def _commit(self, records: Sequence[Record], target: Target) -> ShardSummary:
        storage, name = shard_storage(target.cache), shard_name([record.key for record in records])
        if storage.size(name) >= 0:
            # Files never change: a replica that was taken for dead, on a host that was cut off, has done it after all.
            with ShardFile(storage.local(name)) as shard:
                return shard.summary
        folder = shard_folder(target.cache)
        return write_shard(folder, records, target.spec, self._engine.version, target.compression)

    def stop(self) -> None:
        """Free the engine."""
        self._engine.stop()

    async def _answer(self, request: Request, spec: CaptureSpec) -> Record | RejectedRow:
        try:
            record = await self._engine.answer(request)
            check_record(request, record, spec)
            return replace(record, source=request.source_name)
        except ValueError as error:
            return RejectedRow(request.source, f"the engine refuses it: {error}")
