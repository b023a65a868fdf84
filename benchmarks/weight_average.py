"""What the moving average of the weights costs: CPU time and memory of the optimizer's step with and without it.

python benchmarks/weight_average.py
"""

from __future__ import annotations

import json
import statistics
import time

import torch

from llmdistill.student.average import track_average

PARAMETERS = 50_000_000
STEPS = 15


def seconds_of_a_step(decay: float | None) -> tuple[float, int]:
    """Median CPU seconds of a step of fused AdamW on one flat parameter, as ZeRO has it, and bytes of its states."""
    parameter = torch.nn.Parameter(torch.randn(PARAMETERS))
    parameter.grad = torch.randn(PARAMETERS)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    if decay is not None:
        track_average(optimizer, decay)
    seconds = []
    for _ in range(STEPS):
        started = time.thread_time()
        optimizer.step()
        seconds.append(time.thread_time() - started)
    held = sum(value.nbytes for value in optimizer.state[parameter].values())
    return statistics.median(seconds), held


def main() -> None:
    """Print both as JSON."""
    torch.set_num_threads(1)
    plain, averaged = (seconds_of_a_step(decay) for decay in (None, 0.999))
    result = {
        "parameters": PARAMETERS,
        "seconds_plain": round(plain[0], 4),
        "seconds_averaged": round(averaged[0], 4),
        "more_ns_a_parameter": round((averaged[0] - plain[0]) / PARAMETERS * 1e9, 3),
        "more_bytes_a_parameter": (averaged[1] - plain[1]) / PARAMETERS,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
