"""How much each record weighs in the loss, by the source that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmdistill.cache.reader import CacheReader
from llmdistill.errors import DataError


def record_weights(reader: CacheReader, weights: Mapping[str, float]) -> np.ndarray | None:
    """Weight of each record of a cache.

    Args:
        reader: the cache.
        weights: `train.source_weights`; sources that are not named weigh 1.

    Returns:
        float64 [S], above 0; None where all weigh 1.

    """
    of_source = np.array([weights.get(name, 1.0) for name in reader.sources], np.float64)
    return None if (of_source == 1.0).all() else np.take(of_source, reader.source_numbers)


def require_sources(reader: CacheReader, weights: Mapping[str, float], cache: Path) -> None:
    """Refuse weights that no record of a complete cache would have.

    Raises:
        DataError: no record has a source of that name.

    """
    missing = [name for name in weights if name not in reader.sources]
    if missing:
        known = ", ".join(sorted(filter(None, reader.sources)))
        raise DataError(
            f"train.source_weights: no record is of the source {', '.join(missing)};"
            f" {f'the sources are {known}' if known else 'its records do not name their sources'}",
            where=str(cache),
            fix="use the names that the records have (prompts.sources[].label, when they were made), or generate anew",
        )
