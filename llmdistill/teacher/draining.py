"""SIGTERM, as batch systems send it before they kill: what is in flight is finished, and nothing new begins."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def drain_on_sigterm() -> Iterator[threading.Event]:
    """Within this context a SIGTERM sets the event instead of ending the process; the second one ends it.

    Works in the main thread, which alone receives signals; elsewhere the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, drain)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
