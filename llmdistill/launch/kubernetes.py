"""`llmdistill launch k8s`: a run as a KubeRay RayJob."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import PurePosixPath

from llmdistill.cluster import CAPTURE, TRAIN
from llmdistill.config.cluster import KubernetesConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, ConfigError
from llmdistill.launch.bundle import CONFIG, make_bundle
from llmdistill.launch.fits import require_gpus
from llmdistill.launch.render import render

MOUNT = "/etc/llmdistill"
"""Where the head's pod finds the configuration and the prompts."""

BUNDLE_BYTES = 900_000
"""A ConfigMap holds 1 MiB."""


def manifests(config: RunConfig, suffix: str) -> str:
    """The objects of a run: a ConfigMap and a RayJob, as YAML.

    Args:
        config: the run.
        suffix: makes the names of one launch different from those of others.

    Raises:
        ConfigError: `cluster.kubernetes` is missing, or the run does not fit what it asks for.

    """
    kubernetes = _section(config)
    capture = kubernetes.capture.max_replicas * kubernetes.capture.gpus
    require_gpus(
        config,
        capture=capture,
        train=kubernetes.train.max_replicas * kubernetes.train.gpus,
        node=kubernetes.capture.gpus,
        asked="cluster.kubernetes (max_replicas × gpus)",
    )
    config = config.model_copy(
        update={
            "teacher": _with_number(config.teacher, kubernetes),
            "teachers": {name: _with_number(teacher, kubernetes) for name, teacher in config.teachers.items()},
        }
    )
    files = make_bundle(config, BUNDLE_BYTES, {"address": "auto", "autoscaling": True, "nodes": 1}, MOUNT)
    return render(
        "k8s/rayjob.yaml.jinja",
        kubernetes=kubernetes,
        name=job_name(config, suffix),
        files={name: contents.decode() for name, contents in files.items()},
        groups={"capture": (kubernetes.capture, CAPTURE), "train": (kubernetes.train, TRAIN)},
        variables=config.cluster.variables,
        mount=MOUNT,
        config=CONFIG,
        ray_version=version("ray"),
    )


def _with_number(teacher: TeacherConfig, kubernetes: KubernetesConfig) -> TeacherConfig:
    """With a number of replicas: the autoscaler brings what is asked for, so that a number has to be."""
    if teacher.replicas != "auto":
        return teacher
    per_pod = kubernetes.capture.gpus // teacher.tensor_parallel
    return teacher.model_copy(update={"replicas": per_pod * kubernetes.capture.max_replicas})


def job_name(config: RunConfig, suffix: str) -> str:
    """Name of the RayJob: the run's folder, in the letters that Kubernetes allows."""
    base = re.sub("[^a-z0-9]+", "-", PurePosixPath(config.output).name.lower()).strip("-")[:24].rstrip("-")
    return f"llmdistill-{base or 'run'}-{suffix}"[:47]


def apply(config: RunConfig, text: str) -> None:
    """Hand the objects to kubectl.

    Raises:
        ClusterError: Kubernetes refuses them.
        ConfigError: there is no kubectl on this machine.

    """
    command = ["kubectl", "create", "--namespace", _section(config).namespace, "--filename", "-"]
    try:
        answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            "there is no kubectl on this machine", fix="write the objects with --dry-run and give them to your cluster"
        ) from None
    if answer.returncode:
        raise ClusterError(f"Kubernetes refuses the job: {answer.stderr.strip()}", "cluster.kubernetes")


def _section(config: RunConfig) -> KubernetesConfig:
    kubernetes = config.cluster.kubernetes
    if kubernetes is None:
        raise ConfigError(
            "this section is needed to launch on Kubernetes", "cluster.kubernetes", fix="see docs/operating.md"
        )
    storage = PurePosixPath(kubernetes.storage.mount_path)
    if not PurePosixPath(config.output).is_relative_to(storage):
        raise ConfigError(
            f"'{config.output}' does not lie on the shared storage", "output", fix=f"write a folder below {storage}"
        )
    return kubernetes
