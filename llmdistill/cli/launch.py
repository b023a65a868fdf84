"""`llmdistill launch …`: the same configuration on Slurm, Kubernetes and Ray clusters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click


@click.group()
def launch() -> None:
    """Run CONFIG on a cluster. The section `cluster` says what is asked for; nothing else in the file changes."""


def _target(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def command(config: str, overrides: tuple[str, ...], dry_run: bool) -> Any:
            from pathlib import Path

            from llmdistill.config.load import load_config

            return function(load_config(config, overrides), Path(config), overrides, dry_run)

        command = click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")(command)
        command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
        command = click.argument("config", type=click.Path(exists=True, dir_okay=False))(command)
        return launch.command(name)(command)

    return decorate


@_target("slurm")
def slurm(config: Any, path: Any, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Submit one job that starts Ray on its nodes, runs every stage, and goes back into the queue when preempted."""
    from llmdistill.launch.slurm import job_script, log_folder, submit

    script = job_script(config, path, overrides)
    if dry_run:
        click.echo(script, nl=False)
        return
    job = submit(config, script)
    click.echo(f"job {job} is in the queue; log: {log_folder(config)}/slurm-{job}.log")


@_target("ray")
def ray(config: Any, path: Any, overrides: tuple[str, ...], dry_run: bool) -> int:
    """Run as a job of a Ray cluster, follow its output, and end with its exit status. Ctrl-C stops the job."""
    from llmdistill.launch.ray_job import ENTRYPOINT, bundle, run_job

    if dry_run:
        click.echo(f"{config.cluster.ray.address}: {ENTRYPOINT}, with")
        for name, contents in bundle(config).items():
            click.echo(f"  {name}  {len(contents)} bytes")
        return 0
    return run_job(config, lambda text: click.echo(text, err=True, nl=False))


@_target("k8s")
def k8s(config: Any, path: Any, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Create a KubeRay RayJob: a worker group for the teacher fleet, one for the trainers, both autoscaled."""
    from datetime import UTC, datetime

    from llmdistill.launch.kubernetes import apply, job_name, manifests

    suffix = datetime.now(UTC).strftime("%m%d%H%M%S")
    text = manifests(config, suffix)
    if dry_run:
        click.echo(text, nl=False)
        return
    apply(config, text)
    name, namespace = job_name(config, suffix), config.cluster.kubernetes.namespace
    click.echo(f"created rayjob {name}; follow it with `kubectl --namespace {namespace} logs --follow job/{name}`")
