"""`launch k8s`: the objects are valid, ask for what the section says, and hold no secret."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llmdistill.config.load import load_config
from llmdistill.errors import ConfigError
from llmdistill.launch.kubernetes import job_name, manifests
from tests.launch.makers import write_run

SECTION = {
    "namespace": "team",
    "image": "registry.example/llmdistill@sha256:abc",
    "image_pull_secrets": ["pull"],
    "service_account": "distiller",
    "storage": {"claim": "shared"},
    "secrets": ["hub", "bucket"],
    "capture": {
        "min_replicas": 1, "max_replicas": 4, "gpus": 8, "cpus": 64, "memory": "512Gi", "shared_memory": "128Gi",
        "node_selector": {"gpu": "h100"}, "tolerations": [{"key": "spot", "operator": "Exists"}],
    },
    "train": {"max_replicas": 2, "gpus": 4},
}  # fmt: skip
OUTPUT = "output=/storage/runs/My_Run"


def objects(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **section: Any) -> list[dict[str, Any]]:
    path = write_run(
        folder, "/storage/teacher", {"kubernetes": {**SECTION, **section}, "variables": {"HF_HOME": "/storage/hf"}}
    )
    monkeypatch.chdir(folder)
    config = load_config(path, [OUTPUT, "prompts.sources.0.path=prompts.jsonl", *overrides])
    return list(yaml.safe_load_all(manifests(config, "0101000000")))


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def validator(file: str, kind: str = "") -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((Path(__file__).parent / "schemas" / file).read_text())
    return jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{kind}"} if kind else schema)


def test_the_objects_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, job = objects(tmp_path, monkeypatch)
    validator("kubernetes.json", "io.k8s.api.core.v1.ConfigMap").validate(files)
    validator("rayjob.yaml").validate(job)
    pods = validator("kubernetes.json", "io.k8s.api.core.v1.Pod")
    for template in templates(job).values():
        pods.validate({"apiVersion": "v1", "kind": "Pod", **template})
        declared = {volume["name"] for volume in template["spec"]["volumes"]}
        mounted = {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounted == declared
    template["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        pods.validate({"apiVersion": "v1", "kind": "Pod", **template})
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        validator("rayjob.yaml").validate(job)


def test_the_job_asks_for_what_the_section_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, job = objects(tmp_path, monkeypatch)
    assert job["metadata"] | {"labels": 0} == {"name": "llmdistill-my-run-0101000000", "namespace": "team", "labels": 0}
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    capture, train = cluster["workerGroupSpecs"]
    assert (capture["minReplicas"], capture["maxReplicas"], train["minReplicas"], train["maxReplicas"]) == (1, 4, 0, 2)
    assert json.loads(json.loads(capture["rayStartParams"]["resources"])) == {"llmdistill_capture": 1}
    assert json.loads(json.loads(train["rayStartParams"]["resources"])) == {"llmdistill_train": 1}
    pod = capture["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu", "spot"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
    memory = next(volume for volume in pod["volumes"] if volume["name"] == "shared-memory")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
    for template in templates(job).values():
        container = template["spec"]["containers"][0]
        assert container["image"] == SECTION["image"]
        assert {"name": "storage", "mountPath": "/storage"} in container["volumeMounts"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/dev/shm"}
        assert [item["secretRef"]["name"] for item in container["envFrom"]] == ["hub", "bucket"]
        assert {"name": "HF_HOME", "value": "/storage/hf"} in container["env"]
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_run_finds_its_files_and_asks_the_autoscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, job = objects(tmp_path, monkeypatch, "teacher.tensor_parallel=2")
    run = next(v for v in templates(job)["head"]["spec"]["volumes"] if v["name"] == "run")["configMap"]
    assert run["name"] == files["metadata"]["name"]
    there = {item["path"]: files["data"][item["key"]] for item in run["items"]}
    assert there["prompts.jsonl"] == (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "sent.yaml").write_text(there["config.yaml"])
    sent = load_config(tmp_path / "sent.yaml")
    assert sent.prompts.sources[0].path == "/etc/llmdistill/prompts.jsonl"
    assert (sent.cluster.address, sent.cluster.autoscaling) == ("auto", True)
    assert sent.teacher.replicas == 16  # 4 pods × 8 GPUs ÷ 2
    assert job["spec"]["entrypoint"] == "python -m llmdistill run /etc/llmdistill/config.yaml"


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "do-not-show")
    text = yaml.safe_dump_all(objects(tmp_path, monkeypatch))
    assert "do-not-show" not in text
    with pytest.raises(ConfigError, match=r"cluster.variables: HF_TOKEN looks like a secret"):
        load_config(tmp_path / "config.yaml", ["cluster.variables.HF_TOKEN=hf_x"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=/elsewhere/run"], "does not lie on the shared storage"),
        (["teacher.tensor_parallel=16"], r"tensor_parallel 16, on one node, needs 16 GPUs"),
        (["teacher.replicas=33"], r"needs 33 GPUs, cluster.kubernetes \(max_replicas × gpus\) gives 32"),
        (["train.workers=9", "train.tokens_per_step=1152"], "train.workers 9 needs 9 GPUs"),
        (["cluster.kubernetes=null"], "this section is needed"),
    ],
)
def test_what_cannot_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        objects(tmp_path, monkeypatch, *overrides)


def test_names_are_those_that_kubernetes_allows(tmp_path: Path) -> None:
    path = write_run(tmp_path, "t", {})
    for output, name in (("/s/Größe 7B_v2.1/", "gr-e-7b-v2-1"), ("/s/" + "x" * 99, "x" * 24), ("/s/…", "run")):
        assert job_name(load_config(path, [f"output={output}"]), "1") == f"llmdistill-{name}-1"


def test_the_objects_go_to_kubectl(tmp_path: Path) -> None:
    """A stand-in for kubectl keeps what it gets: there is no Kubernetes here."""
    path = write_run(tmp_path, "/storage/t", {"kubernetes": SECTION}, output="/storage/run")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    command = [sys.executable, "-m", "llmdistill", "launch", "k8s", str(path)]
    environment = {**os.environ, "PATH": str(kubectl.parent)}
    absent = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (absent.returncode, "no kubectl" in absent.stderr) == (2, True)

    kubectl.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n/bin/cat > {tmp_path}/objects.yaml\nexit "${{REFUSE:-0}}"\n'
    )
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    created = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert created.returncode == 0, created.stderr
    assert (tmp_path / "arguments").read_text().split() == ["create", "--namespace", "team", "--filename", "-"]
    job = list(yaml.safe_load_all((tmp_path / "objects.yaml").read_text()))[1]
    assert job["metadata"]["name"] in created.stdout
    refused = subprocess.run(command, capture_output=True, text=True, env={**environment, "REFUSE": "1"}, check=False)
    assert (refused.returncode, "Kubernetes refuses the job" in refused.stderr) == (4, True)
