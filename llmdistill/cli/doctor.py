"""`llmdistill doctor`: the preflight of a run."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def doctor(config: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check a run before it starts, in seconds: models, prompts, machine, output, and the arithmetic itself.

    Status 0 without errors, 2 when configuration or data must change, 4 when the cluster cannot give what is asked.
    """
    from dataclasses import asdict
    from pathlib import Path

    from llmdistill.cli.pipeline import quiet_libraries
    from llmdistill.config.load import load_config
    from llmdistill.errors import ConfigError
    from llmdistill.observe.run_folder import RunFolder
    from llmdistill.preflight.doctor import Paths, examine, refused

    try:
        run = load_config(config, overrides)
    except ConfigError as fault:
        report = refused(fault)
    else:
        quiet_libraries()
        folder = RunFolder(Path(run.output).resolve())
        report = examine(run, Paths(folder.path, folder.config, folder.cache / "shards", folder.checkpoints))
    if as_json:
        document = {
            "ok": report.exit_status == 0,
            "exit_status": report.exit_status,
            "seconds": round(report.seconds, 2),
            "findings": [asdict(finding) for finding in report.findings],
        }
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return report.exit_status
    from llmdistill.preflight.tables import console, findings_table

    levels = [finding.level for finding in report.findings]
    output = console()
    output.print(findings_table(report.findings))
    output.print(
        f"\n{levels.count('error')} errors, {levels.count('warning')} warnings, {levels.count('ok')} ok"
        f" in {report.seconds:.1f} s"
    )
    return report.exit_status
