"""Uploading to a hub, here a small one of our own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from llmdistill.errors import ConfigError
from llmdistill.export.hub import push


class Hub(BaseHTTPRequestHandler):
    """Answers what an upload of small files asks for, and keeps what it gets."""

    files: dict[str, bytes]
    created: list[dict]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer right":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self._answer(200, {"url": f"{self.server.address}/me/student", "id": "me/student"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self._answer(200, {"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                200, {"commitUrl": f"{self.server.address}/me/student/commit/1", "commitOid": "1", "success": True}
            )
        return self._answer(200, {})

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer right":
            return self._answer(401, {"error": "Invalid credentials"})
        return self._answer(200, {"id": "me/student", "sha": "0", "siblings": []})

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_folder_arrives_whole_in_a_private_repository(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "right")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    address = push(tmp_path, "me/student")
    assert "me/student" in address
    assert hub.files == {"config.json": b"{}", "README.md": b"card"}
    assert hub.created[0]["visibility"] == "private"


def test_a_refusal_says_what_to_do(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConfigError, match=r"the hub does not take the student.*\n.*hf auth login"):
        push(tmp_path, "me/student")
    with pytest.raises(ConfigError, match="does not take"):
        push(tmp_path, "not a name")
