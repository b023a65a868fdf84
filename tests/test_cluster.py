"""Joining Ray clusters: one of our own, one that an operator started, and the ways in which that goes wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmdistill import cluster as module
from llmdistill.cluster import CAPTURE, SHARE, TRAIN, forwarded_environment, ray_cluster, require_resources
from llmdistill.config.cluster import ClusterConfig
from llmdistill.errors import ClusterError
from tests.processes import Processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that `ray start` made."""
    folder = tmp_path_factory.mktemp("operated")
    port = free_port()
    ray = Path(sys.executable).parent / "ray"
    with Processes(folder, {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}) as processes:
        node = ["--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
        node += ["--temp-dir=/tmp/llmdistill-test", "--num-cpus=2", "--num-gpus=2"]
        resources = json.dumps({CAPTURE: 1})
        processes.start_ray("ray", ray, "start", "--head", "--block", *node, f"--resources={resources}")
        yield f"127.0.0.1:{port}"


def test_the_allow_list_carries_settings_and_never_secrets() -> None:
    variables = {
        "NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/storage/hf", "HF_TOKEN": "hf_secret",
        "HF_API_KEY": "x", "HOME": "/root", "VLLM_API_KEY": "y", "NCCL_DEBUG": "INFO", "AWS_SECRET_ACCESS_KEY": "z",
        "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    assert forwarded_environment(ClusterConfig().environment, variables) == {
        "NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/storage/hf", "NCCL_DEBUG": "INFO",
    }  # fmt: skip
    assert forwarded_environment(["*"], variables).keys() == {
        "NCCL_SOCKET_IFNAME", "HF_HOME", "NCCL_DEBUG", "HOME", "CUDA_VISIBLE_DEVICES",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:{port}", "nothing answers at 127.0.0.1:"),
        ("auto", "nothing answers at 127.0.0.1:"),
        ("ray://127.0.0.1:{port}", "llmdistill launch ray"),
        ("localhost", "not host:port"),
    ],
)
def test_a_stale_address_is_one_clear_line_in_seconds(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # of a cluster that is gone
    started = time.monotonic()
    with pytest.raises(ClusterError, match=message), ray_cluster(ClusterConfig(address=address.format(port=port))):
        pass
    assert time.monotonic() - started < 30


OTHER_RUN = """
import ray
from llmdistill.cluster import ray_cluster
from llmdistill.config.cluster import ClusterConfig
with ray_cluster(ClusterConfig()):
    print(ray.get_runtime_context().gcs_address)
"""


@pytest.mark.slow
def test_two_runs_on_one_host_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # is not followed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with ray_cluster(ClusterConfig()):
        # Ray would hide all GPUs from a worker that asked for none.
        assert ray.get(ray.remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).options(num_cpus=0).remote()) == "3"
        other = subprocess.run(
            [sys.executable, "-c", OTHER_RUN], capture_output=True, text=True, timeout=120, check=True
        )
        assert ":" in other.stdout
        assert other.stdout.strip() != ray.get_runtime_context().gcs_address
        started = time.monotonic()
        with pytest.raises(ClusterError, match="the teacher needs 8 GPU, the cluster has 0"):
            require_resources("the teacher", {"GPU": 8}, fix="ask for less")
        assert time.monotonic() - started < 60


@pytest.mark.slow
def test_settings_reach_the_workers_of_a_joined_cluster(operated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with ray_cluster(ClusterConfig(address=operated)):
        environment = ray.get(ray.remote(lambda: dict(os.environ)).remote())
        assert environment["NCCL_SOCKET_IFNAME"] == "ib7"
        assert "HF_TOKEN" not in environment
        assert "hf_secret" not in str(ray.get_runtime_context().runtime_env)


@pytest.mark.slow
def test_what_does_not_fit_a_joined_cluster_is_named(operated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    started = time.monotonic()
    with (
        pytest.raises(ClusterError, match="1 of 3 nodes joined within 2 s"),
        ray_cluster(ClusterConfig(address=operated, nodes=3, wait_seconds=2)),
    ):
        pass
    with (
        pytest.raises(ClusterError, match=r"did not bring 8 GPU \(there are 2\)"),
        ray_cluster(ClusterConfig(address=operated, autoscaling=True, wait_seconds=2), [{"GPU": 4}, {"GPU": 4}]),
    ):
        pass
    asked = [{"GPU": 1, CAPTURE: SHARE}] * 2
    with ray_cluster(ClusterConfig(address=operated, autoscaling=True, wait_seconds=2), asked):
        require_resources("the fleet", {"GPU": 2}, fix="")
    with (
        pytest.raises(ClusterError, match=r"did not bring 1 GPU \(there are 0\), 0.001 llmdistill_train"),
        ray_cluster(ClusterConfig(address=operated, autoscaling=True, wait_seconds=2), [{"GPU": 1, TRAIN: SHARE}]),
    ):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(module, "PACKAGES", (*module.PACKAGES, "no-such-package"))
        with (
            pytest.raises(ClusterError, match=r"node \S+: the package no-such-package is missing"),
            ray_cluster(ClusterConfig(address=operated)),
        ):
            pass
    with monkeypatch.context() as patch:
        patch.setattr("llmdistill.__version__", "0.0.1")
        with (
            pytest.raises(ClusterError, match=r"node \S+: llmdistill is \S+, here it is 0\.0\.1"),
            ray_cluster(ClusterConfig(address=operated)),
        ):
            pass
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    with (
        pytest.raises(
            ClusterError, match=r"the cluster runs Ray 2\.\d+\.\d+ on Python 3\S+, this process Ray 2.1.0 on"
        ),
        ray_cluster(ClusterConfig(address=operated)),
    ):
        pass
    assert ray._private.worker._global_node is None, "a client that stays ends this process when the cluster goes"
    assert time.monotonic() - started < 60
