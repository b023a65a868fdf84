"""What is asked in a round: of the student the next prompts, and of the teacher what the student wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmdistill.config.prompts import MAIN_TEACHER, PromptsConfig
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.keys import record_key, sampling_seed, spec_fingerprint
from llmdistill.prompts.requests import make_requests
from llmdistill.types import CaptureSpec, Request, student_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_prompts(
    prompts: PromptsConfig,
    tokenizer: PreTrainedTokenizerBase,
    writer: TeacherConfig,
    spec: CaptureSpec,
    rounds: RoundsConfig,
) -> list[Request]:
    """The corpus' training prompts, each once, in an order that depends on nothing but them and the seed.

    Args:
        prompts: the corpus; answers that its rows hold are not used.
        tokenizer: of student and teacher.
        writer: the student's engine, whose longest sequence a prompt must leave room in.
        spec: of what the student writes.
        rounds: the rounds.

    Raises:
        ConfigError: a round wants more prompts than there are.

    """
    asked = prompts.model_copy(update={"mode": "generate"})
    once = writer.model_copy(update={"sampling": writer.sampling.model_copy(update={"samples": 1})})
    requests = make_requests(read_prompts(asked), tokenizer, asked, {MAIN_TEACHER: (once, spec)}).requests
    found = of_training(requests, prompts, rounds)
    seed = rounds.sampling.seed

    def place(request: Request) -> bytes:
        return hashlib.blake2b(f"{seed}:{request.token_ids}".encode(), digest_size=16).digest()

    return sorted(found, key=place)


def of_training(requests: Iterable[Request], prompts: PromptsConfig, rounds: RoundsConfig) -> list[Request]:
    """A request for each prompt that is not held out.

    Raises:
        ConfigError: they are fewer than a round wants.

    """
    first_held_out = int(prompts.held_out * 2**64)
    found = {request.split: request for request in requests if request.split >= first_held_out}
    if len(found) < rounds.prompts:
        raise ConfigError(
            f"a round wants {rounds.prompts} prompts, the corpus has {len(found)} for training",
            where="rounds.prompts",
            fix=f"use {len(found)} or less, or add prompts",
        )
    return list(found.values())


def rollout_requests(prompts: Sequence[Request], spec: CaptureSpec, rounds: RoundsConfig, number: int) -> list[Request]:
    """What the student is asked for round `number`: the next prompts, with seeds of this round."""
    common, samples = spec_fingerprint(spec), rounds.sampling.samples
    first, found = number * rounds.prompts, []
    for place in range(first, first + rounds.prompts):
        prompt = prompts[place % len(prompts)]
        for sample in range(samples):
            seed = sampling_seed(rounds.sampling.seed, prompt.token_ids, number * samples + sample)
            key = record_key(common, prompt.token_ids, seed)
            found.append(Request(key, prompt.token_ids, prompt.source, seed, split=prompt.split))
    return found


def score_requests(
    written: Iterable[tuple[bytes, Sequence[int], Sequence[bool], int]], spec: CaptureSpec, step: int
) -> list[Request]:
    """What the teacher is asked about the student's text. Equal texts stay records of their own: each was drawn.

    Args:
        written: key, token ids, supervised flags and split of each of the student's records.
        spec: of the teacher's scores.
        step: optimizer steps of the student that wrote them.

    """
    common, found = spec_fingerprint(spec), []
    for key, token_ids, supervised, split in written:
        draw = int.from_bytes(key[:8], "little")
        name = f"{student_source(step)}, answer {key.hex()}"
        scored = record_key(common, token_ids, draw, supervised)
        found.append(
            Request(scored, tuple(token_ids), name, None, tuple(supervised), split, source_name=student_source(step))
        )
    return found
