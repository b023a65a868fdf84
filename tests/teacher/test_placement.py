"""Replicas of several stages: how many nodes hold, where the stages go, and what vLLM is told. No GPU is used."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from llmdistill.cluster import enable_token, ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError
from llmdistill.teacher.fleet import run_fleet
from llmdistill.teacher.placement import free_cores, room
from llmdistill.teacher.vllm_engine import VLLMEngine
from tests.teacher.test_fleet import REQUESTS, SPEC, FailingEngine


def staged(tensor_parallel: int, pipeline_parallel: int, **fields: object) -> TeacherConfig:
    sizes = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    return TeacherConfig.model_validate({"model": "x", "requests_per_shard": 4, **sizes, **fields})


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "pipeline_parallel", "replicas"),
    [
        ((3, 3), 2, 1, 2),  # not three: no replica lies across nodes
        ((8, 8, 8), 8, 3, 1),
        ((8, 8, 8), 4, 2, 3),
        ((8, 4), 4, 2, 1),  # two stages of one replica never share a node
        ((8,), 4, 2, 0),
        ((2, 2, 2, 2), 2, 2, 2),
    ],
)
def test_room(gpus: tuple[int, ...], tensor_parallel: int, pipeline_parallel: int, replicas: int) -> None:
    nodes = {f"n{number}": {"GPU": float(count), "CPU": 16.0} for number, count in enumerate(gpus)}
    assert room(staged(tensor_parallel, pipeline_parallel), nodes) == replicas


def test_replicas_on_one_node_share_no_core() -> None:
    teacher, node = staged(2, 1), {"CPU": 5.0}
    assert free_cores(teacher, node, ()) == (0, 1)
    assert free_cores(teacher, node, {0, 1}) == (2, 3)
    assert free_cores(teacher, node, {2, 3}) == (0, 1)


def test_vllm_is_told_of_its_stages(tiny_teacher: Path) -> None:
    def arguments(teacher: TeacherConfig) -> dict[str, object]:
        return VLLMEngine(tiny_teacher, teacher, CaptureConfig(), 49152, cores=()).arguments()

    told = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "distributed_executor_backend": "ray"}
    assert arguments(staged(2, 3)).items() >= told.items()
    assert "distributed_executor_backend" not in arguments(staged(2, 1))


class WhereEngine(FailingEngine):
    """Writes down which nodes hold the GPUs of its group."""

    def __init__(self, folder: Path, cores: tuple[int, ...]) -> None:
        super().__init__({}, None)
        self._folder = folder

    async def start(self) -> None:
        import ray

        group = ray.util.get_current_placement_group()
        table = ray.util.placement_group_table(group)
        nodes = [table["bundles_to_node_id"][bundle] for bundle in sorted(table["bundles"])]
        bundles = [table["bundles"][bundle] for bundle in sorted(table["bundles"])]
        text = json.dumps({"nodes": nodes, "bundles": bundles})
        (self._folder / ray.get_runtime_context().get_actor_id()).write_text(text)


@pytest.mark.slow
def test_stages_lie_on_different_nodes_and_a_stage_on_one(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    enable_token()  # before the cluster starts, so that both sides agree
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        cluster.add_node(num_cpus=1, num_gpus=2)  # no GPU is there, and nothing looks for one
    try:
        with ray_cluster(ClusterConfig(address=cluster.address)):
            factory = functools.partial(WhereEngine, tmp_path)
            report = run_fleet(REQUESTS, factory, staged(2, 2), tmp_path / "cache", SPEC, lambda report: None)
            with pytest.raises(ClusterError, match=r"2 × tensor_parallel 2 × pipeline_parallel 2\) needs 8 GPU"):
                run_fleet(REQUESTS, factory, staged(2, 2, replicas=2), tmp_path, SPEC, lambda report: None)
            with pytest.raises(ClusterError, match="4 nodes with 1 GPU each, and that is there 0 times"):
                run_fleet(REQUESTS, factory, staged(1, 4, replicas=1), tmp_path, SPEC, lambda report: None)
    finally:
        cluster.shutdown()
    assert (report.records, report.deaths) == (40, [])
    (found,) = [json.loads(path.read_text()) for path in tmp_path.iterdir() if path.is_file()]
    first, second = found["nodes"][:2], found["nodes"][2:]
    assert first[0] == first[1] != second[0] == second[1]
    assert [bundle["GPU"] for bundle in found["bundles"]] == [1, 1, 1, 1]
