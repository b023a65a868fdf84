"""`cluster:` where Ray runs."""

from __future__ import annotations

from llmdistill.config.base import Section


class ClusterConfig(Section):
    """The Ray cluster that a run uses."""

    address: str | None = None
    """Address of a running Ray cluster (`auto` finds one of this machine). Without it a run starts its own on this
    machine and ends it; an address in the environment is not followed by accident."""
