"""The page in a real browser, and in two widths."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from llmdistill.observe.report.page import write_comparison, write_report
from tests.observe.conftest import MakeRun
from tests.observe.test_report import require_figures_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def browse(page: Path, folder: Path, *options: str) -> tuple[str, str]:
    """Open a page; returns the resulting document and what the browser logged."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", f"--log-net-log={folder / 'net.json'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", *options, f"file://{page}",
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout, answer.stderr


def requests_of_page(folder: Path) -> set[str]:
    """Addresses that the page asked for. The browser asks for things of its own too, which have no origin."""
    events = [event.get("params", {}) for event in json.loads((folder / "net.json").read_text())["events"]]
    asked = {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}
    return {address for address in asked if not address.startswith(("file:", "data:"))}


def test_no_console_message_no_request_and_the_right_figures(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    page = write_report(run)
    document, log = browse(page, tmp_path, "--dump-dom")
    require_figures_of(document, json.loads(run.evaluation.read_text()))
    assert "CONSOLE" not in log
    assert requests_of_page(tmp_path) == set()


def test_the_browser_check_sees_a_request_where_there_is_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('seen')</script><img src='http://example.invalid/pixel.png'>")
    _, log = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" in log
    assert requests_of_page(tmp_path) == {"http://example.invalid/pixel.png"}


A4 = 673
"""Pixels between the margins of a sheet."""


@pytest.mark.parametrize("width", [390, 1280, A4])
@pytest.mark.parametrize("runs", [1, 6])
def test_nothing_is_wider_than_the_window_or_the_sheet(
    make_run: MakeRun, tmp_path: Path, width: int, runs: int
) -> None:
    """A script that writes the page's own width into its title; the page itself holds none."""
    folders = [make_run(name=f"a-run-with-a-long-name-{number}") for number in range(runs)]
    page = tmp_path / "page.html"
    if runs == 1:
        write_report(folders[0], page)
    else:
        write_comparison(folders, page)
    probe = tmp_path / "probe.html"
    text = page.read_text().replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    if width == A4:
        assert "@media print" in text
        text = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    script = (
        "<script>document.title = Math.max(document.documentElement.scrollWidth, ...Array.from("
        "document.querySelectorAll('.results'), e => e.scrollWidth)) + ' of ' + innerWidth</script>"
    )
    # Windows narrower than 500 pixels exist only as frames.
    probe.write_text(text.replace("</body>", f"{script}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe id=f src='probe.html' style='width:{width}px;height:900px;border:0'></iframe><script>"
        "f.onload = () => document.title = f.contentDocument.title</script>"
    )
    document, _ = browse(frame, tmp_path, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,1000")
    title = document.split("<title>")[1].split("</title>")[0]
    scroll, inner = map(int, title.split(" of "))
    assert inner == width
    assert scroll <= width
