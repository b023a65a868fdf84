"""`evaluate:` what is measured on the held-out records."""

from __future__ import annotations

from llmdistill.config.base import Section


class EvaluateConfig(Section):
    """The evaluation on held-out records of the cache."""

    baseline: bool = True
    """Also train the same student for the same steps with cross-entropy on the same responses only (SFT)."""
