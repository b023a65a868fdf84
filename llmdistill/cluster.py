"""Joining or starting the Ray cluster of a run, and ending it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmdistill.config.cluster import ClusterConfig
from llmdistill.errors import ClusterError


@contextlib.contextmanager
def ray_cluster(cluster: ClusterConfig) -> Iterator[None]:
    """Within this context Ray is connected. Without an address a cluster of this machine alone is started, and ended.

    Raises:
        ClusterError: no cluster answers at the address.

    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Workers must find the package also when it is run from a source tree.
    source = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    try:
        if cluster.address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=cluster.address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot reach a Ray cluster: {str(error).splitlines()[0]}",
            where=f"cluster.address: {cluster.address}",
            fix="start one with `ray start --head`, or leave cluster.address out to use this machine",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def require_resources(what: str, asked: dict[str, float], fix: str) -> None:
    """Fail at once where waiting would never end.

    Args:
        what: who asks, for the message.
        asked: Ray resource → amount, in all.
        fix: what a person can do.

    Raises:
        ClusterError: the cluster does not hold that much.

    """
    import ray

    total = ray.cluster_resources()
    for resource, amount in asked.items():
        if amount > total.get(resource, 0):
            raise ClusterError(
                f"{what} needs {amount:g} {resource}, the cluster has {total.get(resource, 0):g}", fix=fix
            )
