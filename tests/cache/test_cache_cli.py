from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmdistill.cli.main import call, cli


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = call(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False), debug=False)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("command", ["verify", "stats", "show", "repair"])
def test_json_is_one_document(small_cache: Callable[..., Any], capsys: Any, command: str) -> None:
    cache, _, _ = small_cache()
    status, out, err = run(capsys, "cache", command, cache, "--json")
    assert (status, err) == (0, "")
    assert isinstance(json.loads(out), dict)
    assert run(capsys, "cache", command, cache)[0] == 0


def test_damage_has_status_3_and_names_the_file(small_cache: Callable[..., Any], capsys: Any) -> None:
    cache, _, _ = small_cache()
    victim = sorted((cache / "shards").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    status, out, err = run(capsys, "cache", "verify", cache, "--json")
    assert status == 3
    assert json.loads(out)["damaged"] == [victim.name]
    assert victim.name in err
    assert "cache repair" in err
    status, out, _ = run(capsys, "cache", "repair", cache)
    assert status == 0
    assert f"set aside: {victim.name}: expected" in out
    assert run(capsys, "cache", "verify", cache)[0] == 0


def test_show_names_a_record_by_number_or_key(small_cache: Callable[..., Any], capsys: Any) -> None:
    cache, records, _ = small_cache()
    key = min(record.key for record in records).hex()
    by_number, by_key = (
        json.loads(run(capsys, "cache", "show", cache, which, "--json")[1]) for which in ("0", key[:9])
    )
    assert by_number == by_key
    assert by_number["key"] == key
    said = next(record for record in records if record.key.hex() == key)
    assert [row["row"] for row in by_number["rows"]] == [i - 1 for i, flag in enumerate(said.supervised_N) if flag]
    for which in ("99", "zz", "00000000"):
        assert run(capsys, "cache", "show", cache, which)[0] == 2


def test_merge_and_diff(small_cache: Callable[..., Any], capsys: Any, tmp_path: Path) -> None:
    cache, _, _ = small_cache()
    assert run(capsys, "cache", "merge", tmp_path / "new", cache, "--compression", "zstd")[0] == 0
    status, out, _ = run(capsys, "cache", "diff", cache, tmp_path / "new", "--json")
    assert status == 0
    assert json.loads(out)["equal"]


def test_a_folder_that_is_not_there_is_a_wrong_call(capsys: Any, tmp_path: Path) -> None:
    status, _, err = run(capsys, "cache", "stats", tmp_path / "nothing")
    assert status == 2
    assert "no such folder" in err


def test_a_run_folder_stands_for_its_cache(small_cache: Callable[..., Any], capsys: Any) -> None:
    cache, _, _ = small_cache()
    assert run(capsys, "cache", "stats", cache.parent)[0] == 0
