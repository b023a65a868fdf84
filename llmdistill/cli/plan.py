"""`llmdistill plan`: what a run will take."""

from __future__ import annotations

import json

import click

_SHARE = click.FloatRange(min=0, max=1, min_open=True)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--price", type=click.FloatRange(min=0, min_open=True), help="Price of a GPU hour; shows costs.")
@click.option(
    "--tokens",
    type=click.FloatRange(min=1),
    help="Prompt and response tokens in all, in place of what the corpus has, such as 1e9.",
)
@click.option("--measure", is_flag=True, help="Load the teacher on the CPU and measure what each k captures.")
@click.option("--scoring-utilisation", type=_SHARE, default=0.4, show_default=True, help="Of the peak FLOP/s.")
@click.option("--decoding-utilisation", type=_SHARE, default=0.6, show_default=True, help="Of the memory bandwidth.")
@click.option("--training-utilisation", type=_SHARE, default=0.35, show_default=True, help="Of the peak FLOP/s.")
def plan(
    config: str,
    overrides: tuple[str, ...],
    as_json: bool,
    price: float | None,
    tokens: float | None,
    measure: bool,
    scoring_utilisation: float,
    decoding_utilisation: float,
    training_utilisation: float,
) -> None:
    """Storage, GPU hours, memory and cost of a run, from the models' config.json and a sample of the prompts."""
    from pathlib import Path

    from llmdistill.cli.pipeline import quiet_libraries
    from llmdistill.config.load import load_config

    run = load_config(config, overrides)
    quiet_libraries()
    from llmdistill.preflight.cost import Utilisation
    from llmdistill.preflight.plan import Options, make_plan

    utilisation = Utilisation(scoring_utilisation, decoding_utilisation, training_utilisation)
    document = make_plan(run, Path(run.output).resolve(), Options(price, tokens, utilisation))
    if measure:
        from llmdistill.preflight.measure import measure_capture

        document["measured"] = measure_capture(run)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    from llmdistill.preflight.plan_tables import plan_tables
    from llmdistill.preflight.tables import console

    output = console()
    for table in plan_tables(document):
        output.print(table)
        output.print()
