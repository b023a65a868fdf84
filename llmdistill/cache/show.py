"""One record as readable text, or as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmdistill.cache.reader import CacheReader
from llmdistill.errors import ConfigError


def find_record(reader: CacheReader, which: str) -> int:
    """Number of the record that `which` names: a number, or the first hexadecimal digits (8 at least) of a key.

    Raises:
        ConfigError: no record, or more than one, is meant.
    """
    if which.isdigit() and len(which) < 8:
        if int(which) < len(reader):
            return int(which)
        raise ConfigError(f"there is no record {which}; the last one is {len(reader) - 1}")
    try:
        prefix = np.frombuffer(bytes.fromhex(which[: len(which) // 2 * 2]), np.uint8)
    except ValueError:
        raise ConfigError(f"{which!r} is neither a number nor the beginning of a key in hexadecimal") from None
    bytes_equal = np.flatnonzero((reader.keys.array[:, : len(prefix)] == prefix).all(axis=1)).tolist()
    same: list[int] = [number for number in bytes_equal if reader.keys[number].hex().startswith(which)]
    if len(same) != 1:
        raise ConfigError(f"{len(same)} of {len(reader)} records have keys that begin with {which!r}")
    return same[0]


def describe_record(
    reader: CacheReader, number: int, top: int = 5, decode: Callable[[Sequence[int]], str] | None = None
) -> dict[str, Any]:
    """A record as plain data.

    Args:
        reader: the cache.
        number: of the record.
        top: entries to show of each row.
        decode: token ids → text; None shows ids alone.
    """
    record = reader.read(number)

    def text(token: int) -> str | None:
        return decode([token]) if decode else None

    ids_RK, logprobs_RK = record.rows.decode(reader.spec.vocabulary_size)
    # The sampled kinds are not sorted, and filled up with -inf.
    order = logprobs_RK.argsort(dim=1, descending=True, stable=True)[:, :top]
    best = list(zip(ids_RK.gather(1, order).tolist(), logprobs_RK.gather(1, order).tolist(), strict=True))
    token_ids = record.token_ids_N.tolist()
    known_R = record.rows.actual_logprobs_R
    if reader.spec.kind == "chunks":
        # The last row of a chunk shows what the teacher gave the whole chunk.
        known_R[record.rows.chunk_ends_R] = record.rows.chunk_logprobs_E
    rows = []
    for row, token in enumerate(record.supervised_N.nonzero()[:, 0].tolist()):
        entropy = float(record.rows.entropy_R[row])
        rows.append(
            {
                "row": token - 1,
                "token": token_ids[token],
                "text": text(token_ids[token]),
                "logprob": None if math.isnan(logprob := float(known_R[row])) else logprob,
                "entropy": None if math.isnan(entropy) else entropy,
                "mass": float(record.rows.mass_R[row]),
                "top": [
                    {"token": entry, "text": text(entry), "logprob": logprob}
                    for entry, logprob in zip(*best[row], strict=True)
                    if logprob > -math.inf
                ],
            }
        )
    return {
        "number": number,
        "key": record.key.hex(),
        "shard": reader.shards[int(reader.shard_numbers[number])],
        "source": record.source,
        "finish_reason": record.finish_reason,
        "tokens": len(token_ids),
        "token_ids": token_ids,
        "text": decode(token_ids) if decode else None,
        "rows": rows,
    }


def record_text(said: dict[str, Any]) -> str:
    """`describe_record` for people."""
    lines = [
        f"record {said['number']}  key {said['key']}  in {said['shard']}",
        f"{said['tokens']} tokens, {len(said['rows'])} rows, finished by {said['finish_reason']}"
        + (f", from {said['source']}" if said["source"] else ""),
        "",
        said["text"] if said["text"] is not None else " ".join(map(str, said["token_ids"])),
        "",
        f"{'row':>6}  {'token':<20} {'logprob':>8} {'entropy':>8} {'mass':>6}  most likely",
    ]
    for row in said["rows"]:
        best = "  ".join(f"{_name(entry)} {math.exp(entry['logprob']):.3f}" for entry in row["top"])
        entropy = "-" if row["entropy"] is None else f"{row['entropy']:.3f}"
        logprob = "-" if row["logprob"] is None else f"{row['logprob']:.3f}"
        lines.append(f"{row['row']:>6}  {_name(row):<20} {logprob:>8} {entropy:>8} {row['mass']:>6.3f}  {best}")
    return "\n".join(lines)


def _name(entry: dict[str, Any]) -> str:
    return str(entry["token"]) if entry["text"] is None else f"{entry['token']} {entry['text']!r}"
