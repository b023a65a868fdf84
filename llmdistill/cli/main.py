"""The command line. Heavy imports happen after parsing, so that `--help` answers at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from llmdistill import __version__
from llmdistill.cli.cache import cache
from llmdistill.cli.doctor import doctor
from llmdistill.cli.launch import launch
from llmdistill.cli.plan import plan
from llmdistill.cli.tune import tune
from llmdistill.errors import LLMDistillError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="llmdistill")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Distil a large language model into a small one.

    One YAML file describes a run. A command ends with status 0 when done, 1 when it failed while running, 2 when
    the configuration or the call is wrong, 3 when data or a cache is damaged, 4 when the cluster cannot give what
    was asked.
    """
    context.obj = {"debug": debug}


cli.add_command(cache)
cli.add_command(doctor)
cli.add_command(plan)
cli.add_command(launch)
cli.add_command(tune)


def _stage_command(name: str, help_text: str) -> None:
    @cli.command(name, help=help_text)
    @click.argument("config", type=click.Path(exists=True, dir_okay=False))
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    def command(config: str, overrides: tuple[str, ...]) -> None:
        from llmdistill.config.load import load_config

        run_config = load_config(config, overrides)
        from llmdistill.cli.pipeline import run_stages

        run_stages(run_config, until=None if name == "run" else name)


_stage_command("run", "Run every stage in turn; finished ones are skipped, an interrupted one continues.")
_stage_command("generate", "Ask the teacher and fill the cache.")
_stage_command("train", "Train the student (and the baseline) on the cache.")
_stage_command("export", "Write the student as a Hugging Face folder.")
_stage_command("evaluate", "Compare untrained student, baseline and student with the teacher on held-out records.")


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--output", type=click.Path(dir_okay=False), help="The file [RUN/report.html; of several: comparison.html]."
)
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="Price of a worker for an hour, for the cost.")
def report(runs: tuple[str, ...], output: str | None, price_per_hour: float | None) -> None:
    """Write one self-contained page about a run, or one that compares several."""
    from pathlib import Path

    from llmdistill.observe.report.page import write_comparison, write_report
    from llmdistill.observe.run_folder import RunFolder

    folders = [RunFolder(Path(run).resolve()) for run in runs]
    if len(folders) == 1:
        page = write_report(folders[0], Path(output) if output else None, price_per_hour)
    else:
        page = write_comparison(folders, Path(output or "comparison.html"))
    click.echo(page)


def main() -> None:
    """Entry point of the `llmdistill` command."""
    sys.exit(call(lambda: cli.main(standalone_mode=False), debug="--debug" in sys.argv[1:]))


def call(command: Callable[[], Any], debug: bool) -> int:
    """Run a command and turn what it raises into an exit status and a line or two on standard error."""
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        status, message = 130, "interrupted; the same command continues"
    except KeyboardInterrupt:
        status, message = 130, "interrupted; the same command continues"
    except click.ClickException as error:
        error.show()
        return 2
    except LLMDistillError as error:
        status, message = error.exit_status, str(error)
    except Exception as error:
        status, message = 1, f"unexpected {type(error).__name__}: {error}\n  fix: --debug shows where; please report it"
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}" if status != 130 else message, err=True)
    return status
