"""Whether a run fits what it asks a cluster for: known before anything waits in a queue."""

from __future__ import annotations

from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError


def require_gpus(config: RunConfig, *, capture: int, train: int, node: int, asked: str) -> None:
    """Refuse a run that would need more GPUs than it asks for.

    Args:
        config: the run.
        capture: GPUs that the teacher fleet will see; 0 where the cluster has none.
        train: GPUs that the trainers will see.
        node: GPUs of each node of the fleet; a replica lies on one node.
        asked: the key that says so, for the message.

    Raises:
        ConfigError: the fleet or the trainers do not fit.

    """
    teacher = config.teacher
    replicas = 1 if teacher.replicas == "auto" else teacher.replicas
    needs = (
        (
            f"teacher.replicas {replicas} × tensor_parallel {teacher.tensor_parallel}",
            replicas * teacher.tensor_parallel,
            capture,
        ),
        (f"train.workers {config.train.workers}", config.train.workers, train),
        (f"teacher.tensor_parallel {teacher.tensor_parallel}, on one node,", teacher.tensor_parallel, node),
    )
    for what, needed, there in needs:
        if there and needed > there:
            raise ConfigError(
                f"{what} needs {needed} GPUs, {asked} gives {there}", asked, fix="ask for more, or lower the first"
            )
