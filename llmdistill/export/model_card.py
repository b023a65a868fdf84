"""The README.md of an exported student."""

from __future__ import annotations

from typing import Any

from llmdistill import __version__
from llmdistill.config.run import RunConfig

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, llmdistill]
---

# {title}

Distilled from `{teacher}` with llmdistill {version}.

| | |
|---|---|
| teacher | `{teacher}`, fingerprint `{teacher_fingerprint}` |
| student | {student} |
| objectives | {objectives} |
| data | {records} records, {rows} supervised tokens, mode `{mode}`, capture `{kind}` {top_k} |
| training | {epochs} epochs, learning rate {lr}, {tokens_per_step} tokens a step, ZeRO stage {zero_stage} |

The licence of the teacher, and of the prompts, applies to this model too.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""


def model_card(name: str, config: RunConfig, index: dict[str, Any]) -> str:
    """Markdown with the provenance of a model.

    Args:
        name: `student`, or the name of a baseline.
        config: the run.
        index: index.json of the run's cache.

    """
    student = config.student
    distilled = name == "student"
    objectives = ", ".join(f"{item.weight:g} × {item.type}" for item in config.objectives)
    return _TEMPLATE.format(
        title="A distilled student" if distilled else f"Baseline {name}",
        version=__version__,
        teacher=config.teacher.model,
        teacher_fingerprint=index["spec"]["teacher"],
        student=f"{student.from_teacher.layers} of the teacher's layers" if student.from_teacher else student.model,
        objectives=objectives if distilled else "1 × sequence_ce",
        records=index["records"],
        rows=index["rows"],
        mode=config.prompts.mode,
        kind=config.capture.kind,
        top_k=config.capture.top_k,
        **config.train.model_dump(include={"epochs", "lr", "tokens_per_step", "zero_stage"}),
    )
