"""The checks that each teacher has to pass: the checks of one teacher, made of every one that answers prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.run import RunConfig
from llmdistill.preflight.check_corpus import check_lengths
from llmdistill.preflight.check_machine import check_processors, check_vllm
from llmdistill.preflight.check_models import check_context, check_tensor_parallel, check_weights
from llmdistill.preflight.facts import Facts
from llmdistill.preflight.findings import Finding, error, ok, warning
from llmdistill.prompts.keys import id_difference


@dataclass(frozen=True)
class TeacherView:
    """A run as if one of its teachers were the only one."""

    name: str
    config: RunConfig
    facts: Facts

    @property
    def key(self) -> str:
        """Its section in the configuration."""
        return self.name if self.name == MAIN_TEACHER else f"teachers.{self.name}"

    def named(self, findings: Sequence[Finding]) -> list[Finding]:
        """What was found about it, under its own name."""
        if self.name == MAIN_TEACHER:
            return list(findings)
        return [
            replace(one, check=f"{one.check} ({self.name})", what=self._keys(one.what), fix=self._keys(one.fix))
            for one in findings
        ]

    def _keys(self, text: str) -> str:
        return re.sub(r"\bteacher\.(?=[a-z_])", f"{self.key}.", text)


def teacher_views(config: RunConfig, facts: Facts) -> Iterator[TeacherView]:
    """Each teacher that answers prompts, with the rows that it answers."""
    for name, teacher in config.asked_teachers.items():
        yield TeacherView(
            name,
            config.model_copy(update={"teacher": teacher}),
            replace(
                facts,
                teacher=facts.teacher if name == MAIN_TEACHER else facts.further.get(name),
                corpus=None if facts.corpus is None else facts.corpus.of_teacher(name),
            ),
        )


def check_teachers(config: RunConfig, facts: Facts) -> list[Finding]:
    """Lengths for all teachers; for the further ones everything that the other checks ask of the first."""
    found = []
    for view in teacher_views(config, facts):
        found += view.named(check_lengths(view.config, view.facts))
        if view.name != MAIN_TEACHER and view.facts.teacher is not None:
            # Without the student, of which these checks speak too.
            alone = replace(view.facts, student=None)
            found += view.named(
                [
                    *_check_ids(facts, view.facts),
                    *check_tensor_parallel(view.config, alone),
                    *check_context(view.config, alone),
                    *check_weights(view.config, alone),
                    *check_processors(view.config, alone)[:1],
                    *check_vllm(view.config, alone),
                ]
            )
    return found


def _check_ids(facts: Facts, own: Facts) -> list[Finding]:
    """Tokenizer and chat template against those of the section `teacher`, which make all prompts."""
    if facts.teacher is None or facts.teacher.tokenizer is None or own.teacher is None:
        return []
    first, second = facts.teacher.tokenizer, own.teacher.tokenizer
    if second is None:
        return [
            error("tokenizer", f"'{own.teacher.name}' has no tokenizer files", "copy tokenizer.json into its folder")
        ]
    if difference := id_difference(first.ids, second.ids):
        return [
            error(
                "tokenizer",
                f"it gives other ids than that of {MAIN_TEACHER}: {difference}",
                "choose teachers of one family, or distil from each in a run of its own",
            )
        ]
    if first.end_id != second.end_id:
        return [
            warning(
                "tokenizer",
                f"the same ids, but it ends with {second.token(second.end_id)} and {MAIN_TEACHER} with"
                f" {first.token(first.end_id)}",
                "nothing, if the student may learn both ends; else set one eos_token in both folders",
            )
        ]
    if first.template != second.template:
        return [
            warning(
                "tokenizer",
                f"the same ids, but another chat template than that of {MAIN_TEACHER}, which makes all prompts",
                "nothing, if it answers such prompts well; else choose a teacher of the same format",
            )
        ]
    return [ok("tokenizer", f"{first.size:,} tokens, the same ids and chat template as {MAIN_TEACHER}")]
