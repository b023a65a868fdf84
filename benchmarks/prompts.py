"""What a corpus costs before a teacher sees it: CPU seconds per 1,000 rows, step by step, and what the filters find.

    python benchmarks/prompts.py train.jsonl --evaluation test.jsonl [--json]

Any files with a format of docs/prompts.md will do.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.rejects import counts_by_kind
from llmdistill.prompts.render import load_tokenizer
from llmdistill.prompts.requests import make_requests
from llmdistill.teacher.source import resolve_teacher
from llmdistill.types import CaptureSpec

SPEC = CaptureSpec("generate", "top_k", 64, 49152, "teacher", "tokenizer", "fake", "float32", {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base = {"sources": [{"path": arguments.corpus}]}
    variants: dict[str, dict[str, Any]] = {
        "generate": {},
        "score": {"mode": "score"},
        "generate, near-duplicates .8": {"near_duplicates": {}},
        "generate, near-duplicates .5 of 3-grams": {"near_duplicates": {"threshold": 0.5, "ngram": 3}},
        "generate, decontamination": {"decontamination": {"sources": [{"path": arguments.evaluation}]}},
    }
    results = {"read only": _read(PromptsConfig.model_validate(base))}
    tokenizer = load_tokenizer(resolve_teacher("smollm2-135m-instruct"))
    for name, options in variants.items():
        results[name] = _requests(PromptsConfig.model_validate(base | options), tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if arguments.json:
        print(json.dumps({"results": results, "peak_gib": peak}))
        return
    for name, result in results.items():
        print(f"{name:<42} {result['seconds_per_1000']:.3f} s  {result['rows']} rows  {result['rejected']}")
    print(f"peak memory {peak:.2f} GiB")


def _read(config: PromptsConfig) -> dict[str, Any]:
    started = time.process_time()
    rows = sum(1 for _ in read_prompts(config))
    return {"rows": rows, "seconds_per_1000": (time.process_time() - started) / rows * 1000, "rejected": ""}


def _requests(config: PromptsConfig, tokenizer: Any) -> dict[str, Any]:
    started = time.process_time()
    corpus = make_requests(read_prompts(config), tokenizer, config, {"teacher": (TeacherConfig(model="-"), SPEC)})
    rows = len(corpus.requests) + len(corpus.rejected)
    seconds = (time.process_time() - started) / rows * 1000
    return {
        "rows": rows,
        "seconds_per_1000": seconds,
        "rejected": counts_by_kind(row.reason for row in corpus.rejected),
    }


if __name__ == "__main__":
    main()
