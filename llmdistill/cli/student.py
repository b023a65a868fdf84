"""The student before its training: its first weights, and its records where it has a tokenizer of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from llmdistill.cache.reader import CacheReader
from llmdistill.cli import stages
from llmdistill.errors import DataError
from llmdistill.observe.progress import Progress


def require_tokenizers(run: stages.Run) -> None:
    """Refuse a student whose tokenizer does not fit the configuration, before the teacher is paid.

    Raises:
        ConfigError: it has other tokens than the teacher and shall have the same, or has no tokenizer of its own.

    """
    from llmdistill.student.vocabulary import require_same_tokenizer, tokenizer_files

    model = run.config.student.model
    if model is None:
        return
    if run.own_tokenizer:
        tokenizer_files(model)
    else:
        require_same_tokenizer(model, run.tokenizer_folder, f"student.model: {model}")


def make_untrained(run: stages.Run) -> None:
    """Write the student before training, once."""
    make_student(run, run.folder.untrained, "train")


def make_student(run: stages.Run, folder: Path, stage: str) -> None:
    """Write the student of a configuration into a folder, once; `stage` says so."""
    from llmdistill.student.creation import create_student

    if folder.is_dir():
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    made = create_student(run.config.student, run.teacher_folder, temporary, calibration_sequences(run))
    for line in made.splitlines():
        stages.say(f"{stage}: {line}")
    temporary.rename(folder)


def make_student_cache(run: stages.Run) -> None:
    """Bring the cache in the student's own tokens up to the teacher's, where it has such."""
    if not run.own_tokenizer:
        return
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.rejects import counts_by_kind, write_rejected
    from llmdistill.prompts.render import load_tokenizer
    from llmdistill.prompts.requests import Origin, make_requests
    from llmdistill.student.retokenize import retokenize, student_prompts
    from llmdistill.student.vocabulary import tokenizer_files

    config, cache, target = run.config, run.folder.cache, run.folder.student_cache
    teacher, student = load_tokenizer(run.tokenizer_folder), load_tokenizer(run.folder.untrained)
    own = tokenizer_files(str(config.student.model)) / "tokenizer.json"
    if own.read_bytes() != (run.folder.untrained / "tokenizer.json").read_bytes():
        raise DataError(
            "was written for another student, with another tokenizer",
            where=str(run.folder.untrained),
            fix="choose another output folder, or go back to the student that it was made for",
        )

    def read_origins() -> dict[bytes, Origin]:
        rows, spec = read_prompts(config.prompts), CacheReader(cache).spec
        asked = {name: (one, spec) for name, one in config.asked_teachers.items()}
        return make_requests(rows, teacher, config.prompts, asked, with_origins=True).origins

    unknown = config.prompts.template_arguments.keys() - student_prompts(config.prompts, student).template_arguments
    if unknown:
        stages.say(f"train: the student's chat template has no {', '.join(sorted(unknown))}; its prompts go without")
    records = len(CacheReader(cache))
    with Progress("train tokenizing again", records, "records") as progress:
        found = retokenize(
            cache,
            target,
            teacher,
            student,
            config.prompts,
            read_origins,
            config.capture.compression,
            lambda done, total: progress.update(records - total + done),
        )
    for change, count in found.changes.most_common():
        stages.say(f"train: {count} {change}")
    if found.records:
        stages.say(f"train: {found.records} records tokenized again for the student, see {target}")
    write_rejected(target / "rejected.jsonl", found.rejected)
    if found.rejected:
        counts = counts_by_kind(row.reason for row in found.rejected)
        stages.say(
            f"train: {len(found.rejected)} records cannot be had in the student's tokens ({counts}), see {target}"
        )


def calibration_sequences(run: stages.Run) -> Iterator[list[int]]:
    """Token ids of some training records; records lie in the order of hashes, so the first ones are a fair sample."""
    wanted = run.config.student.from_teacher
    assert wanted is not None
    reader = CacheReader(run.folder.cache)
    training, _ = reader.split(run.config.prompts.held_out)
    for number in training[: wanted.calibration.records].tolist():
        yield reader.read(number).token_ids_N[: wanted.calibration.tokens].tolist()
