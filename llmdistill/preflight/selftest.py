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

from llmdistill.config.objectives import AnyObjective, ForwardKLConfig, TemperedConfig
from llmdistill.config.run import RunConfig
from llmdistill.preflight.findings import Finding, error, ok

if TYPE_CHECKING:
    import torch

    from llmdistill.cache.reader import CacheReader
    from llmdistill.types import Record

VOCABULARY, PADDING, RECORDS, TOKENS, PROMPT = 211, 13, 6, 25, 4
ROWS = RECORDS * (TOKENS - PROMPT)
_AGREEMENT = {"u4": 0.2, "u8": 2e-3, "u12": 2e-4, "f16": 2e-3}
"""Divergence in nats that a student may have from its own stored log-probabilities, for each way to store them."""
_FAR = 50
_TOLERANCE = 1e-4
_FIX = "do not train with this installation: run the tests of llmdistill and report what they show"
_PROGRESS = 0.5


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

    temperatures = sorted({o.temperature for o in config.objectives if isinstance(o, TemperedConfig)} - {1.0})
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = _tiny_model(), _tiny_model()
        spec = _spec(config, tuple(temperatures))
        records = [_record(teacher, number, spec) for number in range(RECORDS)]
        write_shard(Path(folder) / "shards", records, spec, "self-test", config.capture.compression)
        write_index(Path(folder))
        reader = CacheReader(Path(folder))
        return [
            _alignment(teacher, reader, config.capture.logprobs),
            *_gradients(student, reader, config.objectives),
            _accumulation(student, reader, config.objectives),
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


def _spec(config: RunConfig, temperatures: tuple[float, ...]) -> Any:
    from llmdistill.types import CaptureSpec

    # Few entries, so that the tail matters.
    top_k = min(getattr(config.capture, "top_k", 16), 16)
    return CaptureSpec(
        "score", "top_k", top_k, VOCABULARY, "", "", "self-test", "float32",
        temperatures=temperatures, logprobs=config.capture.logprobs,
    )  # fmt: skip


def _record(teacher: Any, number: int, spec: Any) -> Record:
    """A random sequence that the teacher scored, by way of the engine's layout."""
    import numpy as np
    import torch

    from llmdistill.teacher.extract import rows_of_prompt
    from llmdistill.types import Record

    token_ids = torch.randint(0, VOCABULARY, (TOKENS,))
    with torch.no_grad():
        logits_TV = teacher(token_ids.unsqueeze(0)).logits[0, :, :VOCABULARY]
    logprobs_TV = logits_TV.log_softmax(dim=1)
    supervised = [position >= PROMPT for position in range(TOKENS)]
    rows = rows_of_prompt(_flat(logprobs_TV, token_ids, spec.top_k), token_ids.tolist(), supervised, spec.top_k)
    if spec.temperatures:
        kept_RV = logprobs_TV[PROMPT - 1 : -1]
        exact = [(kept_RV / temperature).logsumexp(dim=1) for temperature in spec.temperatures]
        rows = dataclasses.replace(rows, logsumexp_RJ=torch.stack(exact, dim=1).numpy())
    return Record(
        number.to_bytes(16, "big"), token_ids.numpy().astype(np.int32), np.array(supervised), rows, "scored", number
    )


def _flat(logprobs_TV: torch.Tensor, token_ids: torch.Tensor, k: int) -> _Flat:
    """Entry i describes token i: first the token itself, then the k most likely; the first token has none."""
    starts, ends = [0], [0]
    ids: list[int] = []
    values: list[float] = []
    for position in range(1, len(token_ids)):
        row_V = logprobs_TV[position - 1]
        best = row_V.topk(k)
        starts.append(len(ids))
        ids += [int(token_ids[position]), *best.indices.tolist()]
        values += [float(row_V[token_ids[position]]), *best.values.tolist()]
        ends.append(len(ids))
    return _Flat(starts, ends, ids, values)


def _module(student: Any, objectives: tuple[AnyObjective, ...]) -> Any:
    from llmdistill.trainer.model import DistillationModule

    return DistillationModule(student, VOCABULARY, objectives)


def _alignment(teacher: Any, reader: CacheReader, format: str) -> Finding:
    import torch

    from llmdistill.trainer.data import collate

    batch = collate(reader, [tuple(range(RECORDS))], RECORDS * TOKENS)
    shifted = dataclasses.replace(batch, row_slots_R=batch.row_slots_R - 1)
    module = _module(teacher, (ForwardKLConfig(type="forward_kl"),))
    with torch.no_grad():
        here, off = (float(module(item)[1][0]) / ROWS for item in (batch, shifted))
    what = f"student = teacher: {here:.2g} nats a row; one position off: {off:.2g}"
    if not abs(here) <= _AGREEMENT[format] or not off > _FAR * _AGREEMENT["u8"]:
        return error("self-test: alignment", f"{what}; expected at most {_AGREEMENT[format]:g} and far more", _FIX)
    return ok("self-test: alignment", what)


def _gradients(student: Any, reader: CacheReader, objectives: tuple[AnyObjective, ...]) -> list[Finding]:
    """The norm of each objective's gradient by the logits, unweighted, in the middle of the training."""
    import torch

    from llmdistill.trainer.data import collate

    module = _module(student, objectives)
    module.zero_grad()
    total, values, squares = module(collate(reader, [tuple(range(RECORDS))], RECORDS * TOKENS), _PROGRESS, True)
    total.backward()
    whole = all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) for parameter in module.parameters()
    )
    norms = squares.sqrt().tolist()
    said = ", ".join(
        f"{objective.type} {float(value) / ROWS:.3g} a row (gradient {norm / ROWS:.2g})"
        for objective, value, norm in zip(objectives, values, norms, strict=True)
    )
    dead = [o.type for o, norm in zip(objectives, norms, strict=True) if not 0 < norm < float("inf")]
    if dead:
        return [error("self-test: gradients", f"no usable gradient of {', '.join(dead)}: {said}", _FIX)]
    if not whole:
        return [error("self-test: gradients", f"a parameter gets no finite gradient: {said}", _FIX)]
    return [ok("self-test: gradients", said)]


