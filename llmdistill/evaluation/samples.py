"""Some held-out records token by token, for people to look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmdistill.cache.reader import CacheReader
from llmdistill.evaluation.heldout import RowTable


def show_records(
    reader: CacheReader, records: np.ndarray, tables: dict[str, RowTable], tokenizer: Any, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Prompt, response and each model's divergence per token of it, of `count` records chosen at random.

    Args:
        reader: the cache.
        records: numbers of the held-out records.
        tables: model → values at all held-out rows.
        tokenizer: of the run.
        count: how many; all where there are fewer.
        seed: of the choice.

    """
    candidates = np.flatnonzero(reader.row_counts[records])
    chosen = np.random.default_rng(seed).permutation(candidates)[:count]
    shown = []
    for index in chosen.tolist():
        record = reader.read(int(records[index]))
        ids, supervised = record.token_ids_N, record.supervised_N
        first = int(supervised.nonzero()[0, 0])
        found = {name: table.of_record(index) for name, table in tables.items()}
        shown.append(
            {
                "key": record.key.hex(),
                "prompt": tokenizer.decode(ids[:first], skip_special_tokens=False),
                "tokens": pieces(tokenizer, ids[supervised].tolist()),
                "finish_reason": record.finish_reason,
                "kl": {
                    name: [_rounded(value) for value in values["kl"]]
                    for name, values in found.items()
                    if "kl" in values
                },
                "cross_entropy": {
                    name: [_rounded(value) for value in values["cross_entropy"]] for name, values in found.items()
                },
            }
        )
    return shown


def pieces(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The text of each token, so that the pieces joined are the text: a character of several tokens is at its last."""
    texts, held = [], 0
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[held:end], skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(token_ids) and end - held < 4:
            texts.append("")
            continue
        texts.append(text)
        held = end
    return texts


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
