"""`llmdistill cache …`: looking at caches, mending them, moving records between them."""

from __future__ import annotations

import json
from typing import Any

import click

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_directory = click.argument("directory")


@click.group()
def cache() -> None:
    """Look at a teacher cache, mend it, copy it. DIRECTORY is a folder or an address such as s3://bucket/cache."""


def _address(directory: str) -> Any:
    from pathlib import Path

    from llmdistill.errors import ConfigError

    if "://" in directory:
        return directory
    path = Path(directory)
    # A run's folder is what people have at hand.
    path = path / "cache" if not (path / "shards").is_dir() and (path / "cache").is_dir() else path
    if not path.is_dir():
        raise ConfigError("there is no such folder", where=directory)
    return path


def _print(as_json: bool, document: dict[str, Any], lines: list[str]) -> None:
    click.echo(json.dumps(document, indent=1) if as_json else "\n".join(lines))


@cache.command()
@_directory
@_as_json
def verify(directory: str, as_json: bool) -> None:
    """Read every byte and name everything that is wrong. Status 3 where something is damaged."""
    from dataclasses import asdict

    from llmdistill.cache.verify import verify as run
    from llmdistill.errors import DataError

    found = run(_address(directory))
    lines = [f"{'damaged' if f.damage else 'note'}: {f.file}: {f.what}" for f in found.findings]
    lines.append(f"{found.shards} shards, {found.records} records, {found.rows} rows, {found.bytes} bytes")
    document = {"ok": not found.damaged, "damaged": found.damaged, **asdict(found)}
    _print(as_json, document, lines)
    if found.damaged:
        raise DataError(
            f"{len(found.damaged)} files are damaged: {', '.join(found.damaged[:3])}{' …' * (len(found.damaged) > 3)}",
            where=directory,
            fix=f"run `llmdistill cache repair {directory}`, then `llmdistill generate`",
        )


@cache.command()
@_directory
@_as_json
def stats(directory: str, as_json: bool) -> None:
    """Counts, bytes per token, captured mass, entropy, lengths, finish reasons, sources, teacher."""
    from llmdistill.cache.stats import cache_stats

    found = cache_stats(_address(directory))
    lines = []
    for name, value in found.items():
        if name == "teachers":
            lines.append("teachers:")
            lines += [f"  {_made_by(one)}" for one in value]
        elif isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {key:<18} {_number(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name:<20} {_number(value)}")
    _print(as_json, found, lines)


def _made_by(one: dict[str, Any]) -> str:
    counts = ", ".join(f"{one[count]} {count}" for count in ("records", "tokens", "rows"))
    sampling = "".join(f", {key} {value}" for key, value in one["sampling"].items())
    return f"{one['name'] or '(not named)':<18} {counts}; {one['teacher']}, {one['engine']}, {one['dtype']}{sampling}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cache.command()
@_directory
@click.argument("record", default="0")
@click.option("--top", default=5, show_default=True, help="Entries to show of each row.")
@click.option("--tokenizer", type=click.Path(exists=True), help="Model folder whose tokenizer turns ids into text.")
@_as_json
def show(directory: str, record: str, top: int, tokenizer: str | None, as_json: bool) -> None:
    """Show one record. RECORD is its number or the first 8 or more digits of its key."""
    from llmdistill.cache.reader import CacheReader
    from llmdistill.cache.show import describe_record, find_record, record_text

    decode = None
    if tokenizer is not None:
        from llmdistill.prompts.render import load_tokenizer

        loaded = load_tokenizer(_path(tokenizer))
        decode = lambda ids: str(loaded.decode(ids))  # noqa: E731
    reader = CacheReader(_address(directory))
    said = describe_record(reader, find_record(reader, record), top, decode)
    _print(as_json, said, [record_text(said)])


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


@cache.command()
@_directory
@_as_json
def repair(directory: str, as_json: bool) -> None:
    """Set damaged shards aside, make the index anew, and say which records `generate` has to make."""
    from dataclasses import asdict

    from llmdistill.cache.repair import repair as run

    done = run(_address(directory))
    lines = [f"set aside: {name}: {what}" for name, what in done.set_aside.items()]
    lines += [f"records not known by key: those of {name}" for name in done.unknown]
    lines += [f"missing: {key}" for key in done.missing]
    lines.append(f"{done.records} records are left, {len(done.missing)} known to be missing")
    if done.set_aside:
        lines.append("`llmdistill generate CONFIG` makes the missing ones, and only those")
    _print(as_json, asdict(done), lines)


@cache.command()
@_directory
@click.argument("sources", nargs=-1, required=True)
@click.option("--compression", type=click.Choice(["none", "zstd"]), default="none", show_default=True)
@click.option("--shard-mib", default=64, show_default=True, type=click.IntRange(min=1), help="Size of the new shards.")
@_as_json
def merge(directory: str, sources: tuple[str, ...], compression: Any, shard_mib: int, as_json: bool) -> None:
    """Copy the records of SOURCES into DIRECTORY, each once; an interrupted merge continues."""
    from dataclasses import asdict

    from llmdistill.cache.merge import merge as run

    destination = directory if "://" in directory else _path(directory)
    done = run(destination, [_address(source) for source in sources], compression, shard_mib << 20)
    lines = [f"{done.added} records added in {done.shards} shards, {done.already} were there already"]
    _print(as_json, asdict(done), lines)


@cache.command()
@click.argument("left")
@click.argument("right")
@_as_json
def diff(left: str, right: str, as_json: bool) -> None:
    """Compare two caches: capture, records on either side, answers that differ."""
    from llmdistill.cache.diff import diff as run

    found = run(_address(left), _address(right))
    lines = [f"{name}: {a!r} | {b!r}" for name, (a, b) in found["spec"].items()]
    lines += [f"{name}: {found[name]}" for name in ("common", "changed", "only_left", "only_right")]
    lines.append("equal" if found["equal"] else "different")
    _print(as_json, found, lines)
