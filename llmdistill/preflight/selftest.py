"""The run's own numeric path on a model of a few thousand parameters: extract → shard → reader → batch → objectives.

Nothing is imitated: the log-probabilities take vLLM's layout and go through the functions that a run uses, with the
configured objectives, quantisation and compression. What it shows:

alignment       a student that equals the teacher is at a divergence of about 0, and one position off it is far away
gradients       every configured objective has a finite gradient, and it is not 0 where student and teacher differ
accumulation    one micro-batch or several, one rank or several: the same gradient
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.objectives import AnyObjective, ForwardKLConfig, TemperedConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.self_distillation import DeepSupervisionConfig
from llmdistill.config.structure import MappedConfig, RelationConfig
from llmdistill.preflight.findings import Finding, error, ok

if TYPE_CHECKING:
    import torch

    from llmdistill.cache.reader import CacheReader
    from llmdistill.teacher.columns import Columns
    from llmdistill.trainer.data import MicroBatch
    from llmdistill.types import Record

VOCABULARY, PADDING, RECORDS, TOKENS, PROMPT = 211, 13, 6, 25, 4
ROWS = RECORDS * (TOKENS - PROMPT)
_AGREEMENT = {"u4": 0.2, "u8": 2e-3, "u12": 2e-4, "f16": 2e-3}
"""Divergence in nats that a student may have from its own stored log-probabilities, for each way to store them."""
_AGREEMENT_OF_DRAWS = 0.2
"""The same for drawn entries, which are right on average only."""
_FAR = 50
_TOLERANCE = 1e-4
_FIX = "do not train with this installation: run the tests of llmdistill and report what they show"
_PROGRESS = 0.5
_SEQUENCES = [(0,), (1, 2, 3), (4, 5)]
"""Packed sequences of the records; unequal, so that what is weighed by sequences shows."""


@dataclass
class _Flat:
    """Log-probabilities in the layout of vLLM's `FlatLogprobs`."""

    start_indices: list[int]
    end_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


def self_test(config: RunConfig) -> list[Finding]:
    """Run it; a second or two."""
    import torch

    from llmdistill.cache.index import write_index
    from llmdistill.cache.reader import CacheReader
    from llmdistill.cache.shard import write_shard
    from llmdistill.teacher.columns import Columns
    from llmdistill.types import CaptureSpec

    live = config.train.soft_labels == "live"
    objectives = tuple(_fitting(objective) for objective in config.objectives)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = _tiny_model(), _tiny_model()
        capture = _capture(config)
        columns = Columns.of(capture, VOCABULARY)
        spec = CaptureSpec(
            mode="score", vocabulary_size=VOCABULARY, teacher="", tokenizer="", engine="self-test", dtype="float32",
            **capture.spec_fields(),
        )  # fmt: skip
        records = [_record(teacher, number, columns) for number in range(RECORDS)]
        write_shard(Path(folder) / "shards", records, spec, "self-test", config.capture.compression)
        write_index(Path(folder))
        reader = CacheReader(Path(folder))
        return [
            _alignment(teacher, reader, capture),
            *_gradients(_module(student, teacher, objectives, live), reader, objectives),
            _accumulation(_module(student, teacher, objectives, live), reader),
        ]


