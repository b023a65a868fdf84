"""The README.md of an exported student."""

from __future__ import annotations

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

Distilled from `{teacher}` with llmdistill {version}.

| | |
|---|---|
| teacher | `{teacher}`, fingerprint `{teacher_fingerprint}` |
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
        teacher=config.teacher.model,
        teacher_fingerprint=index["spec"]["teacher"],
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


def _origin(student: StudentConfig) -> str:
    lora = student.lora
    adapters = f"; trained: LoRA of rank {lora.r}, alpha {lora.lora_alpha}, merged into the weights" if lora else ""
    if student.model is not None:
        return f"`{student.model}`{adapters}"
    if student.from_teacher is None:
        return "random weights"
    sizes = student.from_teacher.model_dump(exclude={"calibration"}, exclude_none=True, exclude_defaults=True)
    return "cut out of the teacher: " + ", ".join(f"{key} {value}" for key, value in sizes.items()) + adapters
