"""The command as a person runs it, on real models."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmdistill.cli.main import call, cli
from llmdistill.config.cluster import ClusterConfig
from llmdistill.errors import ClusterError
from llmdistill.preflight.check_machine import check_processors
from llmdistill.preflight.cluster_nodes import cluster_nodes
from llmdistill.preflight.machine import machine_facts
from tests.preflight.makers import make_config, make_facts

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@pytest.fixture
def config(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A run of the tiny teacher; JSON is YAML too."""
    rows = [{"messages": [{"role": "user", "content": f"Tell me about {n}."}]} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "output": str(tmp_path / "run"),
        "prompts": {"sources": [{"path": str(tmp_path / "prompts.jsonl")}]},
        "teacher": {"model": str(tiny_teacher), "engine": "fake", "sampling": {"max_new_tokens": 24}},
        "student": {"from_teacher": {"layers": 2}},
        "objectives": [{"type": "forward_kl"}],
        "train": {"sequence_length": 128, "tokens_per_step": 256},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(sections))
    return tmp_path / "config.yaml"


def small_copy(source: Path, folder: Path) -> Path:
    """The small files of a model folder."""
    folder.mkdir()
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return folder


def doctor(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    words = ["doctor", *map(str, arguments), "--json"]
    status = call(lambda: cli.main(words, standalone_mode=False), debug=False)
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["exit_status"] == status
    return status, document, captured.err


def problems(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["check"]: item for item in document["findings"] if item["level"] != "ok"}


def test_a_run_that_is_well(config: Path, capsys: Any) -> None:
    status, document, err = doctor(capsys, config)
    assert (status, document["ok"], err) == (0, True, "")
    checks = {item["check"] for item in document["findings"]}
    assert {"tokenizer", "vocabulary", "teacher fleet", "disk", "batch", "self-test: alignment"} <= checks
    assert not (config.parent / "run").exists()


def test_the_table_shows_check_finding_and_fix(config: Path, capsys: Any) -> None:
    words = ["doctor", str(config), "teacher.tensor_parallel=3"]
    assert call(lambda: cli.main(words, standalone_mode=False), debug=False) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error  tensor parallel")]
    assert "2 attention heads are not a multiple of 3" in line
    assert "fix: use one of 1, 2" in line


def test_case_v2_a_tokenizer_with_two_ids_swapped(
    config: Path, tiny_teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    student = small_copy(tiny_teacher, tmp_path / "student")
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (1000, 1001))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, document, _ = doctor(capsys, config, f"student={{model: {student}}}")
    assert status == 2
    found = problems(document)["tokenizer"]
    assert "1000 for the teacher and 1001 for the student" in found["what"]
    assert "sequence-level" in found["fix"]


def test_case_t8_a_cut_weight_file_is_named(config: Path, tiny_teacher: Path, tmp_path: Path, capsys: Any) -> None:
    teacher = small_copy(tiny_teacher, tmp_path / "teacher")
    whole = (tiny_teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    status, document, _ = doctor(capsys, config, f"teacher.model={teacher}")
    assert status == 2
    assert f"expected {len(whole)} bytes, found {len(whole) // 2}" in problems(document)["weights"]["what"]


def test_case_z2_a_configuration_that_cannot_be_read_is_a_finding(config: Path, capsys: Any) -> None:
    status, document, _ = doctor(capsys, config, "train.tokens_per_step=300", "train.workers=2")
    assert status == 2
    (found,) = document["findings"]
    assert "300 is not a multiple of workers 2" in found["what"]
    assert "use 256 or 512" in found["fix"]


def test_hub_names_without_a_network_say_so(config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, document, _ = doctor(capsys, config, "teacher.model=nobody/no-such-model")
    assert status == 2
    found = problems(document)["teacher"]
    assert "'nobody/no-such-model'" in found["what"]
    assert "hf download" in found["fix"]


def test_another_run_in_the_folder(config: Path, tmp_path: Path, capsys: Any) -> None:
    from llmdistill.config.load import load_config

    (tmp_path / "run" / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "run" / "cache" / "shards" / "a.safetensors").write_bytes(b"")
    (tmp_path / "run" / "config.resolved.json").write_text(load_config(config).model_dump_json())
    assert doctor(capsys, config)[0] == 0
    status, document, _ = doctor(capsys, config, "capture.top_k=8")
    assert status == 2
    assert "capture.top_k was 64 and is 8" in problems(document)["output"]["what"]


def test_a_full_disk(config: Path, tmp_path: Path) -> None:
    """A real file system of 4 MB, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (
        f"{sys.executable} -c 'from llmdistill.cli.main import main; main()' doctor {config} output={disk}/run --json"
    )
    script = f"mount -t tmpfs -o size=4m tmpfs {disk} && {command}"
    namespace = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run(
        [*namespace, "sh", "-c", script], capture_output=True, text=True, env=environment, timeout=200
    )
    assert answer.returncode == 4, answer.stderr
    found = problems(json.loads(answer.stdout))["disk"]
    assert "4.2 MB free" in found["what"]
    assert found["fix"].startswith("free ")


def test_nobody_at_the_address_is_known_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can be there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match="nothing answers"):
            machine_facts(ClusterConfig(address=address), Path("/"))


def test_a_listener_that_is_no_cluster_is_not_waited_for() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(ClusterError, match="no Ray cluster answers in 2 s"):
            cluster_nodes(f"127.0.0.1:{server.getsockname()[1]}", seconds=2)


def test_case_r1_a_real_cluster_without_gpus(tmp_path: Path) -> None:
    import ray

    ray.init(address="local", num_cpus=3, num_gpus=0, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        address = ray.get_runtime_context().gcs_address
        machine = machine_facts(ClusterConfig(address=address), tmp_path)
    finally:
        ray.shutdown()
    assert (machine.cpus, machine.gpus) == (3, 0)
    config = make_config(teacher={"tensor_parallel": 8})
    found = check_processors(config, make_facts(machine=machine))[0]
    assert found.exit_status == 4
    assert f"the cluster at {address} has 0 GPUs and 3 cores" in found.what
