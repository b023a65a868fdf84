"""Let a teacher speak and keep of each row what every capture kind needs: the input of benchmarks/cache.py.

    python benchmarks/real_rows.py TEACHER_FOLDER OUT.npz FILE... [--tokens 1024] [--context 512]

A FILE of JSON lines with `messages` is answered by the teacher (sampled, temperature 0.7) and the answers are scored;
lines with `text`, and any other file, are scored as text. `--tokens` is the number of rows of each file. The file in
benchmarks/data has rows of SmolLM2-135M-Instruct: 1,060 of ten answers to configs/data/quickstart_prompts.jsonl (from
vLLM, scored here) and 1,022 of the beginning of score_texts.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

K, DRAWS, HEAD_SIZE, HEAD_MASS, TEMPERATURE = 64, 50, 8, 0.9, 2.0
NOTHING = 0xFFFFFFFF


@torch.inference_mode()
def score(
    model: Any, ids: torch.Tensor, first: int, vocabulary: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """The rows of the tokens from `first` on of one sequence, computed in float32."""
    logits = model(ids[None], use_cache=False).logits[0, first - 1 : -1, :vocabulary]
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
        "actual": logprobs.gather(1, ids[first:, None])[:, 0],
        "entropy": -(p * logprobs).sum(-1),
        "logsumexp": torch.logsumexp(logprobs / TEMPERATURE, -1),
        "draws": torch.multinomial(p, DRAWS, replacement=True, generator=generator).sort(1).values.to(torch.uint32),
        "heads": heads.to(torch.uint8),
        "tail": tail.sort(1).values.to(torch.uint32),
    }
    return {name: value.numpy() for name, value in found.items()} | {"tokens": ids.numpy().astype(np.uint32)}


def sequences(file: Path, tokenizer: Any, model: Any, rows: int, context: int) -> list[tuple[torch.Tensor, int]]:
    """Token ids, and the number of tokens at the beginning that no row predicts, for about `rows` rows."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else []
    if not lines or "messages" not in lines[0]:
        text = "\n\n".join(line["text"] for line in lines) or file.read_text()
        ids = torch.tensor(tokenizer(text[: rows * 8])["input_ids"][:rows])
        return [(part, 1) for part in ids.split(context)]
    found: list[tuple[torch.Tensor, int]] = []
    for line in lines:
        if sum(len(ids) - first for ids, first in found) >= rows:
            break
        prompt = tokenizer.apply_chat_template(
            line["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        ids = model.generate(prompt, do_sample=True, temperature=0.7, top_p=1.0, top_k=0, max_new_tokens=160)[0]
        found.append((ids, prompt.shape[1]))
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    model = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    found = [pair for file in args.files for pair in sequences(file, tokenizer, model, args.tokens, args.context)]
    parts = [score(model, ids, first, len(tokenizer), generator) for ids, first in found]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    narrow = {name: array.astype(np.float16) for name, array in arrays.items() if array.dtype == np.float32}
    shape = {"lengths": np.array([len(ids) for ids, _ in found]), "firsts": np.array([first for _, first in found])}
    np.savez_compressed(args.out, **(arrays | narrow | shape | {"vocabulary": np.array(len(tokenizer))}))
    print(
        f"{len(arrays['ids'])} rows, mean entropy {arrays['entropy'].mean():.2f} nats, {args.out.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
