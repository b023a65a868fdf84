"""Memory and time of the chunked head, forward plus backward, beside plain forms of the same and beside cross-entropy.

    python benchmarks/objectives.py --json

Each form runs in a process of its own, so that peaks do not mix. "Extra" memory is what the process holds at its peak
beyond inputs and their gradients. On a GPU the same runs there, with the share of the matrix products' roofline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("matrix_products", "cross_entropy", "plain", "fused")


def main() -> None:
    """Run every form and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--json", action="store_true", help="one JSON document and nothing else")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments)))
        return
    results = {form: _in_process(form, arguments) for form in FORMS}
    document = summary(results, arguments)
    if arguments.json:
        print(json.dumps(document, indent=1))
        return
    for form, result in results.items():
        times = f"{result['seconds']:8.2f} s  {result['cpu_seconds']:8.2f} s of CPU"
        print(f"{form:<16} {times}  {result['extra_gib']:6.2f} GiB extra")
    print(f"peak memory, fused / plain:         {document['peak_memory_ratio']:.3f}")
    print(f"time, fused / plain cross-entropy:  {document['time_ratio_to_cross_entropy']:.3f}")


def _in_process(form: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = ("rows", "vocabulary", "width", "top_k", "repeats", "threads")
    command = [sys.executable, __file__, "--form", form]
    for option in options:
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summary(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """The comparison, from the result of each form."""
    fused, plain, cross_entropy = results["fused"], results["plain"], results["cross_entropy"]
    flops = 3 * 2 * arguments.rows * arguments.vocabulary * arguments.width
    return {
        "peak_memory_ratio": fused["extra_gib"] / plain["extra_gib"],
        "time_ratio_to_cross_entropy": fused["seconds"] / cross_entropy["seconds"],
        "cpu_time_ratio_to_cross_entropy": fused["cpu_seconds"] / cross_entropy["cpu_seconds"],
        "time_ratio_to_plain": fused["seconds"] / plain["seconds"],
        "share_of_matrix_product_rate": results["matrix_products"]["seconds"] / fused["seconds"],
        "fused_tflop_per_second": flops / fused["seconds"] / 1e12,
        "device": fused["device"],
        "threads": fused["threads"],
        "shape": {key: getattr(arguments, key) for key in ("rows", "vocabulary", "width", "top_k")},
        "dtype": "bfloat16",
        "objectives": "0.9 forward_kl (bucket) + 0.1 sequence_ce",
        "forms": results,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and extra memory of one form in this process."""
    sys.path.insert(0, str(ROOT))
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = make_inputs(arguments, device)
    step = make_step(arguments.form, inputs)
    step()  # warm-up; also makes the gradients of the inputs
    peak = CudaPeak() if device.type == "cuda" else ResidentPeak()
    seconds, cpu_seconds = [], []
    for _ in range(arguments.repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, cpu_started = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    return {
        "seconds": min(seconds),
        "cpu_seconds": min(cpu_seconds),
        "extra_gib": peak.stop() / 2**30,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def make_inputs(arguments: argparse.Namespace, device: Any) -> tuple[Any, Any, Any]:
    """Hidden states, head weight and top-k targets."""
    import torch

    from llmdistill.objectives.targets import TopKTargets

    torch.manual_seed(0)
    rows, vocabulary, k = arguments.rows, arguments.vocabulary, arguments.top_k
    hidden = torch.randn(rows, arguments.width, dtype=torch.bfloat16, device=device)
    weight = torch.randn(vocabulary, arguments.width, dtype=torch.bfloat16, device=device) * 0.05
    # Distinct ids without a [rows, vocabulary] tensor: one from each of k equal stretches.
    stretch = vocabulary // k
    ids = torch.randint(stretch, (rows, k), device=device) + torch.arange(k, device=device) * stretch
    logprobs = (2 * torch.randn(rows, k, device=device)).log_softmax(1) - 0.05
    targets = TopKTargets(
        actual_ids_R=ids[:, 0].clone(), ids_RK=ids, logprobs_RK=logprobs, mass_R=logprobs.exp().sum(1)
    )
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def make_step(form: str, inputs: tuple[Any, Any, Any]) -> Callable[[], None]:
    """One forward and backward pass of a form."""
    import torch
    from torch.nn.functional import cross_entropy

    from llmdistill.config.objectives import ForwardKLConfig, SequenceCEConfig
    from llmdistill.objectives.chunked_head import chunked_head
    from llmdistill.objectives.terms import make_terms
    from llmdistill.objectives.total import row_sums, weighted_total

    hidden, weight, targets = inputs
    terms = make_terms(
        [ForwardKLConfig(type="forward_kl", weight=0.9), SequenceCEConfig(type="sequence_ce", weight=0.1)]
    )

    def total() -> torch.Tensor:
        if form == "fused":
            return chunked_head(hidden, weight, targets, terms).total
        if form == "plain":
            return weighted_total(row_sums(hidden @ weight.T, targets, terms), terms, 1)
        return cross_entropy((hidden @ weight.T).float(), targets.actual_ids_R, reduction="sum")

    def step() -> None:
        for tensor in (hidden, weight):
            if tensor.grad is not None:
                tensor.grad.zero_()
        if form == "matrix_products":
            logits = hidden @ weight.T
            logits.backward(logits.detach())
        else:
            total().backward()

    return step


class ResidentPeak:
    """Largest resident memory since the start, beyond what was resident then; sampled 200 times a second."""

    def __init__(self) -> None:
        self._start = self._largest = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._largest = max(self._largest, _resident())

    def stop(self) -> int:
        """Bytes."""
        self._done.set()
        self._thread.join()
        return self._largest - self._start


class CudaPeak:
    """The same, from the allocator's own count."""

    def __init__(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()

    def stop(self) -> int:
        """Bytes."""
        import torch

        return int(torch.cuda.max_memory_allocated() - self._start)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
