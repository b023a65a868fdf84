"""Whether teacher and student mean the same by an id, by the end of a response and by a conversation."""

from __future__ import annotations

from llmdistill.config.run import RunConfig
from llmdistill.config.student import OTHER_TOKENIZER
from llmdistill.preflight.facts import Facts, ModelFacts, TokenizerFacts
from llmdistill.preflight.findings import Finding, error, ok, warning


def check_tokenizers(config: RunConfig, facts: Facts) -> list[Finding]:
    """Token → id maps: the student's may hold more tokens or fewer, and none with another id."""
    if facts.teacher is None:
        return []
    teacher = facts.teacher.tokenizer
    if teacher is None:
        return [
            error("tokenizer", f"'{facts.teacher.name}' has no tokenizer files", "copy tokenizer.json into its folder")
        ]
    if config.student.model is None:
        return [ok("tokenizer", f"{teacher.size:,} tokens; the student has the teacher's")]
    student = facts.student.tokenizer if facts.student else None
    if facts.student is None:
        return []
    if config.student.tokenizer == "own":
        return [_own(teacher, student)]
    if student is None:
        return [
            ok("tokenizer", f"{teacher.size:,} tokens; the student's folder has no tokenizer, it gets the teacher's")
        ]
    return [_compare(teacher, student)]


def _own(teacher: TokenizerFacts, student: TokenizerFacts | None) -> Finding:
    if student is None:
        fix = "save its tokenizer in the folder, or use student.tokenizer: teacher"
        return error("tokenizer", "student.tokenizer is own, and student.model has no tokenizer files", fix)
    if student.ids == teacher.ids:
        return warning(
            "tokenizer",
            f"student.tokenizer is own, and both have the same {teacher.size:,} tokens",
            "use student.tokenizer: teacher, with which objectives on whole distributions work",
        )
    return ok(
        "tokenizer",
        f"the student keeps its own, {student.size:,} tokens beside the teacher's {teacher.size:,}: the teacher's text"
        " is tokenized again for it when the training starts",
    )


def _compare(teacher: TokenizerFacts, student: TokenizerFacts) -> Finding:
    moved = [token for token, number in teacher.ids.items() if student.ids.get(token, number) != number]
    if moved:
        token = min(moved, key=lambda name: teacher.ids[name])
        what = (
            f"{len(moved):,} of {len(teacher.ids):,} tokens have other ids in the student's tokenizer:"
            f" {token!r} is {teacher.ids[token]} for the teacher and {student.ids[token]} for the student"
        )
        return error("tokenizer", what, OTHER_TOKENIZER)
    by_id = {number: token for token, number in student.ids.items()}
    missing = {token: number for token, number in teacher.ids.items() if token not in student.ids}
    taken = [token for token, number in missing.items() if number in by_id]
    if taken:
        token = min(taken, key=lambda name: missing[name])
        what = (
            f"{len(taken):,} ids mean other tokens in the student's tokenizer: {missing[token]} is {token!r} for the"
            f" teacher and {by_id[missing[token]]!r} for the student, which has no id for the former"
        )
        return error("tokenizer", what, OTHER_TOKENIZER)
    common = len(teacher.ids) - len(missing)
    if missing:
        token = min(missing, key=lambda name: missing[name])
        return warning(
            "tokenizer",
            f"{common:,} common tokens with equal ids; the student knows {len(missing):,} of the teacher's not,"
            f" {token!r} ({missing[token]}) the first",
            "nothing, if the text has few of them: their embeddings start untrained",
        )
    more = len(student.ids) - common
    return ok("tokenizer", f"{common:,} common tokens with equal ids; the student's has {more:,} more")


