"""Joining or starting the Ray cluster of a run, and ending it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdistill.config.cluster import ClusterConfig, looks_secret
from llmdistill.errors import ClusterError

CAPTURE, TRAIN = "llmdistill_capture", "llmdistill_train"
"""Ray resources: each node of an autoscaled worker group holds 1, so that a stage gets nodes of its own kind."""

SHARE = 0.001
"""What a replica or trainer takes of those: only whether a node has the resource matters."""

PACKAGES = ("llmdistill", "torch", "transformers", "deepspeed", "safetensors")
"""What every node must hold; of the first two the same version as here."""

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 5.0


@contextlib.contextmanager
def ray_cluster(cluster: ClusterConfig, needs: Sequence[dict[str, float]] = ()) -> Iterator[None]:
    """Within this context Ray is connected. Without an address a cluster of this machine alone is started, and ended.

    Args:
        cluster: where Ray runs.
        needs: what the stage asks an autoscaler for, one dictionary of Ray resources for each process.

    Raises:
        ClusterError: no cluster answers at the address, it runs other versions, or too few nodes join in time.

    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = {"env_vars": _worker_environment(cluster)}
    try:
        if cluster.address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            address = _living_address(cluster.address)
            enable_token()
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        # A client of the cluster that stays behind ends this whole process once the cluster is gone for a minute.
        ray.shutdown()
        raise _unreachable(cluster.address, str(error)) from None
    try:
        _await_nodes(cluster)
        if cluster.address is not None:
            _require_packages()
        if cluster.autoscaling and needs:
            with _autoscaled(cluster, needs):
                yield
        else:
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


def enable_token() -> None:
    """Use the token of this machine, if it has one: Ray does so by itself only for clusters of the same machine."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def forwarded_environment(patterns: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go to every worker: those of the allow-list that do not look like secrets."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and not looks_secret(name)
    }


def _worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    variables = forwarded_environment(cluster.environment, os.environ) | cluster.variables
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "null"))
    if submitted is None:
        # Workers must find the package also when it is run from a source tree.
        source = str(Path(__file__).resolve().parent.parent)
        return variables | {"PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    # Ray refuses variables that the job's own environment has already; the package comes with the job.
    given = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in variables.items() if name not in given}


def _living_address(address: str) -> str:
    """The address to join, after something answered there: Ray itself would wait for minutes."""
    if "://" in address:
        raise ConnectionError("only the driver would run here: this address is for clients of a cluster")
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment

        address = get_ray_address_from_environment("auto", None)
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"'{address}' is not host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {address} ({error.strerror or error})") from None
    return address


def _unreachable(address: str | None, reason: str) -> ClusterError:
    where = "cluster.address" if address is None else f"cluster.address: {address}"
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", reason)
    if len(versions) == 2:
        (ray_there, python_there), (ray_here, python_here) = versions
        return ClusterError(
            f"the cluster runs Ray {ray_there} on Python {python_there}, "
            f"this process Ray {ray_here} on Python {python_here}",
            where,
            fix="run the same versions on both sides, for example from the same image",
        )
    if address is not None and "://" in address:
        return ClusterError(
            reason, where, fix="submit the run with `llmdistill launch ray`, or write host:port or auto"
        )
    if "uthenticat" in reason or "token" in reason:
        return ClusterError(
            f"the cluster refuses this process: {reason.splitlines()[0]}",
            where,
            fix="give it the cluster's token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN",
        )
    return ClusterError(
        f"cannot reach a Ray cluster: {reason.splitlines()[0]}",
        where,
        fix="start one with `ray start --head`, or leave cluster.address out to use this machine",
    )


def _await_nodes(cluster: ClusterConfig) -> None:
    import ray

    deadline = time.monotonic() + cluster.wait_seconds
    while (alive := sum(node["Alive"] for node in ray.nodes())) < cluster.nodes:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{alive} of {cluster.nodes} nodes joined within {cluster.wait_seconds} s",
                where="cluster.nodes",
                fix="look for the missing nodes' own messages, or raise cluster.wait_seconds",
            )
        time.sleep(_POLL_SECONDS)


def _require_packages() -> None:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = _versions(PACKAGES)
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            on_it = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look: Any = ray.remote(_versions).options(num_cpus=0, scheduling_strategy=on_it)
            asked.append((node["NodeManagerAddress"], look.remote(PACKAGES)))
    for address, answer in asked:
        where, fix = f"node {address}", "run the same versions on all nodes, for example from one image"
        try:
            there = ray.get(answer)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ClusterError(f"llmdistill does not start there: {reason}", where, fix) from None
        for name in PACKAGES:
            if there[name] is None:
                raise ClusterError(f"the package {name} is missing", where, fix)
        for name in PACKAGES[:2]:
            if there[name] != here[name]:
                raise ClusterError(f"{name} is {there[name]}, here it is {here[name]}", where, fix)


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    from importlib import metadata

    import llmdistill

    found: dict[str, str | None] = {}
    for name in packages:
        try:
            # The package itself may come with the job; builds of one version for CPUs and GPUs are the same here.
            found[name] = llmdistill.__version__ if name == "llmdistill" else metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@contextlib.contextmanager
def _autoscaled(cluster: ClusterConfig, needs: Sequence[dict[str, float]]) -> Iterator[None]:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(need) for need in needs])
    try:
        asked = {name: sum(need.get(name, 0) for need in needs) for name in needs[0]}
        deadline = time.monotonic() + cluster.wait_seconds
        while short := _missing(asked):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the autoscaler did not bring {short} within {cluster.wait_seconds} s",
                    where="cluster.autoscaling",
                    fix="raise max_replicas of the worker group or cluster.wait_seconds, or ask for less",
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        request_resources(bundles=[])  # the nodes may go


def _missing(asked: dict[str, float]) -> str:
    """What nodes of the right kind still lack, or an empty text."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [node for node in nodes if all(name in node for name in asked)]
    held = {name: sum(node[name] for node in fitting) for name in asked}
    return ", ".join(
        f"{amount:g} {name} (there are {held[name]:g})" for name, amount in asked.items() if held[name] < amount
    )
