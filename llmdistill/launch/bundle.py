"""What travels with a run to a cluster that does not share this machine's files.

That is its configuration and the files of prompts that the configuration names by relative paths. Nothing else of the
working directory goes along: no .git, no data; and what is needed goes whether .gitignore lists it or not.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import yaml

from llmdistill.config.objectives import earlier_student
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.files import find_files

CONFIG = "config.yaml"
"""Name of the configuration in a bundle."""


def make_bundle(config: RunConfig, limit: int, cluster: dict[str, object], mounted: str = "") -> dict[str, bytes]:
    """Collect the files.

    Args:
        config: the run; relative paths start at the working directory.
        limit: bytes that may travel.
        cluster: keys of `cluster` that are different there.
        mounted: the folder that the bundle becomes there, where that is not the working directory.

    Returns:
        Relative path → contents.

    Raises:
        ConfigError: `output` or a model is a path of this machine, or too much would travel.
        DataError: a file that the configuration names is not there.

    """
    _require_shared(config)
    files = {}
    resolved = config.model_dump(mode="json")
    resolved["cluster"].update(cluster)
    sources = list(zip(config.prompts.sources, resolved["prompts"]["sources"], strict=True))
    if config.prompts.decontamination is not None:
        evaluation = resolved["prompts"]["decontamination"]["sources"]
        sources += zip(config.prompts.decontamination.sources, evaluation, strict=True)
    for source, values in sources:
        if source.path is None or PurePosixPath(source.path).is_absolute() or "://" in source.path:
            continue  # on the hub, or on the cluster's storage
        if ".." in PurePosixPath(source.path).parts:
            raise ConfigError(
                f"'{source.path}' leaves the working directory",
                "prompts.sources",
                fix="call from a folder above it",
            )
        for file in find_files(source):
            try:
                files[str(PurePosixPath(file.path))] = Path(file.path).read_bytes()
            except OSError as error:
                raise DataError(f"cannot read the prompts: {error.strerror}", where=file.path) from None
        values["path"] = str(PurePosixPath(mounted, source.path))
    files[CONFIG] = yaml.safe_dump(resolved, sort_keys=False).encode()
    size = sum(map(len, files.values()))
    if size > limit:
        raise ConfigError(
            f"the prompts and the configuration have {size >> 10} KiB, {limit >> 10} KiB can travel with a job",
            "prompts.sources",
            fix="put the prompts on the cluster's storage and write their absolute path",
        )
    return files


def _require_shared(config: RunConfig) -> None:
    if not Path(config.output).is_absolute():
        raise ConfigError(
            f"'{config.output}' is relative: it would lie in a folder that ends with the job",
            "output",
            fix="write an absolute path on storage that every node of the cluster reaches",
        )
    for key, model in (
        ("teacher.model", config.teacher.model),
        *((f"teachers.{name}.model", teacher.model) for name, teacher in config.teachers.items()),
        ("student.model", config.student.model),
        ("objectives: self_distillation.model", earlier_student(config.objectives)),
    ):
        if model is not None and not Path(model).is_absolute() and Path(model).exists():
            raise ConfigError(
                f"'{model}' lies on this machine",
                key,
                fix="write an absolute path on the cluster's storage, or a hub id",
            )
