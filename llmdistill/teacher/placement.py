"""Where replicas run: how many the cluster holds, what each asks Ray for, and which cores of its node it works on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ray

from llmdistill.cluster import require_resources
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError

_FIX = "lower teacher.replicas or teacher.tensor_parallel, or use a larger cluster"

Nodes = Mapping[str, Mapping[str, float]]
"""Node id → its Ray resources."""


def living_nodes() -> Nodes:
    """The nodes that the cluster takes for alive."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def nodes_lost() -> int:
    """How many nodes the cluster has had and lost."""
    return sum(not node["Alive"] for node in ray.nodes())


def count_replicas(teacher: TeacherConfig, units: int) -> int:
    """Replicas to start on the connected cluster, never more than there are work units.

    Raises:
        ClusterError: the cluster holds fewer than asked for.

    """
    nodes = living_nodes()
    held, width, what = room(teacher, nodes), teacher.tensor_parallel, resource(teacher, nodes)
    asked = max(most(teacher, held), 1) if teacher.replicas == "auto" else teacher.replicas
    fleet = f"the teacher fleet ({asked} × tensor_parallel {width})"
    require_resources(fleet, {what: asked * width}, _FIX)
    if held < asked:
        raise ClusterError(
            f"{fleet} does not fit: a replica needs {width} {what} of one node, and the nodes hold {held} such",
            fix=_FIX,
        )
    return max(min(asked, units), 1)


def room(teacher: TeacherConfig, nodes: Nodes) -> int:
    """Replicas that these nodes hold; none lies across nodes."""
    what = resource(teacher, nodes)
    return sum(int(node.get(what, 0)) // teacher.tensor_parallel for node in nodes.values())


def most(teacher: TeacherConfig, held: int) -> int:
    """Replicas that are to run where there is room for `held`."""
    if teacher.replicas == "auto":
        return min(held, 1) if teacher.engine == "openai" else held
    return min(held, teacher.replicas)


def resource(teacher: TeacherConfig, nodes: Nodes) -> str:
    """What replicas run on: `GPU` wherever the cluster has any, else `CPU`; `CPU` for those that ask a server."""
    return "GPU" if teacher.engine != "openai" and any(node.get("GPU", 0) for node in nodes.values()) else "CPU"


def actor_options(teacher: TeacherConfig, nodes: Nodes) -> dict[str, Any]:
    """What a replica asks Ray for."""
    width = teacher.tensor_parallel
    return {"num_gpus": width, "num_cpus": 1} if resource(teacher, nodes) == "GPU" else {"num_cpus": width}


def free_cores(teacher: TeacherConfig, node: Mapping[str, float], taken: Collection[int]) -> tuple[int, ...]:
    """Cores of its node that a replica without GPUs works on: the lowest that no other one has."""
    return tuple(core for core in range(int(node["CPU"])) if core not in taken)[: teacher.tensor_parallel]
