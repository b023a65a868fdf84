"""A run as configured beside the run with the best settings that `llmdistill tune` finds, and what the search costs.

    python benchmarks/tune.py configs/quickstart.yaml OUT [--times 4] [key=value ...]

OUT gets both runs. "within" says whether all three commands together took no more than `--times` the time of the run as
configured; `tune.trials` and `tune.budget` are what to change where not. A call that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MEASURES = ("kl", "top1_agreement", "perplexity")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--times", type=float, default=4.0, help="time of all, in times of the run as configured")
    arguments = parser.parse_args()
    default, tuned = arguments.out / "default", arguments.out / "tuned"
    shared = [arguments.config, f"output={default}", "tune.workers=1", *arguments.overrides]
    seconds = {"run as configured": _timed(arguments.out, "run", ["run", *shared])}
    seconds["search"] = _timed(arguments.out, "tune", ["tune", *shared, "--output", str(tuned)])
    seconds["tuned run"] = _timed(arguments.out, "tuned", ["run", str(default / "tune" / "best.yaml")])
    table = json.loads((default / "tune" / "table.json").read_text())
    result: dict[str, Any] = {
        "seconds": seconds,
        "times": round(sum(seconds.values()) / seconds["run as configured"], 2),
        "within": sum(seconds.values()) <= arguments.times * seconds["run as configured"],
        "settings": next(line["settings"] for line in table["trials"] if line["trial"] == table["winner"]),
        "trials": len(table["trials"]),
        "stopped_early": sum(line["stopped_early"] for line in table["trials"]),
    }
    for name, folder in (("default", default), ("tuned", tuned)):
        evaluation = json.loads((folder / "evaluation.json").read_text())["models"]["student"]
        result[name] = {measure: evaluation[measure] for measure in MEASURES}
    print(json.dumps(result, indent=1))


def _timed(out: Path, name: str, arguments: list[str]) -> float:
    """Seconds of a command over all calls of it."""
    file = out / f"{name}.seconds"
    before = float(file.read_text()) if file.is_file() else 0.0
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([sys.executable, "-m", "llmdistill", *arguments], check=True, stdout=sys.stderr)
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        file.write_text(f"{seconds}\n")
    return seconds


if __name__ == "__main__":
    main()
