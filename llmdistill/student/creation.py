"""The student before training, as a plain Hugging Face folder: cut out of the teacher, or any other model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmdistill.config.student import FromTeacherConfig, StudentConfig
from llmdistill.errors import ConfigError
from llmdistill.student.calibration import measure_importance, require_sequences
from llmdistill.student.cutting import cut, decoder_layers
from llmdistill.student.experts import make_dense
from llmdistill.student.families import family_of
from llmdistill.student.folder import save_student
from llmdistill.student.layer_choice import choose_layers, require_layers
from llmdistill.student.plan import plan_shape
from llmdistill.student.random_weights import create_from_config
from llmdistill.student.selection import choose_widths
from llmdistill.student.shape import shape_of
from llmdistill.student.sizes import ParameterCount
from llmdistill.student.vocabulary import grow_vocabulary, require_same_tokenizer, tokenizer_files, vocabulary_size


@dataclass(frozen=True)
class Cut:
    """A student and how it came about."""

    student: PreTrainedModel
    layers: list[int]
    """The teacher's layers that it keeps."""
    table: str
    """What its shape was chosen from; empty where it was given."""


def cut_from_teacher(
    teacher: PreTrainedModel, wanted: FromTeacherConfig, sequences: Iterable[Sequence[int]] = ()
) -> Cut:
    """A student out of a teacher, which stays as it was.

    Args:
        teacher: in the precision that the student shall have.
        wanted: its sizes.
        sequences: token ids on which importance is measured; read only where something is chosen by it.

    Raises:
        ConfigError: the sizes or the architecture do not allow it.
        DataError: sequences are needed, and there are none.

    """
    usable = require_sequences(sequences) if wanted.measures else ()
    if not wanted.cuts_width:
        layers = _layers(teacher, wanted, teacher.config.num_hidden_layers, usable)
        return Cut(cut(teacher, layers, None), layers, "")
    family = family_of(teacher.config)
    importance = measure_importance(teacher, family, usable)
    if wanted.dense_experts is not None:
        teacher = make_dense(teacher, family, importance, wanted.dense_experts)
        family = family_of(teacher.config)
        importance = measure_importance(teacher, family, usable)
    shape = shape_of(teacher.config, family)
    count = ParameterCount(dict(teacher.named_parameters()), decoder_layers(teacher)[0], family, shape)
    plan = plan_shape(wanted, count, shape, family, teacher.config)
    layers = _layers(teacher, wanted, plan.shape.layers, usable)
    groups = getattr(teacher.config, "n_group", None) or 1
    widths = choose_widths(importance, family, layers, plan.shape, shape, groups)
    return Cut(cut(teacher, layers, widths), layers, plan.table)


def create_student(
    wanted: StudentConfig, teacher_folder: Path, folder: Path, sequences: Iterable[Sequence[int]] = ()
) -> str:
    """Write the untrained student that a configuration describes.

    Args:
        wanted: the `student` section.
        teacher_folder: the teacher.
        folder: written.
        sequences: see `cut_from_teacher`.

    Returns:
        what it has become, for a person: lines without a full stop.

    Raises:
        ConfigError: it cannot be.
        DataError: calibration sequences are needed, and there are none.

    """
    if wanted.from_teacher is not None:
        return create_from_teacher(teacher_folder, wanted.from_teacher, folder, sequences, wanted.dtype)
    if wanted.model is not None:
        if wanted.tokenizer == "own":
            return create_with_own_tokenizer(wanted.model, folder, wanted.dtype, wanted.seed)
        return create_from_model(wanted.model, teacher_folder, folder, wanted.dtype, wanted.seed)
    assert wanted.config is not None
    return create_from_config(wanted.config, teacher_folder, folder, wanted.seed, wanted.dtype)


def create_from_teacher(
    teacher_folder: Path,
    wanted: FromTeacherConfig,
    folder: Path,
    sequences: Iterable[Sequence[int]] = (),
    dtype: str = "auto",
) -> str:
    """Write the student that is cut out of the teacher; raises as `cut_from_teacher` does.

    Args:
        teacher_folder: the teacher.
        wanted: the student's sizes.
        folder: written.
        sequences: see `cut_from_teacher`.
        dtype: precision of the files; `auto`: the teacher's.

    Returns:
        a description.

    """
    teacher: Any = AutoModelForCausalLM.from_pretrained(str(teacher_folder), dtype="auto")
    if wanted.measures and _fits_gpu(teacher):
        teacher.to("cuda")
    made = cut_from_teacher(teacher, wanted, sequences)
    note = save_student(made.student, teacher_folder, folder, dtype)
    layers = f"keeps layers {', '.join(map(str, made.layers))} of the teacher"
    return "\n".join(part for part in (made.table, f"the student {layers}; {note}") if part)


def create_from_model(model: str, teacher_folder: Path, folder: Path, dtype: str = "auto", seed: int = 0) -> str:
    """Write the student from an existing model, with the teacher's tokenizer files.

    Its embeddings grow where the teacher's tokenizer has more tokens, and never shrink.

    Returns:
        a description.

    Raises:
        ConfigError: it cannot be loaded, or its tokenizer is another one than the teacher's.

    """
    student = _published(model)
    require_same_tokenizer(model, teacher_folder, f"student.model: {model}")
    added = grow_vocabulary(student, vocabulary_size(teacher_folder), seed)
    note = save_student(student, teacher_folder, folder, dtype)
    grown = f" with {added} rows added to its embeddings" if added else ""
    return f"the student is {model}{grown}; {note}"


def create_with_own_tokenizer(model: str, folder: Path, dtype: str = "auto", seed: int = 0) -> str:
    """Write the student from an existing model with its own tokenizer files and generation config.

    Returns:
        a description.

    Raises:
        ConfigError: it cannot be loaded, or has no tokenizer.

    """
    student, own = _published(model), tokenizer_files(model)
    added = grow_vocabulary(student, vocabulary_size(own), seed)
    note = save_student(student, own, folder, dtype)
    grown = f" with {added} rows added to its embeddings" if added else ""
    return f"the student is {model}{grown}, with its own tokenizer; {note}"


def _published(model: str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be loaded: {error}", where=f"student.model: {model}") from None


def _layers(
    teacher: PreTrainedModel, wanted: FromTeacherConfig, count: int, sequences: Sequence[Sequence[int]]
) -> list[int]:
    total = len(decoder_layers(teacher)[1])
    if isinstance(wanted.layers, tuple):
        return require_layers(wanted.layers, total)
    return choose_layers(teacher, wanted.layers or count, wanted.choose_layers, sequences)


def _fits_gpu(model: PreTrainedModel) -> bool:
    """Whether a GPU has room for the weights and, by a third more, for what a forward pass needs."""
    if not torch.cuda.is_available():
        return False
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return bool(size * 4 / 3 < torch.cuda.mem_get_info()[0])


def load_student(folder: Path, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """A model folder as a module, in `dtype`, with attention that honours packed sequences."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention)
