"""How far a model is from its teacher on held-out records of the cache; no teacher is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from llmdistill.cache.reader import CacheReader, StoredRecord
from llmdistill.objectives.cross_entropy import token_ce
from llmdistill.objectives.rows import Rows
from llmdistill.objectives.targets import TopKTargets
from llmdistill.objectives.terms import forward_kl_values
from llmdistill.student.creation import load_student


@dataclass(frozen=True)
class HeldOutResult:
    """Means over all held-out rows."""

    kl: float
    """KL(teacher ‖ student) in nats, on the stored entries with one bucket for the rest."""
    top1_agreement: float
    """Share of the rows where both have the same most likely token."""
    perplexity: float
    """exp of the mean cross-entropy of the student on the teacher's text."""


def evaluate_model(
    folder: Path, reader: CacheReader, records: np.ndarray, on_progress: Callable[[int], None] = lambda done: None
) -> HeldOutResult:
    """Evaluate a model folder on records of a cache; computed in float32.

    Args:
        folder: a Hugging Face model folder.
        reader: the cache.
        records: numbers of the records, at least one with supervised rows.
        on_progress: called with the number of records done.

    """
    model = load_student(folder, torch.float32).eval()
    sums, rows = torch.zeros(3, dtype=torch.float64), 0
    for done, number in enumerate(records.tolist(), start=1):
        record = reader.read(number)
        if len(record.rows.mass_R):
            sums += _sums(model, record, reader.spec.vocabulary_size)
            rows += len(record.rows.mass_R)
        on_progress(done)
    kl, agreement, cross_entropy = (sums / rows).tolist()
    return HeldOutResult(kl, agreement, math.exp(cross_entropy))


@torch.inference_mode()
def _sums(model: PreTrainedModel, record: StoredRecord, vocabulary_size: int) -> torch.Tensor:
    """float64 [3]: Σ_rows of KL, agreement and cross-entropy of one record."""
    # Row t predicts token t+1: the row of a supervised token lies one slot before it.
    slots_R = record.supervised_N.nonzero()[:, 0] - 1
    hidden_RD = model.base_model(record.token_ids_N.unsqueeze(0), use_cache=False).last_hidden_state[0, slots_R]
    logits_RV = hidden_RD @ model.get_output_embeddings().weight[:vocabulary_size].T
    ids_RK, logprobs_RK = record.rows.decode(vocabulary_size)
    targets = TopKTargets(
        actual_ids_R=record.token_ids_N[slots_R + 1], ids_RK=ids_RK, logprobs_RK=logprobs_RK, mass_R=record.rows.mass_R
    )
    rows = Rows(logits_RV, targets)
    agreement_R = logits_RV.argmax(dim=1) == ids_RK[:, 0]
    return torch.stack(
        [
            forward_kl_values(rows).double().sum(),
            agreement_R.double().sum(),
            token_ce(rows.student()).double().sum(),
        ]
    )