def check_vocabulary(config: RunConfig, facts: Facts) -> list[Finding]:
    """Widths of embedding and head against the tokenizer: heads are padded, and the padding takes no part."""
    teacher, student = facts.teacher, facts.student
    if teacher is None or teacher.tokenizer is None:
        return []
    tokens = teacher.tokenizer.size
    widths = {"teacher": teacher.config["vocab_size"]}
    if student is not None and config.student.tokenizer == "teacher":
        widths["student"] = student.config["vocab_size"]
    found = [
        error(
            "vocabulary",
            f"the {name}'s head has {width:,} columns and the teacher's tokenizer {tokens:,} tokens",
            f"name a {name} whose vocab_size is at least {tokens:,}, or remove the added tokens",
        )
        for name, width in widths.items()
        if width < tokens
    ]
    if found:
        return found
    said = ", ".join(f"{name} {width:,}" for name, width in widths.items())
    padding = ", ".join(f"{width - tokens:,} of the {name}'s" for name, width in widths.items() if width > tokens)
    cut = f"; {padding} columns are padding and are cut off before the softmax" if padding else ""
    kept = getattr(config.capture, "top_k", 0) if config.capture.kind == "top_k" else 0
    if kept > tokens:
        return [
            error("vocabulary", f"capture.top_k {kept} of {tokens:,} tokens", f"use a capture.top_k up to {tokens}")
        ]
    return [ok("vocabulary", f"heads {said}; tokenizer {tokens:,}{cut}")]


def check_ends(config: RunConfig, facts: Facts) -> list[Finding]:
    """End tokens: what the teacher stops at must be what the student learns to stop with."""
    teacher, student = facts.teacher, facts.student
    if teacher is None or teacher.tokenizer is None:
        return []
    tokenizer = teacher.tokenizer
    own = student.tokenizer if student is not None and config.student.tokenizer == "own" else None
    if own is not None:
        return [_own_end(tokenizer, own)]
    if tokenizer.end_id is None:
        return [
            error("end token", "the teacher's tokenizer has no eos_token", "set eos_token in its tokenizer_config.json")
        ]
    name = tokenizer.token(tokenizer.end_id)
    if teacher.generation_ends and tokenizer.end_id not in teacher.generation_ends:
        others = ", ".join(tokenizer.token(end) for end in teacher.generation_ends)
        return [
            warning(
                "end token",
                f"the teacher's tokenizer ends with {name}, its generation_config.json with {others}",
                "make eos_token of tokenizer_config.json the token that ends a turn of the chat template",
            )
        ]
    theirs = _other_end(tokenizer, student)
    if config.student.model is not None and theirs:
        return [
            warning(
                "end token",
                f"the teacher ends with {name}, the student was trained to end with {theirs}",
                "nothing: the student gets the teacher's tokenizer and learns to end as the teacher does",
            )
        ]
    return [ok("end token", f"{name} for teacher and student")]


def _own_end(teacher: TokenizerFacts, student: TokenizerFacts) -> Finding:
    if student.end_id is None:
        return error("end token", "the student's tokenizer has no eos_token", "set it in its tokenizer_config.json")
    end = student.token(student.end_id)
    return ok("end token", f"where the teacher ends with {teacher.token(teacher.end_id)}, the student learns {end}")


def _other_end(tokenizer: TokenizerFacts, student: ModelFacts | None) -> str:
    if student is None or student.tokenizer is None or student.tokenizer.end_id in (None, tokenizer.end_id):
        return ""
    return student.tokenizer.token(student.tokenizer.end_id)


def check_template(config: RunConfig, facts: Facts) -> list[Finding]:
    """The chat template: the teacher's renders every prompt, and the student is shipped with it."""
    if facts.teacher is None or facts.teacher.tokenizer is None:
        return []
    mine = facts.teacher.tokenizer.template
    theirs = facts.student.tokenizer.template if facts.student and facts.student.tokenizer else None
    own = config.student.tokenizer == "own" and facts.student is not None
    if own and theirs is None and config.prompts.mode == "generate":
        return [
            error(
                "chat template",
                "the student's tokenizer has none, and its prompts are rendered with its own",
                "add chat_template.jinja to its folder, use an instruct model, or student.tokenizer: teacher",
            )
        ]
    if mine is None:
        if config.prompts.mode == "generate":
            return [
                error(
                    "chat template",
                    "the teacher's tokenizer has none, and prompts.mode generate renders every prompt with it",
                    "use an instruct model, add chat_template.jinja to its folder, or score text: prompts.mode=score",
                )
            ]
        return [ok("chat template", "none; rows with text need none")]
    if own and theirs is not None:
        return [ok("chat template", "the teacher's renders its prompts, the student's own renders the student's")]
    if theirs is not None and theirs != mine:
        return [
            warning(
                "chat template",
                f"the student's own ({len(theirs):,} characters) differs from the teacher's ({len(mine):,})",
                "nothing: prompts are rendered with the teacher's, and the student is exported with it",
            )
        ]
    return [ok("chat template", f"one for both, {len(mine):,} characters")]
