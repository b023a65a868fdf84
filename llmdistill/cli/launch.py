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
