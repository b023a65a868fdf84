"""Whether the prompts can be used, and fit into what teacher and trainer take."""

from __future__ import annotations

from llmdistill.config.run import RunConfig
from llmdistill.preflight.facts import CorpusFacts, Facts
from llmdistill.preflight.findings import Finding, error, ok, warning

_EXAMPLES = 3


def check_rows(config: RunConfig, facts: Facts) -> list[Finding]:
    """Rows that make no request."""
    corpus = facts.corpus
    if corpus is None:
        return []
    rows = f"{corpus.rows:,}" if corpus.exact else f"at least {corpus.rows:,}"
    if corpus.rejected:
        source, reason = corpus.rejected[0]
        return [
            warning(
                "prompts",
                f"{len(corpus.rejected):,} of {corpus.sampled:,} sampled rows (of {rows}) cannot be used; {source}:"
                f" {reason}",
                "correct these rows, or go on without them: the run names each in cache/rejected.jsonl",
            )
        ]
    return [
        ok(
            "prompts",
            f"{rows} rows, {corpus.sampled:,} rendered, {min(corpus.lengths)} to {max(corpus.lengths)} tokens",
        )
    ]


def check_lengths(config: RunConfig, facts: Facts) -> list[Finding]:
    """Rows against `teacher.max_model_len`, and records against `train.sequence_length`."""
    if facts.corpus is None or not facts.corpus.lengths:
        return []
    return [*_against_model_length(config, facts.corpus), *_against_sequence_length(config, facts.corpus)]


def _against_model_length(config: RunConfig, corpus: CorpusFacts) -> list[Finding]:
    new = config.teacher.sampling.max_new_tokens if config.prompts.mode == "generate" else 1
    limit = config.teacher.max_model_len - new
    long = [index for index, length in enumerate(corpus.lengths) if length > limit]
    allowed = f"teacher.max_model_len {config.teacher.max_model_len} less {new} new = {limit}"
    if not long:
        return [ok("lengths", f"longest row {max(corpus.lengths)} tokens, allowed {max(limit, 0)} ({allowed})")]
    needed = max(corpus.lengths) + new
    what = (
        f"{len(long):,} of {len(corpus.lengths):,} sampled rows are too long for {allowed}: {_examples(corpus, long)}"
    )
    fix = f"use teacher.max_model_len={needed} for all of them"
    if len(long) == len(corpus.lengths):
        return [error("lengths", what, f"{fix}, or shorter responses (teacher.sampling.max_new_tokens)")]
    return [
        warning("lengths", what, f"{fix}; otherwise the run leaves them out and names each in cache/rejected.jsonl")
    ]


def _examples(corpus: CorpusFacts, chosen: list[int]) -> str:
    worst = sorted(chosen, key=lambda index: -corpus.lengths[index])[:_EXAMPLES]
    named = ", ".join(f"{corpus.sources[index]} has {corpus.lengths[index]}" for index in worst)
    return named + (", …" if len(chosen) > _EXAMPLES else "")


def _against_sequence_length(config: RunConfig, corpus: CorpusFacts) -> list[Finding]:
    """The trainer refuses a cache with a record that no packed sequence holds."""
    slots = config.train.sequence_length
    generate = config.prompts.mode == "generate"
    limit = config.teacher.max_model_len
    new = config.teacher.sampling.max_new_tokens if generate else 0
    kept = [length for length in corpus.lengths if length + max(new, 1) <= limit]
    if not kept:
        return []
    longest = max(kept) + new
    if longest <= slots:
        return [ok("sequences", f"longest record {longest} tokens, train.sequence_length {slots}")]
    many = sum(length + new > slots for length in kept)
    fix = f"use train.sequence_length={longest}"
    if not generate or max(kept) >= slots:
        what = (
            f"records of up to {longest} tokens do not fit into train.sequence_length {slots}, and training would stop"
        )
        return [error("sequences", what, f"{fix}, or teacher.max_model_len={slots}")]
    what = (
        f"{many:,} of {len(kept):,} sampled rows may make records of up to {longest} tokens, more than"
        f" train.sequence_length {slots}, which training refuses"
    )
    return [warning("sequences", what, f"{fix}, or teacher.max_model_len={slots}")]
