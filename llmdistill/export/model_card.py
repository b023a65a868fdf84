"""The README.md of an exported student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmdistill import __version__
from llmdistill.config.run import RunConfig
from llmdistill.config.student import StudentConfig

_TEMPLATE = """\
---
library_name: transformers{licence}
pipeline_tag: text-generation
tags: [distillation, llmdistill]
---

# {title}

Distilled from {teachers} with llmdistill {version}.

| | |
|---|---|
{teacher_rows}
| student | {student} |
| objectives | {objectives} |
| data | {records} records, {rows} supervised tokens, mode `{mode}`, capture `{kind}` {top_k} |
| training | {epochs} epochs, learning rate {lr}, {tokens_per_step} tokens a step, ZeRO stage {zero_stage} |

The licences of the teacher and of the prompts apply to this model too.

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
    distilled = name == "student"
    objectives = ", ".join(f"{item.weight:g} × {item.type}" for item in config.objectives)
    return _TEMPLATE.format(
        title="A distilled student" if distilled else f"Baseline {name}",
        version=__version__,
        teachers=", ".join(f"`{teacher.model}`" for teacher in config.asked_teachers.values()),
        teacher_rows="\n".join(_teacher_rows(config, index)),
        licence=f"\nlicense: {config.export.licence}" if config.export.licence else "",
        student=_origin(config.student),
        objectives=objectives if distilled else "1 × sequence_ce",
        records=index["records"],
        rows=index["rows"],
        mode=config.prompts.mode,
        kind=config.capture.kind,
        top_k=config.capture.top_k,
        **config.train.model_dump(include={"epochs", "lr", "tokens_per_step", "zero_stage"}),
    )


def _teacher_rows(config: RunConfig, index: dict[str, Any]) -> Iterator[str]:
    captures = {capture["name"]: capture for capture in index.get("captures", ())}
    for name, teacher in config.asked_teachers.items():
        capture = captures.get(name)
        if len(config.asked_teachers) == 1:
            yield f"| teacher | `{teacher.model}`, fingerprint `{index['spec']['teacher']}` |"
        elif capture is None:
            yield f"| teacher {name} | `{teacher.model}`, no record |"
        else:
            yield (
                f"| teacher {name} | `{teacher.model}`, fingerprint `{capture['spec']['teacher']}`,"
                f" {capture['records']} records |"
            )


def _origin(student: StudentConfig) -> str:
    lora = student.lora
    adapters = f"; trained: LoRA of rank {lora.r}, alpha {lora.lora_alpha}, merged into the weights" if lora else ""
    if student.model is not None:
        return f"`{student.model}`{adapters}"
    if student.from_teacher is None:
        return "random weights"
    sizes = student.from_teacher.model_dump(exclude={"calibration"}, exclude_none=True, exclude_defaults=True)
    return "cut out of the teacher: " + ", ".join(f"{key} {value}" for key, value in sizes.items()) + adapters
