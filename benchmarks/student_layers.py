r"""Ways of making SmolLM2-135M smaller, compared before any training: KL(teacher ‖ student) on held-out text.

    python benchmarks/student_layers.py --calibration TEXT --held-out OTHER_TEXT [--layers 9] [--json]

To compare them after a training of the quickstart's size, on its cache (12 minutes each on two cores):

    for rule in uniform first_last block_influence divergence; do
      cp -r runs/quickstart/cache runs/layers-$rule/cache   # the teacher's answers, once
      llmdistill run configs/quickstart.yaml output=runs/layers-$rule evaluate.baseline=false \\
        student.from_teacher.layers=9 student.from_teacher.choose_layers=$rule
    done
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmdistill.config.student import FromTeacherConfig
from llmdistill.student.creation import cut_from_teacher
from llmdistill.teacher.source import resolve_teacher


def sequences(path: Path, tokenizer: Any, count: int, tokens: int) -> list[list[int]]:
    """Pieces of a text, at equal distances."""
    ids = tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
    step = len(ids) // count
    assert step >= tokens, f"{path} is too short"
    return [ids[start : start + tokens] for start in range(0, step * count, step)]


@torch.no_grad()
def divergence(teacher: Any, student: Any, texts: list[list[int]]) -> float:
    """Mean KL(teacher ‖ student) over all rows, in nats."""
    total, rows = 0.0, 0
    for text in texts:
        p, q = (model(torch.tensor([text])).logits[0].float().log_softmax(dim=-1) for model in (teacher, student))
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        rows += len(text)
    return total / rows


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="smollm2-135m-instruct")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--sequences", type=int, default=8, help="of the calibration; twice as many are held out")
    parser.add_argument("--tokens", type=int, default=128, help="of each sequence")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = str(resolve_teacher(arguments.teacher))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    calibration = sequences(arguments.calibration, tokenizer, arguments.sequences, arguments.tokens)
    held_out = sequences(arguments.held_out, tokenizer, 2 * arguments.sequences, arguments.tokens)
    layers = arguments.layers
    uniform = cut_from_teacher(teacher, FromTeacherConfig(layers=layers)).student
    parameters = sum(parameter.numel() for parameter in uniform.parameters())
    ways: dict[str, FromTeacherConfig] = {
        "uniform": FromTeacherConfig(layers=layers),
        "first_last": FromTeacherConfig(layers=layers, choose_layers="first_last"),
        "block_influence": FromTeacherConfig(layers=layers, choose_layers="block_influence"),
        "same parameters, shape chosen": FromTeacherConfig(parameters=parameters),
        "same parameters, all layers": FromTeacherConfig(
            parameters=parameters, layers=teacher.config.num_hidden_layers
        ),
        "divergence": FromTeacherConfig(layers=layers, choose_layers="divergence"),
    }
    for name, wanted in ways.items():
        started = time.monotonic()
        made = cut_from_teacher(teacher, wanted, calibration)
        seconds = time.monotonic() - started
        config = made.student.config
        line = {
            "way": name,
            "kl": round(divergence(teacher, made.student, held_out), 3),
            "parameters": sum(parameter.numel() for parameter in made.student.parameters()),
            "layers": made.layers,
            "shape": [
                config.num_hidden_layers,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
            ],
            "seconds": round(seconds, 1),
        }
        text = f"{name:32} KL {line['kl']:7.3f}  {line['parameters']:>12,}  {line['shape']}  {made.layers}"
        print(json.dumps(line) if arguments.json else text, flush=True)


if __name__ == "__main__":
    main()
