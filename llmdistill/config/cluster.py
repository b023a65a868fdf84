"""`cluster:` where Ray runs, and what `llmdistill launch` asks Slurm, Kubernetes or a Ray cluster for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from llmdistill.config.base import Section


def _one_line(text: str) -> str:
    # Values end up in `#SBATCH` comments and in YAML, where a line break would start an instruction of its own.
    if any(character < " " for character in text):
        raise ValueError("must be one line without control characters")
    return text


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name holds something that must not be shown."""
    return bool(_SECRET & set(name.upper().split("_")))


def _no_secrets(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if looks_secret(name):
            raise ValueError(f"{name} looks like a secret, which this file and Ray would show; give it to the nodes")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"'{name}' is no name of an environment variable")
        _one_line(value)
    return variables


_SECRET = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "KEY", "APIKEY"}
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")

Line = Annotated[str, AfterValidator(_one_line)]
"""Text of one line."""
Option = Annotated[str, AfterValidator(_one_line), Field(pattern=r"^[^\s'\"\\$`#]+$")]
"""A word that stands in a `#SBATCH` comment, where nothing can be quoted."""
AbsolutePath = Annotated[str, AfterValidator(_one_line), Field(pattern=r"^/")]
"""A path that starts with a slash."""


class SlurmContainerConfig(Section):
    """The container of a Slurm job."""

    runtime: Literal["pyxis", "apptainer"]
    """`pyxis`: `srun --container-image`; `apptainer`: `apptainer exec`."""
    image: Line
    """As the runtime names it: `registry#name:tag` or a .sqsh file for pyxis, a .sif file or `docker://…` for
    apptainer."""
    mounts: tuple[AbsolutePath, ...] = ()
    """Folders of the host that the container sees under the same path. The working directory, `output` and the
    temporary folder are among them always."""


class SlurmConfig(Section):
    """What `llmdistill launch slurm` asks for; the names are sbatch's."""

    partition: Option | None = None
    """`--partition`."""
    account: Option | None = None
    """`--account`."""
    qos: Option | None = None
    """`--qos`."""
    nodes: PositiveInt = 1
    """`--nodes`; one Ray node on each."""
    gpus_per_node: NonNegativeInt = 0
    """`--gpus-per-node`."""
    cpus_per_task: PositiveInt | None = None
    """`--cpus-per-task`: cores of each node for the job; without it the whole node is asked for (`--exclusive`)."""
    mem: Option | None = None
    """`--mem` of each node, such as `64G`."""
    time: Option | None = None
    """`--time`, such as `12:00:00`."""
    requeue: bool = True
    """A job that is preempted, loses a node or comes to its time limit goes back into the queue and continues there."""
    options: tuple[Option, ...] = ()
    """Further options of sbatch, such as `--constraint=h100`."""
    container: SlurmContainerConfig | None = None
    """Run in a container. Without one, the program that launched must lie at the same path on every node."""
    setup: tuple[Line, ...] = ()
    """Lines of shell before anything starts, such as `module load cuda`."""
    temporary_folder: AbsolutePath = "/tmp"
    """Ray's files lie in a folder of the job's own below it, on each node. Its path must be short."""


class KubernetesStorageConfig(Section):
    """The storage that all pods share."""

    claim: Line
    """PersistentVolumeClaim (ReadWriteMany) that holds `output`; an object store comes as the claim of its CSI
    driver."""
    mount_path: AbsolutePath = "/storage"
    """Where it appears in the pods; `output` lies below it."""


class WorkerGroupConfig(Section):
    """A KubeRay worker group."""

    min_replicas: NonNegativeInt = 0
    """Pods that are kept."""
    max_replicas: PositiveInt = 1
    """Pods that the autoscaler may start."""
    gpus: PositiveInt = 1
    """`nvidia.com/gpu` of a pod."""
    cpus: PositiveInt = 8
    """Cores of a pod."""
    memory: Line = "64Gi"
    """Memory of a pod, its /dev/shm included."""
    shared_memory: Line = "16Gi"
    """Size of /dev/shm, where Ray's objects and NCCL's buffers lie. The container default of 64 MB is too small."""
    node_selector: dict[str, str] = Field(default={})
    """Labels of the machines."""
    tolerations: tuple[dict[str, str], ...] = ()
    """Kubernetes tolerations; one for `nvidia.com/gpu` is there always."""


class HeadConfig(Section):
    """The pod of Ray's head, where the run itself is: it reads prompts, exports and evaluates."""

    cpus: PositiveInt = 8
    """Cores."""
    memory: Line = "32Gi"
    """Memory."""


class KubernetesConfig(Section):
    """What `llmdistill launch k8s` asks for: a KubeRay RayJob."""

    namespace: Line = "default"
    """Where the objects are made."""
    image: Line = Field(min_length=1)
    """Image of all pods, with a tag or digest; see docker/."""
    image_pull_secrets: tuple[Line, ...] = ()
    """Names of Secrets."""
    service_account: Line | None = None
    """Service account of the pods."""
    storage: KubernetesStorageConfig
    """Shared storage."""
    secrets: tuple[Line, ...] = ()
    """Names of Secrets whose keys become environment variables of the pods (HF_TOKEN, AWS_SECRET_ACCESS_KEY, …). Their
    values are never read here."""
    head: HeadConfig = HeadConfig()
    """Pod of Ray's head."""
    capture: WorkerGroupConfig = WorkerGroupConfig()
    """Pods of the teacher fleet."""
    train: WorkerGroupConfig = WorkerGroupConfig()
    """Pods of the trainers."""
    retries: NonNegativeInt = 3
    """Fresh starts after a failure; each continues from what is on the storage."""


class RayJobConfig(Section):
    """What `llmdistill launch ray` talks to."""

    address: Line = "http://127.0.0.1:8265"
    """Ray's dashboard, as `ray job submit --address` takes it."""


class ClusterConfig(Section):
    """The Ray cluster that a run uses, and how `llmdistill launch` gets one."""

    address: Line | None = None
    """Address of a running Ray cluster: `host:port`, or `auto` for the one that this machine is part of. Without it a
    run starts its own on this machine and ends it; an address in the environment is not followed by accident."""
    nodes: PositiveInt = 1
    """Nodes that must have joined before a stage starts."""
    autoscaling: bool = False
    """Ask Ray's autoscaler for the GPUs of a stage and wait for them, instead of refusing at once. Its nodes carry the
    custom resources `llmdistill_capture` and `llmdistill_train`, as those of `launch k8s` do."""
    wait_seconds: PositiveInt = 600
    """How long to wait for nodes and for the autoscaler; then the run ends with status 4."""
    environment: tuple[Line, ...] = (
        "DS_*",
        "FI_*",
        "GLOO_*",
        "HF_*",
        "MLFLOW_*",
        "NCCL_*",
        "TORCH_*",
        "UCX_*",
        "VLLM_*",
        "WANDB_*",
    )
    """Environment variables, as patterns, that go from where the run starts to every worker. A name with TOKEN, SECRET,
    PASSWORD, CREDENTIALS or KEY in it never does, since Ray shows such variables to everybody: give it to the nodes
    themselves."""
    variables: Annotated[dict[str, str], AfterValidator(_no_secrets)] = Field(default={})
    """Environment variables of every worker, and of the run itself where `launch` starts it."""
    slurm: SlurmConfig = SlurmConfig()
    """For `llmdistill launch slurm`."""
    kubernetes: KubernetesConfig | None = None
    """For `llmdistill launch k8s`."""
    ray: RayJobConfig = RayJobConfig()
    """For `llmdistill launch ray`."""