def _tiny_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: Any = LlamaConfig(
        vocab_size=VOCABULARY + PADDING, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(shape)
    return model.to(torch.float32)


def _fitting(objective: AnyObjective) -> AnyObjective:
    """The objective on layers and heads that the tiny models have."""
    if isinstance(objective, DeepSupervisionConfig):
        return objective.model_copy(update={"layers": (1,)})
    if isinstance(objective, RelationConfig):
        return objective.model_copy(update={"layers": "last", "count": None, "heads": 2})
    if isinstance(objective, MappedConfig):
        return objective.model_copy(update={"layers": "uniform", "count": None})
    return objective


def _capture(config: RunConfig) -> CaptureConfig:
    """The run's capture with the temperatures of its objectives; few entries, so that the tail matters."""
    used = {o.temperature for o in config.objectives if isinstance(o, TemperedConfig)} - {1.0}
    changes = {"top_k": min(config.capture.top_k, 16), "temperatures": tuple(sorted(used)), "hidden_layers": ()}
    return config.capture.model_copy(update=changes)


def _record(teacher: Any, number: int, columns: Columns) -> Record:
    """A random sequence that the teacher scored, by way of the engine's layout."""
    import numpy as np
    import torch

    from llmdistill.teacher import extract
    from llmdistill.teacher.capture import draw_seed, fill_columns
    from llmdistill.types import Record, student_source

    key = number.to_bytes(16, "little")
    token_ids = torch.randint(0, VOCABULARY, (TOKENS,))
    with torch.no_grad():
        logprobs_TV = teacher(token_ids.unsqueeze(0)).logits[0, :-1].log_softmax(dim=1)
    positions = np.arange(1, TOKENS)
    filled = fill_columns(
        logprobs_TV, token_ids[1:], np.full(TOKENS - 1, draw_seed(key), np.uint64), positions, columns
    )
    supervised = [position >= PROMPT for position in range(TOKENS)]
    rows = extract.rows_of_prompt(_flat(*filled), token_ids.tolist(), supervised, columns)
    # Every other one counts as the student's, so that objectives on either text see some.
    source = student_source(0) if number % 2 else ""
    return Record(key, token_ids.numpy().astype(np.int32), np.array(supervised), rows, "scored", number, source)


def _flat(ids_RW: torch.Tensor, values_RW: torch.Tensor) -> _Flat:
    """Entry i describes token i; the first token has none."""
    width = ids_RW.shape[1]
    ends = [0, *range(width, ids_RW.numel() + 1, width)]
    return _Flat([0, *ends[:-1]], ends, ids_RW.flatten().tolist(), values_RW.flatten().tolist())


def _module(student: Any, teacher: Any, objectives: tuple[AnyObjective, ...], live: bool) -> Any:
    from llmdistill.trainer.live_teacher import LiveTeacher
    from llmdistill.trainer.model import DistillationModule
    from llmdistill.trainer.states import StateNeeds

    needs = StateNeeds.of(objectives)
    for model in (student, teacher):
        model.set_attn_implementation(needs.attention_implementation)
    beside = LiveTeacher(teacher.requires_grad_(False), VOCABULARY, needs)
    # The teacher, of other weights than the student, stands for the earlier student as well.
    return DistillationModule(
        student, VOCABULARY, objectives, beside, live, dataclasses.replace(beside, needs=StateNeeds())
    )


def _alignment(teacher: Any, reader: CacheReader, capture: CaptureConfig) -> Finding:
    import torch

    from llmdistill.trainer.data import collate

    batch = collate(reader, [tuple(range(RECORDS))], RECORDS * TOKENS)
    shifted = dataclasses.replace(batch, row_slots_R=batch.row_slots_R - 1)
    module = _module(teacher, teacher, (ForwardKLConfig(type="forward_kl"),), live=False)
    allowed = _AGREEMENT[capture.logprobs] if capture.kind == "top_k" else _AGREEMENT_OF_DRAWS
    with torch.no_grad():
        here, off = (float(module(item)[1][0]) / ROWS for item in (batch, shifted))
    what = f"student = teacher: {here:.2g} nats a row; one position off: {off:.2g}"
    if not abs(here) <= allowed or not off > max(_FAR * _AGREEMENT["u8"], 4 * abs(here)):
        return error("self-test: alignment", f"{what}; expected at most {allowed:g} and far more", _FIX)
    return ok("self-test: alignment", what)


def _gradients(module: Any, reader: CacheReader, objectives: tuple[AnyObjective, ...]) -> list[Finding]:
    """The norm of each objective's gradient by the logits, unweighted, in the middle of the training."""
    import torch

    module.zero_grad()
    total, values, squares = module(_batch(reader, _SEQUENCES), _PROGRESS, True)
    total.backward()
    whole = all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) for parameter in module.parameters()
    )
    norms = squares.sqrt().tolist()
    said = ", ".join(
        f"{objective.name} {float(value) / ROWS:.3g} a row (gradient {norm / ROWS:.2g})"
        for objective, value, norm in zip(objectives, values, norms, strict=True)
    )
    dead = [o.name for o, norm in zip(objectives, norms, strict=True) if not 0 < norm < float("inf")]
    if dead:
        return [error("self-test: gradients", f"no usable gradient of {', '.join(dead)}: {said}", _FIX)]
    if not whole:
        return [error("self-test: gradients", f"a parameter gets no finite gradient: {said}", _FIX)]
    return [ok("self-test: gradients", said)]


def _accumulation(module: Any, reader: CacheReader) -> Finding:
    """One micro-batch against three, and against two ranks of unequal rows, with the trainer's own factors."""
    first, second, third = _SEQUENCES
    whole = _gradient(module, reader, [[_SEQUENCES]])
    accumulated = _gradient(module, reader, [[[first], [second], [third]]])
    ranks = _gradient(module, reader, [[[first]], [[second, third]]])
    scale = float(whole.norm())
    errors = [float((other - whole).norm()) / scale for other in (accumulated, ranks)]
    what = f"gradient norm {scale:.3g}; 3 micro-batches differ by {errors[0]:.1g}, 2 ranks by {errors[1]:.1g} of it"
    if not max(errors) < _TOLERANCE:
        return error("self-test: accumulation", f"{what}; expected below {_TOLERANCE:g}", _FIX)
    return ok("self-test: accumulation", what)


def _batch(reader: CacheReader, sequences: list[tuple[int, ...]]) -> MicroBatch:
    from llmdistill.trainer.data import collate

    return collate(reader, sequences, max(map(len, _SEQUENCES)) * TOKENS)


def _gradient(module: Any, reader: CacheReader, ranks: list[list[list[tuple[int, ...]]]]) -> torch.Tensor:
    """The step's gradient, flat, when so many ranks each compute these micro-batches of packed sequences."""
    import torch

    module.zero_grad()
    for micro_batches in ranks:
        for sequences in micro_batches:
            total, *_ = module(_batch(reader, sequences), _PROGRESS)
            # DeepSpeed averages over ranks and micro-batches, and the trainer's factor takes that back.
            factor = len(ranks) * len(micro_batches) / ROWS
            (total * factor / (len(ranks) * len(micro_batches))).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
