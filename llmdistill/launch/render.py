"""Templates of launch/ into text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import yaml

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill a template; a value that it names and does not get is an error.

    Args:
        template: its path below `TEMPLATES`.
        values: what it names. `| quote` makes a word for a shell, `| yaml` a value on one line of YAML.

    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML have their own quoting, by the filters below
    )
    environment.filters["quote"] = _quote
    environment.filters["yaml"] = _yaml
    environment.filters["json"] = json.dumps  # Jinja's own escapes for HTML
    return environment.get_template(template).render(**values)


def _quote(value: Any) -> str:
    # Always in quotes, which reads the same whatever the value is.
    return "'" + str(value).replace("'", "'\\''") + "'"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=100_000)
    return text.removesuffix("\n").removesuffix("\n...")
