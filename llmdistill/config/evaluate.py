"""`evaluate:` what is measured once the student is there."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from llmdistill.config.base import Section


class GenerationConfig(Section):
    """Answers of the models to held-out prompts, compared with references."""

    prompts: PositiveInt = 64
    """Held-out prompts that are answered: the first of them in the order of their keys."""
    max_new_tokens: PositiveInt = 256
    """Longest answer."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of the sampled answers; the greedy ones need none."""
    samples: PositiveInt = 1
    """Sampled answers for each prompt."""
    seed: int = 0
    """Of the sampled answers."""
    reference: str | None = None
    """Column of the prompt rows with the wanted answer, or `list.field`. `null`: what the row's own conversation ends
    with (`answer`, `output`, `completion`, `response`, a last assistant message), which `generate` mode does not use
    otherwise. Rows without one are compared with the response in the cache: the text's own in `score` mode, the
    teacher's in `generate` mode. A reference that ends like GSM8K's, in `#### 42`, is compared by its number too."""


class SpeedConfig(Section):
    """Speed and size of teacher and student, one sequence at a time."""

    prompt_tokens: PositiveInt = 64
    """Length of the prompt."""
    new_tokens: PositiveInt = 64
    """Tokens that are generated after it."""


class EvaluateConfig(Section):
    """The evaluation. What is measured on held-out records needs no teacher, only the cache."""

    baseline: bool = True
    """Also train the same student for the same steps with cross-entropy on the same responses only (SFT)."""
    bootstrap: PositiveInt = 1000
    """Resamples of the held-out records behind the confidence intervals."""
    samples: int = Field(default=4, ge=0)
    """Held-out records that the report shows token by token."""
    speed: SpeedConfig | None = SpeedConfig()
    """`null` leaves it out."""
    generation: GenerationConfig | None = None
    """`{}` asks for it with these defaults; vLLM answers, whatever engine the teacher has."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of the lm-eval harness, by name or as a task's YAML file; needs `pip install llmdistill[lm-eval]`."""
    lm_eval_limit: PositiveInt | None = None
    """Documents of each task; `null` takes all."""
