"""Score a text with a teacher and keep, for each row, what every capture kind needs: the input of benchmarks/cache.py.

    python benchmarks/real_rows.py TEACHER_FOLDER TEXT_FILE OUT.npz [--tokens 2048] [--context 512]

The file in benchmarks/data was made so from SmolLM2-135M-Instruct and configs/data/score_texts.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

K, DRAWS, HEAD_SIZE, HEAD_MASS, TEMPERATURE = 64, 50, 8, 0.9, 2.0
NOTHING = 0xFFFFFFFF


@torch.inference_mode()
def score(model: torch.nn.Module, ids: torch.Tensor, vocabulary: int, generator: torch.Generator) -> dict[str, np.ndarray]:
    """All rows of one sequence, computed in float32."""
    logits = model(ids[None], use_cache=False).logits[0, :-1, :vocabulary]
    logprobs = torch.log_softmax(logits.float(), -1)
    p = logprobs.exp()
    best = logprobs.topk(K, -1)
    heads = ((best.values[:, :HEAD_SIZE].exp().cumsum(-1) < HEAD_MASS).sum(-1) + 1).clamp(max=HEAD_SIZE)
    kept = torch.arange(HEAD_SIZE)[None] < heads[:, None]
    rest = p.scatter(1, torch.where(kept, best.indices[:, :HEAD_SIZE], best.indices[:, :1]), 0.0)
    rho = rest.double().sum(-1)
    tail = torch.multinomial(rest.clamp(min=1e-30), DRAWS, replacement=True, generator=generator)
    tail[torch.arange(DRAWS)[None] >= torch.ceil(DRAWS * rho)[:, None]] = NOTHING
    found = {
        "ids": best.indices.to(torch.uint32),
        "logprobs": best.values,
        "actual": logprobs.gather(1, ids[1:, None])[:, 0],
        "entropy": -(p * logprobs).sum(-1),
        "logsumexp": torch.logsumexp(logprobs / TEMPERATURE, -1),
        "draws": torch.multinomial(p, DRAWS, replacement=True, generator=generator).sort(1).values.to(torch.uint32),
        "heads": heads.to(torch.uint8),
        "tail": tail.sort(1).values.to(torch.uint32),
    }
    return {name: value.numpy() for name, value in found.items()} | {"tokens": ids.numpy().astype(np.uint32)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    model = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    text = args.text.read_text()
    if args.text.suffix == ".jsonl":
        text = "\n\n".join(json.loads(line)["text"] for line in text.splitlines())
    ids = torch.tensor(tokenizer(text[: args.tokens * 8])["input_ids"][: args.tokens])
    generator = torch.Generator().manual_seed(0)
    parts = [score(model, part, len(tokenizer), generator) for part in ids.split(args.context)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    narrow = {name: array.astype(np.float16) for name, array in arrays.items() if array.dtype == np.float32}
    lengths = np.array([len(part["tokens"]) for part in parts])
    np.savez_compressed(args.out, **(arrays | narrow | {"lengths": lengths, "vocabulary": np.array(len(tokenizer))}))
    print(f"{len(arrays['ids'])} rows, mean entropy {arrays['entropy'].mean():.2f} nats, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
