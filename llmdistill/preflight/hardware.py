"""What accelerators can do, by their data sheets, and what this machine's cores do, by a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One accelerator, or all cores of this machine."""

    name: str
    flops: float
    """Dense bf16 matrix products, FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""


ACCELERATORS = (
    Hardware("H100", 989e12, 3.35e12, 80e9),
    Hardware("H200", 989e12, 4.8e12, 141e9),
    Hardware("A100", 312e12, 2.039e12, 80e9),
    Hardware("L40S", 362e12, 0.864e12, 48e9),
)
"""NVIDIA's data sheets: H100 SXM, H200 SXM, A100 80 GB SXM, L40S; without sparsity."""

_SIDE = 768
_SECONDS = 0.2


def this_cpu(cores: int, memory: float) -> Hardware:
    """Half a second of bf16 products and of copies on one thread, times the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left = torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16)
        products = _rate(lambda: left @ left)
        source = torch.ones(1 << 25, dtype=torch.uint8)
        target = torch.empty_like(source)
        copies = _rate(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(threads)
    return Hardware(f"{cores} cores", cores * products * 2 * _SIDE**3, cores * copies * 2 * len(source), memory)


def _rate(action: Callable[[], object]) -> float:
    """Calls per second of this thread's own time, which other programs do not take from; after one that warms up."""
    action()
    calls, started = 0, time.thread_time()
    while (seconds := time.thread_time() - started) < _SECONDS:
        action()
        calls += 1
    return calls / seconds
