"""Where replicas run: how many the cluster holds, what each asks Ray for, and which cores of its node it works on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

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
    held, width, stages = room(teacher, nodes), teacher.tensor_parallel, teacher.pipeline_parallel
    what = resource(teacher, nodes)
    asked = max(most(teacher, held), 1) if teacher.replicas == "auto" else teacher.replicas
    by = f" × pipeline_parallel {stages}" if stages > 1 else ""
    fleet = f"the teacher fleet ({asked} × tensor_parallel {width}{by})"
    require_resources(fleet, {"GPU" if stages > 1 else what: asked * width * stages}, _FIX)
    if held < asked:
        needs = f"{width} {what} of one node" if stages == 1 else f"{stages} nodes with {width} {what} each"
        raise ClusterError(f"{fleet} does not fit: a replica needs {needs}, and that is there {held} times", fix=_FIX)
    return max(min(asked, units), 1)


def room(teacher: TeacherConfig, nodes: Nodes) -> int:
    """Replicas that these nodes hold: none lies across nodes but by its stages, each of which has a node of its own."""
    what, stages = resource(teacher, nodes), teacher.pipeline_parallel
    slots = [int(node.get(what, 0)) // teacher.tensor_parallel for node in nodes.values()]
    replicas = sum(slots) // stages
    while sum(min(slot, replicas) for slot in slots) < replicas * stages:
        replicas -= 1
    return replicas


def most(teacher: TeacherConfig, held: int) -> int:
    """Replicas that are to run where there is room for `held`."""
    if teacher.replicas == "auto":
        return min(held, 1) if teacher.engine == "openai" else held
    return min(held, teacher.replicas)


def resource(teacher: TeacherConfig, nodes: Nodes) -> str:
    """What replicas run on: `GPU` wherever the cluster has any, else `CPU`; `CPU` for those that ask a server."""
    return "GPU" if teacher.engine != "openai" and any(node.get("GPU", 0) for node in nodes.values()) else "CPU"


@dataclass(frozen=True)
class Place:
    """Where a replica is to run."""

    options: dict[str, Any]
    """What its actor asks Ray for."""
    stages: tuple[str, ...] = ()
    """Ids of the nodes of its stages, where it has more than one; else Ray chooses the node."""
    group: PlacementGroup | None = None
    """Holds the GPUs of all stages; to be removed with the replica."""


def find_place(teacher: TeacherConfig, nodes: Nodes, taken: Mapping[str, int]) -> Place | None:
    """A place for one more replica, or none for now.

    vLLM wants a group of single GPUs and makes each node's part of it a stage, so the nodes are chosen here: those with
    the most room.

    Args:
        teacher: sizes of a replica.
        nodes: the living nodes.
        taken: node id → stages that it has already.

    """
    width = teacher.tensor_parallel
    if teacher.pipeline_parallel == 1:
        return Place({"num_gpus": width, "num_cpus": 1} if resource(teacher, nodes) == "GPU" else {"num_cpus": width})
    free = {name: int(node.get("GPU", 0)) // width - taken.get(name, 0) for name, node in nodes.items()}
    stages = sorted((name for name in free if free[name] > 0), key=lambda name: (-free[name], name))
    stages = stages[: teacher.pipeline_parallel]
    if len(stages) < teacher.pipeline_parallel:
        return None
    bundles: list[dict[str, float]] = [{"GPU": 1} for _ in stages for _ in range(width)]
    bundles[0]["CPU"] = 1  # the replica itself
    on = [{"ray.io/node-id": name} for name in stages for _ in range(width)]
    group = placement_group(bundles, bundle_label_selector=on)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    return Place({"num_cpus": 1, "scheduling_strategy": strategy}, tuple(stages), group)


def free_cores(teacher: TeacherConfig, node: Mapping[str, float], taken: Collection[int]) -> tuple[int, ...]:
    """Cores of its node that a replica without GPUs works on: the lowest that no other one has."""
    return tuple(core for core in range(int(node["CPU"])) if core not in taken)[: teacher.tensor_parallel]
