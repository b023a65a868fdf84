"""Which teacher answers a prompt: a pure function of the prompt and of what its source says.

Every teacher draws a number from the prompt and its own name, and the best one answers (weighted rendezvous hashing,
Schindelhauer and Schomaker 2005: the draw -ln(u)/weight of an exponential distribution is the least of all with a
probability of weight / Σ weights). So neither the order nor the number of prompts matters, and a teacher or a weight
that changes moves no more prompts than it must.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

from llmdistill.prompts.shapes import PromptRow


def choose_teacher(row: PromptRow, weights: Mapping[str, float]) -> str:
    """The name of the teacher that answers a row.

    Args:
        row: what `Renderer.asked` returned; an answer that it ends with does not count.
        weights: name → weight above 0, at least one; their order does not matter.

    """
    if len(weights) == 1:
        return next(iter(weights))
    messages = row.messages
    if messages is not None and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    prompt = json.dumps([messages, row.text, row.tools], sort_keys=True).encode()
    return min(sorted(weights), key=lambda name: -math.log(_uniform(name, prompt)) / weights[name])


def _uniform(name: str, prompt: bytes) -> float:
    """0 < u < 1, independent of the hash that decides what is held out."""
    digest = hashlib.blake2b(prompt, digest_size=8, key=name.encode())
    return (int.from_bytes(digest.digest(), "little") + 0.5) / 2**64
