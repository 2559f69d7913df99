"""A hub of one model: as a directory that looks like the hub's cache, and as a server that speaks its language; and a
hub that takes models.
"""

from __future__ import annotations

import base64
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

import pytest

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
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(patch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let huggingface_hub, which read its environment when it was imported, take another hub and another cache."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    patch.setattr(f"{constants}.ENDPOINT", endpoint)
    files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", files)


class Receiver(ThreadingHTTPServer):
    """A hub of `somebody`, who is in the organisation `lab`, with the token `secret`.

    Attributes:
        repositories: by name, whether it is private, and its files.
        broken: how many commits fail yet.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiving)
        self.repositories: dict[str, tuple[bool, dict[str, bytes]]] = {}
        self.broken = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Receiving(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("authorization") != "Bearer secret":
            return self._send({"error": "Invalid username or password."}, 401)
        if path == "/api/whoami-v2":
            return self._send({"name": "somebody", "orgs": [{"name": "lab"}]})
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if name not in self.server.repositories:
            return self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        private, files = self.server.repositories[name]
        if path.startswith("/api/"):
            siblings = [{"rfilename": file} for file in files]
            return self._send({"id": name, "sha": COMMIT, "private": private, "siblings": siblings})
        content = files[path.removeprefix(f"/{name}/resolve/main/")]
        return self._send(content, headers={"ETag": '"1"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            private = given.get("private", given.get("visibility") == "private")
            there = name in self.server.repositories
            self.server.repositories.setdefault(name, (private, {".gitattributes": b""}))
            return self._send({"url": f"{self.server.endpoint}/{name}"}, 409 if there else 200)
        name, what = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._send({"files": [{**file, "shouldIgnore": False} for file in files]})
        if self.server.broken:
            self.server.broken -= 1
            return self._send({"error": "out of order"}, 403)
        rows = [json.loads(line) for line in body.splitlines()]
        files = [row["value"] for row in rows if row["key"] == "file"]
        added = {file["path"]: base64.b64decode(file["content"]) for file in files}
        self.server.repositories[name][1].update(added)
        url = f"{self.server.endpoint}/{name}/commit/{COMMIT}"
        return self._send({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Serve a hub that takes models."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
