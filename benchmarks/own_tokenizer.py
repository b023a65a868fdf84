"""A tiny student with its own tokenizer learns from a teacher's probabilities of text: three trainings side by side.

python benchmarks/own_tokenizer.py --text wikitext2_valid.txt [--teacher MODEL] [--records N] [--steps N] [--folder F]

The teacher scores paragraphs once; a random LLaMA with a tokenizer made of the same text is trained on them with
`hard_ce`, with `likelihood_matching`, and with both. Bits per byte are those of the held-out paragraphs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.shard import write_shard
from llmdistill.cache.stats import cache_stats
from llmdistill.cli import stages
from llmdistill.config.run import RunConfig
from llmdistill.observe.run_folder import RunFolder
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.render import load_tokenizer
from llmdistill.prompts.requests import make_requests
from llmdistill.teacher.huggingface_engine import HuggingFaceEngine
from llmdistill.types import Record, Request

VOCABULARY = 2000
OBJECTIVES = {
    "hard_ce": [{"type": "hard_ce"}],
    "likelihood_matching": [{"type": "likelihood_matching"}],
    "both": [{"type": "hard_ce"}, {"type": "likelihood_matching"}],
}


def save_student(folder: Path, paragraphs: list[str]) -> None:
    """A random LLaMA of some 1.3 million parameters with a byte-level tokenizer of 2,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken("<end>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(str(folder))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(str(folder))


def config_of(folder: Path, name: str, teacher: str, steps: int) -> RunConfig:
    """The run of one list of objectives."""
    return RunConfig.model_validate(
        {
            "output": str(folder / name),
            "prompts": {"sources": [{"path": str(folder / "text.jsonl")}], "mode": "score", "held_out": 0.2},
            "teacher": {"model": teacher, "engine": "huggingface", "dtype": "float32", "max_model_len": 512},
            "capture": {"top_k": 8},
            "student": {"model": str(folder / "model"), "tokenizer": "own"},
            "objectives": OBJECTIVES[name],
            "train": {
                "max_steps": steps, "epochs": 999, "sequence_length": 512, "micro_batch_size": 4,
                "tokens_per_step": 4096, "precision": "fp32", "lr": 3e-3, "zero_stage": 0, "save_steps": 9999,
            },
            "evaluate": {"baseline": False, "speed": None, "samples": 1, "bootstrap": 200},
        }
    )  # fmt: skip


def score(run: stages.Run) -> None:
    """Fill the teacher's cache in this process."""
    config, tokenizer = run.config, load_tokenizer(run.teacher_folder)
    spec = stages.capture_spec(run, tokenizer)
    requests = make_requests(read_prompts(config.prompts), tokenizer, config.prompts, config.teacher, spec).requests
    cores = tuple(range(os.cpu_count() or 1))
    end = tokenizer.eos_token_id
    engine = HuggingFaceEngine(run.teacher_folder, config.teacher, config.capture, len(tokenizer), end, cores)

    async def ask(requests: list[Request]) -> list[Record]:
        await engine.start()
        return list(await asyncio.gather(*(engine.answer(request) for request in requests)))

    write_shard(shard_folder(run.folder.cache), asyncio.run(ask(requests)), spec, engine.version)
    write_index(run.folder.cache)


def train(run: stages.Run) -> dict[str, Any]:
    """Train, export and measure one student; returns its figures."""
    run.folder.config.write_text(run.config.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    subprocess.run([*launcher, "-m", "llmdistill", "train", str(run.folder.config)], check=True, capture_output=True)
    stages.export(run)
    stages.evaluate(run)
    document = json.loads(run.folder.evaluation.read_text())
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    student = document["models"]["student"]
    return {
        "bits_per_byte": student["bits_per_byte"],
        "interval": student["intervals"]["bits_per_byte"],
        "calibration_error": student["expected_calibration_error"],
        "untrained": document["models"]["untrained"]["bits_per_byte"],
        "teacher": document["teacher"]["bits_per_byte"],
        "step_seconds": sorted(line["step_seconds"] for line in lines if "step_seconds" in line)[len(lines) // 2],
    }


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--teacher", default="smollm2-135m-instruct")
    parser.add_argument("--records", type=int, default=150)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    lines = (line.strip() for line in given.text.read_text(encoding="utf-8").splitlines())
    paragraphs = [line[:900] for line in lines if len(line) > 300][: given.records]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs))
    save_student(folder / "model", paragraphs)
    result: dict[str, Any] = {"paragraphs": len(paragraphs)}
    first: Path | None = None
    for name in OBJECTIVES:
        run = stages.Run(config_of(folder, name, given.teacher, given.steps), RunFolder(folder / name))
        run.folder.path.mkdir(parents=True)
        if first is None:
            started = time.monotonic()
            score(run)
            result["scoring_seconds"] = round(time.monotonic() - started, 1)
            first = run.folder.cache
        else:
            run.folder.cache.symlink_to(first)
        result[name] = train(run)
        stats = cache_stats(run.folder.student_cache)
        result["chunks"] = {key: stats[key] for key in ("rows", "chunks", "rows_without_teacher", "rows_per_chunk")}
        print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
