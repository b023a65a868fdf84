"""The nodes of a running Ray cluster, asked by a process of its own: `python -m llmdistill.preflight.cluster_nodes`.

Ray tries for minutes where something listens that is no cluster, and it cannot be interrupted; a process can.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from llmdistill.config.cluster import ClusterConfig
from llmdistill.errors import ClusterError
from llmdistill.preflight.facts import Node

_PROBE_SECONDS = 5.0
_ANSWER_SECONDS = 20.0
_FIX = "start a cluster there with `ray start --head`, or leave cluster.address out to use this machine"


def cluster_nodes(address: str, seconds: float = _ANSWER_SECONDS) -> tuple[Node, ...]:
    """Cores and GPUs of each living node.

    Raises:
        ClusterError: no cluster answers in so many seconds.

    """
    _require_listener(address)
    where = f"cluster.address: {address}"
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "llmdistill.preflight.cluster_nodes", address],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no Ray cluster answers in {seconds:g} s", where=where, fix=_FIX) from None
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ClusterError(f"no Ray cluster can be reached: {reason}", where=where, fix=_FIX)
    return tuple(Node(*counts) for counts in json.loads(answer.stdout.strip().splitlines()[-1]))


def _require_listener(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers: {error.strerror or error}", where=f"cluster.address: {address}", fix=_FIX
        ) from None


def _main(address: str) -> None:
    from llmdistill.cluster import ray_cluster

    try:
        with ray_cluster(ClusterConfig(address=address)):
            import ray

            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except ClusterError as error:
        sys.exit(error.what)
    print(json.dumps([(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]))


if __name__ == "__main__":
    _main(sys.argv[1])
