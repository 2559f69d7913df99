"""A hub of one model: as a directory that looks like the hub's cache, and as a server that speaks its language."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(cache: Path, name: str, model: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Copy a model directory to where the hub's cache has a snapshot, and return that."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    shutil.copytree(model, snapshot)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    return snapshot


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.model = name, model
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def _answer(self, body: bool) -> None:
        path, name = unquote(urlsplit(self.path).path), self.server.name
        self.server.asked.append(f"{self.command} {path}")
        files = {str(f.relative_to(self.server.model)): f for f in self.server.model.rglob("*") if f.is_file()}
        for revision in ("main", COMMIT):
            if path == f"/api/models/{name}/revision/{revision}":
                siblings = [{"rfilename": file} for file in files]
                return self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), body)
            if path == f"/api/models/{name}/tree/{revision}":
                rows = [
                    {"type": "file", "path": file, "size": at.stat().st_size, "oid": _etag(at)}
                    for file, at in files.items()
                ]
                return self._send(json.dumps(rows).encode(), body)
            if path.startswith(start := f"/{name}/resolve/{revision}/") and path.removeprefix(start) in files:
                file = files[path.removeprefix(start)]
                return self._send(file.read_bytes(), body, {"ETag": f'"{_etag(file)}"'})
        code = "RevisionNotFound" if path.startswith(f"/api/models/{name}/") else "RepoNotFound"
        return self._send(b"{}", body, {"X-Error-Code": code}, 404)

    def _send(self, content: bytes, body: bool, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(name: str, model: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a model directory under a name on the hub; gives the endpoint, and what has been asked."""
    server = _Server(name, model)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
