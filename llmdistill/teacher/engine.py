"""The protocol that every teacher engine follows."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from llmdistill.types import Record, Request


class TeacherEngine(Protocol):
    """Answers requests with records. One engine serves one replica and many requests at once."""

    version: str
    """Name and version of the program behind it, for the provenance of shards."""

    async def start(self) -> None:
        """Load the weights."""

    async def answer(self, request: Request) -> Record:
        """Generate and capture, or score and capture, one request.

        Raises:
            ValueError: this request cannot be answered; others can.
            EngineError: the engine is dead or returned something impossible.

        """

    async def load_weights(self, file: Path) -> None:
        """Put other weights of the same names and shapes into the running engine, while it answers nothing.

        Args:
            file: safetensors, names as in the model folder.

        Raises:
            EngineError: they do not fit, or this engine cannot.

        """

    def stop(self) -> None:
        """Free the device."""
