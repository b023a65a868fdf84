"""Whether a run fits what it asks a cluster for: known before anything waits in a queue."""

from __future__ import annotations

from llmdistill.config.prompts import MAIN_TEACHER
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
    needs = [(f"train.workers {config.train.workers}", config.train.workers, train)]
    for name, teacher in config.asked_teachers.items():
        key = name if name == MAIN_TEACHER else f"teachers.{name}"
        replicas, width = 1 if teacher.replicas == "auto" else teacher.replicas, teacher.tensor_parallel
        needs.append((f"{key}.replicas {replicas} × tensor_parallel {width}", replicas * width, capture))
        needs.append((f"{key}.tensor_parallel {width}, on one node,", width, node))
    for what, needed, there in needs:
        if there and needed > there:
            raise ConfigError(
                f"{what} needs {needed} GPUs, {asked} gives {there}", asked, fix="ask for more, or lower the first"
            )