def _accumulation(student: Any, reader: CacheReader, objectives: tuple[AnyObjective, ...]) -> Finding:
    """One micro-batch against three, and against two ranks of unequal rows, with the trainer's own factors."""
    whole = _gradient(student, reader, objectives, [[[0, 1, 2, 3, 4, 5]]])
    accumulated = _gradient(student, reader, objectives, [[[0], [1, 2, 3], [4, 5]]])
    ranks = _gradient(student, reader, objectives, [[[0]], [[1, 2, 3, 4, 5]]])
    scale = float(whole.norm())
    errors = [float((other - whole).norm()) / scale for other in (accumulated, ranks)]
    what = f"gradient norm {scale:.3g}; 3 micro-batches differ by {errors[0]:.1g}, 2 ranks by {errors[1]:.1g} of it"
    if not max(errors) < _TOLERANCE:
        return error("self-test: accumulation", f"{what}; expected below {_TOLERANCE:g}", _FIX)
    return ok("self-test: accumulation", what)


def _gradient(
    student: Any, reader: CacheReader, objectives: tuple[AnyObjective, ...], ranks: list[list[list[int]]]
) -> torch.Tensor:
    """The step's gradient, flat, when so many ranks each compute these micro-batches of records."""
    import torch

    from llmdistill.trainer.data import collate

    module = _module(student, objectives)
    module.zero_grad()
    for micro_batches in ranks:
        for records in micro_batches:
            batch = collate(reader, [tuple(records)], RECORDS * TOKENS)
            total, *_ = module(batch, _PROGRESS)
            # DeepSpeed averages over ranks and micro-batches, and the trainer's factor takes that back.
            factor = len(ranks) * len(micro_batches) / ROWS
            (total * factor / (len(ranks) * len(micro_batches))).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
