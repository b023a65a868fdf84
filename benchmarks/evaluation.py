"""How far the figures from stored rows are from those of the full distributions: python benchmarks/evaluation.py RUN.

The teacher of a finished run is loaded once more and gives its full distributions at held-out records. From them, in
float32 and unrounded, the rows of each kind of capture are made and measured as `llmdistill evaluate` does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.evaluation.metrics import model_values
from llmdistill.evaluation.teacher_side import TeacherSide
from llmdistill.objectives.targets import TopKTargets, WeightedTargets
from llmdistill.student.creation import load_student
from llmdistill.teacher.source import resolve_teacher

HEAD_MASS, HEAD_SIZE, DRAWS = 0.9, 8, 50


def top_k(p_RV: torch.Tensor, actual_R: torch.Tensor, k: int) -> TeacherSide:
    """The k most likely entries."""
    logprobs_RK, ids_RK = p_RV.topk(k, dim=1)
    head = TopKTargets(
        actual_ids_R=actual_R, ids_RK=ids_RK, logprobs_RK=logprobs_RK, mass_R=logprobs_RK.exp().sum(1).clamp_max(1)
    )
    return side(p_RV, actual_R, head, None)


def sampled(p_RV: torch.Tensor, actual_R: torch.Tensor) -> TeacherSide:
    """`DRAWS` draws of each row."""
    ids_RK = torch.multinomial(p_RV.exp(), DRAWS, replacement=True)
    weights_RK = torch.full(ids_RK.shape, 1 / DRAWS)
    weighted = WeightedTargets(actual_ids_R=actual_R, ids_RK=ids_RK, weights_RK=weights_RK, entropy_R=entropy(p_RV))
    return side(p_RV, actual_R, None, weighted)


def head_tail(p_RV: torch.Tensor, actual_R: torch.Tensor) -> TeacherSide:
    """The head up to `HEAD_MASS` or `HEAD_SIZE` entries, then ⌈DRAWS·ρ⌉ draws from the rest."""
    ids, weights, counts = [], [], []
    for p_V in p_RV.exp():
        best, order = p_V.topk(HEAD_SIZE)
        head = min(int((best.cumsum(0) < HEAD_MASS).sum()) + 1, HEAD_SIZE)
        rest_V = p_V.clone()
        rest_V[order[:head]] = 0
        rest = float(rest_V.sum())
        number = max(int(torch.ceil(torch.tensor(DRAWS * rest))), 1)
        drawn = torch.multinomial(rest_V, number, replacement=True)
        ids.append(torch.cat([order[:head], drawn]))
        weights.append(torch.cat([best[:head], torch.full((number,), rest / number)]))
        counts.append(head)
    padded = torch.nn.utils.rnn.pad_sequence
    weighted = WeightedTargets(
        actual_ids_R=actual_R,
        ids_RK=padded(ids, batch_first=True),
        weights_RK=padded(weights, batch_first=True),
        entropy_R=entropy(p_RV),
        head_counts_R=torch.tensor(counts),
    )
    return side(p_RV, actual_R, weighted.head(), weighted)


def entropy(p_RV: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p_RV.exp()).sum(1)


def side(
    p_RV: torch.Tensor, actual_R: torch.Tensor, head: TopKTargets | None, weighted: WeightedTargets | None
) -> TeacherSide:
    actual = p_RV.gather(1, actual_R.unsqueeze(1))[:, 0]
    return TeacherSide(actual_R, actual, entropy(p_RV), head, weighted, on_policy=True)


def dense(p_RV: torch.Tensor, q_RV: torch.Tensor) -> dict[str, torch.Tensor]:
    """The figures of the full distributions."""
    p, q = p_RV.double(), q_RV.double().log_softmax(1)
    return {
        "kl": (p.exp() * (p - q)).sum(1),
        "reverse_kl": (q.exp() * (q - p)).sum(1),
        "acceptance_rate": torch.minimum(p, q).exp().sum(1),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--records", type=int, default=31)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = json.loads((arguments.run / "config.resolved.json").read_text())
    reader = CacheReader(arguments.run / "cache")
    _, records = reader.split(config["prompts"]["held_out"])
    size = reader.spec.vocabulary_size
    teacher = load_student(resolve_teacher(config["teacher"]["model"]), torch.float32).eval()
    student = load_student(arguments.run / "student", torch.float32).eval()
    sums: dict[str, dict[str, float]] = {}
    rows = 0
    for number in records[: arguments.records].tolist():
        record = reader.read(number)
        ids = record.token_ids_N.unsqueeze(0)
        slots_R = record.supervised_N.nonzero()[:, 0] - 1
        p_RV = teacher(ids).logits[0, slots_R, :size].log_softmax(1)
        q_RV = student(ids).logits[0, slots_R, :size]
        actual_R = record.token_ids_N[record.supervised_N]
        rows += len(actual_R)
        found = {"full": dense(p_RV, q_RV)}
        sides = {f"top_k {k}": top_k(p_RV, actual_R, k) for k in (8, 16, 64, 256)}
        sides |= {"head_tail": head_tail(p_RV, actual_R), "sampled": sampled(p_RV, actual_R)}
        found |= {name: model_values(q_RV, teacher_side) for name, teacher_side in sides.items()}
        for name, values in found.items():
            for metric in ("kl", "reverse_kl", "acceptance_rate_lower", "acceptance_rate"):
                if metric in values:
                    total = sums.setdefault(name, {})
                    total[metric] = total.get(metric, 0.0) + float(values[metric].sum())
    print(f"{rows} rows")
    for name, values in sums.items():
        print(f"{name:<10} " + "  ".join(f"{metric} {value / rows:.4f}" for metric, value in values.items()))


if __name__ == "__main__":
    main()
