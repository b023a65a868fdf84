"""Which student layer learns from which teacher layer.

Layers are counted as in transformers' `hidden_states`: 0 is the embeddings, l the output of block l. The last, unlike
all others, comes after the final norm, so it may only be paired with the last. Attention maps have no entry for the
embeddings: that of block l is `attentions[l - 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmdistill.errors import ConfigError


@dataclass(frozen=True)
class LayerPair:
    """One pair, both counted from 0 (embeddings) to the number of blocks."""

    student: int
    teacher: int


def uniform_map(student_layers: int, teacher_layers: int, count: int | None = None) -> list[LayerPair]:
    """Pairs at equal depth, the last with the last: 4 blocks from 28 learn from 7, 14, 21, 28.

    Source: TinyBERT, arXiv 1909.10351 (uniform mapping).

    Args:
        student_layers: blocks.
        teacher_layers: blocks; at least as many.
        count: pairs, the deepest ones at equal distances; None: one for each student block.

    Raises:
        ConfigError: fewer teacher layers than student layers, or more pairs than student layers.

    """
    count = student_layers if count is None else count
    if not 1 <= count <= student_layers <= teacher_layers:
        raise ConfigError(
            f"{count} pairs of {student_layers} student layers and {teacher_layers} teacher layers",
            where="layer map",
            fix="use at most one pair a student layer, and a teacher that is at least as deep",
        )
    students = [-(-student_layers * (i + 1) // count) for i in range(count)]
    return [LayerPair(layer, round(layer * teacher_layers / student_layers)) for layer in students]


def last_map(student_layers: int, teacher_layers: int, count: int = 1) -> list[LayerPair]:
    """The last `count` layers of each, end to end: the last with the last, the one before with the one before.

    Raises:
        ConfigError: more pairs than layers.

    """
    pairs = [(student_layers - i, teacher_layers - i) for i in reversed(range(count))]
    return explicit_map(pairs, student_layers, teacher_layers)


def explicit_map(pairs: Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> list[LayerPair]:
    """Pairs (student layer, teacher layer) as given, after checks.

    Raises:
        ConfigError: a layer that does not exist, or a last layer (after the final norm) with another (before it).

    """
    for student, teacher in pairs:
        if not (0 <= student <= student_layers and 0 <= teacher <= teacher_layers):
            raise ConfigError(
                f"({student}, {teacher}) is not a pair of layers 0 … {student_layers} and 0 … {teacher_layers}",
                where="layer map",
                fix="0 is the embeddings, the number of blocks is the last layer",
            )
        if (student == student_layers) != (teacher == teacher_layers):
            raise ConfigError(
                f"({student}, {teacher}) pairs a state after the final norm with one before it",
                where="layer map",
                fix=f"pair the last with the last: ({student_layers}, {teacher_layers})",
            )
    return [LayerPair(*pair) for pair in pairs]
