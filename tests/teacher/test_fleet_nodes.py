"""A node that goes while the fleet works on it: several nodes in one machine, without containers."""

import threading
import time
from pathlib import Path

import pytest

from llmdistill.cache.index import committed_keys, shard_names
from llmdistill.cluster import enable_token, ray_cluster
from llmdistill.config.cluster import ClusterConfig
from llmdistill.errors import ClusterError
from llmdistill.teacher import replicas
from tests.teacher.test_fleet import REQUESTS, SPEC, TEACHER, run


def test_units_of_a_lost_node_are_done_elsewhere_and_without_nodes_the_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(replicas, "_NODE_SECONDS", 3.0)
    enable_token()  # before the cluster starts, so that both sides agree
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def remove_when_it_works(cache: Path, node: object) -> None:
        while not shard_names(cache):
            time.sleep(0.1)
        cluster.remove_node(node)

    slow = dict.fromkeys(range(1, 40), "slow always")
    try:
        with ray_cluster(ClusterConfig(address=cluster.address)):
            thread = threading.Thread(target=remove_when_it_works, args=(tmp_path / "one", nodes[0]))
            thread.start()
            report = run(tmp_path / "one", slow)
            thread.join()
            assert report.lost == 1
            assert committed_keys(tmp_path / "one", SPEC) == {request.key for request in REQUESTS}

            thread = threading.Thread(target=remove_when_it_works, args=(tmp_path / "none", nodes[1]))
            thread.start()
            with pytest.raises(ClusterError, match="the nodes of all replicas are gone") as caught:
                run(tmp_path / "none", slow, TEACHER.model_copy(update={"replicas": 1}))
            thread.join()
            assert "run the same command again" in str(caught.value)
            assert shard_names(tmp_path / "none")
    finally:
        cluster.shutdown()
