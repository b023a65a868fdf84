"""How much a run makes: tokens, rows, bytes of the cache and of everything else in its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from llmdistill.cache.size import CacheCounts, cache_bytes
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.preflight.facts import CorpusFacts
from llmdistill.types import CaptureSpec

_CHECKPOINT_BYTES = 14
"""Per parameter in bf16: weights 2, master weights 4, Adam's moments 8."""


@dataclass(frozen=True)
class Volume:
    """What the teacher stage reads and writes."""

    records: float
    prompt_tokens: float
    response_tokens: float
    """Of `generate` mode an upper bound: every response as long as `max_new_tokens`."""
    rows: float
    """Supervised tokens: rows of the cache."""

    @property
    def tokens(self) -> float:
        """Prompts and responses."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens_per_record(self) -> float:
        """Mean length."""
        return self.tokens / max(self.records, 1)

    def scaled(self, tokens: float) -> Volume:
        """The same mixture, with so many tokens in all."""
        factor = tokens / self.tokens
        return Volume(*(getattr(self, item.name) * factor for item in dataclasses.fields(self)))


def corpus_volume(config: RunConfig, corpus: CorpusFacts) -> Volume:
    """The volume of the corpus, of all teachers together."""
    return added(teacher_volumes(config, corpus).values())


def teacher_volumes(config: RunConfig, corpus: CorpusFacts) -> dict[str, Volume]:
    """The volume of each teacher that is asked."""
    return {
        name: _volume(teacher, config.prompts.mode == "generate", corpus.of_teacher(name))
        for name, teacher in config.asked_teachers.items()
    }


def added(volumes: Collection[Volume]) -> Volume:
    """The sum."""
    return Volume(*(sum(getattr(one, item.name) for one in volumes) for item in dataclasses.fields(Volume)))


def _volume(teacher: TeacherConfig, generate: bool, corpus: CorpusFacts) -> Volume:
    """The mean of the sample's rows that fit, times their number."""
    new = teacher.sampling.max_new_tokens if generate else 0
    samples = teacher.sampling.samples if generate else 1
    limit = teacher.max_model_len - (new if generate else 1)
    fitting = [index for index, length in enumerate(corpus.lengths) if length <= limit]
    share = len(fitting) / max(corpus.sampled, 1)
    records = corpus.rows * share * samples
    if not fitting:
        return Volume(0, 0, 0, 0)
    length = sum(corpus.lengths[index] for index in fitting) / len(fitting)
    supervised = sum(corpus.supervised[index] for index in fitting) / len(fitting)
    if generate:
        return Volume(records, records * length, records * new, records * new)
    return Volume(records, records * (length - supervised), records * supervised, records * supervised)


def rounds_volume(rounds: RoundsConfig, volume: Volume) -> Volume:
    """What the student writes in all rounds; of its answers an upper bound. `volume` is that of the corpus."""
    records = float(rounds.count * rounds.prompts * rounds.sampling.samples) if max(rounds.on_policy) else 0.0
    written = records * rounds.sampling.max_new_tokens
    return Volume(records, records * volume.prompt_tokens / volume.records, written, written)


def capture_spec(config: RunConfig, vocabulary_size: int) -> CaptureSpec:
    """The spec of the cache to be, without fingerprints: those need the weights and decide no size."""
    known = {item.name for item in dataclasses.fields(CaptureSpec)}
    captured = {name: value for name, value in config.capture.model_dump().items() if name in known}
    return CaptureSpec(
        **{
            "mode": config.prompts.mode,
            "vocabulary_size": vocabulary_size,
            "teacher": "",
            "tokenizer": "",
            "engine": config.teacher.engine,
            "dtype": config.teacher.dtype,
            **captured,
        }
    )


def cache_size(config: RunConfig, volume: Volume, vocabulary_size: int, hidden_width: int) -> float:
    """Bytes of the cache."""
    counts = CacheCounts(
        volume.records, volume.tokens, volume.rows, -(-volume.records // config.teacher.requests_per_shard)
    )
    return cache_bytes(capture_spec(config, vocabulary_size), counts, config.capture.compression, hidden_width)


def rounds_size(config: RunConfig, volume: Volume, vocabulary_size: int) -> float:
    """Bytes of the caches of all rounds: of the student's text, scored by the teacher. 0 without rounds."""
    if config.rounds is None or not max(config.rounds.on_policy):
        return 0.0
    return cache_size(config, rounds_volume(config.rounds, volume), vocabulary_size, 0)


def model_files(config: RunConfig, parameters: int, trained: int) -> float:
    """Bytes of checkpoints and models: each training keeps its newest checkpoints while it writes another.

    Args:
        config: the run.
        parameters: of the student.
        trained: those of them, or the adapters, that checkpoints hold.

    """
    trainings = 2 if config.evaluate.baseline else 1
    checkpoints = trainings * (config.train.save_total_limit + 1) * _CHECKPOINT_BYTES * trained
    return checkpoints + (1 + trainings) * 2 * parameters
