"""Rows of a data set of the Hugging Face hub, as they arrive."""

from __future__ import annotations

from collections.abc import Iterator

from llmdistill.config.prompts import SourceConfig
from llmdistill.errors import DataError
from llmdistill.prompts.containers import NumberedRow
from llmdistill.prompts.patience import patiently


def hub_name(source: SourceConfig) -> str:
    """`owner/name/configuration/split`, for messages."""
    return "/".join(part for part in (source.hub, source.name, source.split) if part)


def read_hub(source: SourceConfig) -> Iterator[NumberedRow]:
    """The rows of a source with `hub`, numbered from 1.

    Raises:
        DataError: there is no such data set, configuration, split or revision, the hub cannot be reached, or a file of
            the data set cannot be read.
    """
    import datasets

    assert source.hub is not None
    try:
        rows = patiently(
            lambda: datasets.load_dataset(
                source.hub, source.name, split=source.split, revision=source.revision, streaming=True
            )
        )
        yield from enumerate((dict(row) for row in rows), start=1)
    # datasets raises errors of many families: its own, the hub's, those of HTTP and of file formats.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"cannot read the hub data set: {type(error).__name__}: {reason}", where=hub_name(source)
        ) from error
