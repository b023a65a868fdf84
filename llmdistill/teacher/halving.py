"""Out of memory: a batch that does not fit is done in two halves, and a request that does not fit alone is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from llmdistill.types import Request

_Answer = TypeVar("_Answer")


def in_halves(
    requests: Sequence[Request], work: Callable[[Sequence[Request]], list[_Answer]]
) -> list[_Answer | ValueError]:
    """Answers of `work`, in order; it is called with fewer requests as long as it runs out of memory.

    Returns:
        for a request that does not even fit alone, a ValueError that says so.

    """
    try:
        return list(work(requests))
    except torch.OutOfMemoryError:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(requests) == 1:
            return [ValueError(f"out of memory for {len(requests[0].token_ids)} tokens alone")]
    # Outside of the handler: the exception's traceback holds the tensors of the attempt.
    middle = len(requests) // 2
    return in_halves(requests[:middle], work) + in_halves(requests[middle:], work)
