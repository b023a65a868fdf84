"""Rows that are almost equal to an earlier one.

MinHash (Broder, 1997) with locality-sensitive hashing finds candidates; the decision is the exact Jaccard similarity
|A ∩ B| / |A ∪ B| of the two rows' sets of word n-grams. A row of fewer words than n is one n-gram.
"""

from __future__ import annotations

import numpy as np
from rensa import RMinHash, RMinHashLSH

from llmdistill.config.prompts import NearDuplicatesConfig
from llmdistill.prompts.ngrams import digest, ngram_hashes, texts, words
from llmdistill.prompts.rejects import DroppedRowError
from llmdistill.prompts.shapes import PromptRow

_PERMUTATIONS = 128
_SEED = 0
_RECALL = 0.999


class NearDuplicates:
    """Remembers the rows that it let pass.

    Args:
        config: threshold and size of n-grams. A pair at the threshold is found with a probability of at least .999.
    """

    def __init__(self, config: NearDuplicatesConfig) -> None:
        self._config = config
        bands = _bands(config.threshold)
        self._index = RMinHashLSH(threshold=config.threshold, num_perm=_PERMUTATIONS, num_bands=bands)
        self._kept: list[tuple[np.ndarray, str]] = []

    def check(self, row: PromptRow) -> None:
        """Let a row pass and remember it.

        Raises:
            DroppedRowError: it is almost equal to one that passed before.
        """
        sequence = words("\n".join(texts(row)))
        hashes = ngram_hashes(sequence, self._config.ngram) or {digest(sequence)}
        grams = np.array(sorted(hashes), dtype=np.uint64)
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update([str(gram) for gram in grams])
        for number in sorted(self._index.query(sketch)):
            other, source = self._kept[number]
            common = len(np.intersect1d(grams, other, assume_unique=True))
            similarity = common / (len(grams) + len(other) - common)
            if similarity >= self._config.threshold:
                raise DroppedRowError(f"near-duplicate: similarity {similarity:.2f} to {source}")
        self._index.insert(len(self._kept), sketch)
        self._kept.append((grams, row.source))


def _bands(threshold: float) -> int:
    """The fewest bands that find a pair at the threshold: with b bands of r rows, with probability 1 − (1 − sʳ)ᵇ."""
    for bands in (2, 4, 8, 16, 32, 64):
        if 1 - (1 - threshold ** (_PERMUTATIONS // bands)) ** bands >= _RECALL:
            return bands
    return _PERMUTATIONS
