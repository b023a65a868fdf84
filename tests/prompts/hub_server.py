"""A server on loopback that answers the part of the hub's protocol with which `datasets` finds and streams files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@contextlib.contextmanager
def serve(
    files: dict[str, bytes], repository: str = "owner/name", times: dict[str, list[float]] | None = None
) -> Iterator[str]:
    """The address of a hub that holds one data set with these files, all in its root folder.

    Args:
        files: name → contents.
        repository: the data set's id.
        times: gets the times of requests for each revision; the first is told to come again after a second.
    """

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if times is not None and path.startswith(f"/api/datasets/{repository}/revision/"):
                asked = times.setdefault(path, [])
                asked.append(time.monotonic())
                if len(asked) == 1:
                    self._reply(429, b"too many requests", {"Retry-After": "1"})
                    return
            api = f"/api/datasets/{repository}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in files]
                self._json({"id": repository, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
            elif path == f"{api}/tree/{COMMIT}":
                self._json(
                    [{"type": "file", "path": n, "size": len(data), "oid": _oid(data)} for n, data in files.items()]
                )
            elif (name := path.rpartition("/")[2]) in files and path.startswith(f"/datasets/{repository}/resolve/"):
                self._file(files[name])
            else:
                code = "EntryNotFound" if repository in path else "RepoNotFound"
                self._reply(404, b"", {"X-Error-Code": code})

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _file(self, data: bytes) -> None:
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range")
            if wanted is None:
                self._reply(200, data, headers)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._reply(206, part, headers)

        def _json(self, value: object) -> None:
            self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
