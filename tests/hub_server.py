"""A stand-in for the Hugging Face Hub over real HTTP, written from its documented behaviour: model info, tree, resolve with
redirects of large files to a second address (its CDN), ETags, ranged requests, tokens, refusals; and faults on demand.

Documented at huggingface.co/docs/hub/api and in what huggingface_hub asks of it. It knows no Xet: files come over plain HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096


def commit(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repository:
    """`files` at each commit, `refs` by name; `access`: 'open', 'gated' or 'private'."""

    files: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    access: str = "open"


@dataclass
class Hub:
    """`faults`: file -> what goes wrong with the next requests of its bytes, one each: an HTTP status, 'cut N' (closed after N
    bytes), 'wrong' (one byte is another), 'pointer' (the LFS pointer in place of the bytes), 'slow N' (N bytes a second from there on)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_averysecrettokenofatest"
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    status: int | None = None
    url: str = ""
    cdn: str = ""

    def add(
        self, name: str, files: dict[str, bytes], revision: str = "main", access: str = "open"
    ) -> str:
        """Put files under datasets/owner/name or owner/name and give their commit."""
        sha = commit(
            f"{name}{revision}{sorted((path, len(data)) for path, data in files.items())}{time.time_ns()}"
        )
        held = self.repositories.setdefault(name, Repository({}, {}, access))
        held.files[sha] = files
        held.refs[revision] = sha
        return sha

    def asked(self, part: str) -> list[tuple[str, str, dict[str, str]]]:
        return [request for request in self.requests if part in request[1]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    told = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest(),
    }
    return told | (
        {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}}
        if len(data) >= LARGE
        else {}
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if (
            path == "/api/agent-harnesses"
        ):  # asked once a day, for telemetry; no business of the tests
            return self.answer(200, b'{"standardEnvVars": [], "harnesses": {}}')
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if self.hub.status:
            return self.answer(self.hub.status, b"{}")
        if path.startswith("/cdn/"):
            _, _, name, sha, file = path.split("/", 4)
            return self.bytes_of(
                file, self.hub.repositories[name.replace("--", "/")].files[sha][file]
            )
        found = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
        )
        if found:
            kind, name, what, revision = found.groups()
            held = self.permitted(("datasets/" if kind == "datasets" else "") + name, data=False)
            if held is None:
                return None
            sha = held.refs.get(revision or "main", revision or "")
            if sha not in held.files:
                return self.refuse(404, "RevisionNotFound")
            if what == "tree":
                return self.answer(
                    200,
                    json.dumps(
                        [entry(path, data) for path, data in held.files[sha].items()]
                    ).encode(),
                )
            return self.answer(
                200,
                json.dumps(
                    {
                        "_id": "1",
                        "id": name,
                        "sha": sha,
                        "siblings": [],
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                        "private": False,
                    }
                ).encode(),
            )
        found = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            return self.refuse(404, "RepoNotFound")
        name, revision, file = found.groups()
        held = self.permitted(name, data=True)
        if held is None:
            return None
        sha = held.refs.get(revision, revision)
        if sha not in held.files:
            return self.refuse(404, "RevisionNotFound")
        if file not in held.files[sha]:
            return self.refuse(404, "EntryNotFound")
        data = held.files[sha][file]
        if len(data) < LARGE:
            return self.bytes_of(
                file, data, {"X-Repo-Commit": sha, "ETag": f'"{entry(file, data)["oid"]}"'}
            )
        where = f"{self.hub.cdn}/cdn/{name.replace('/', '--')}/{sha}/{file}"
        return self.answer(
            302,
            b"",
            {
                "Location": where,
                "X-Repo-Commit": sha,
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
            },
        )

    def permitted(self, name: str, data: bool) -> Repository | None:
        """The repository, if this caller may read it; the listing of a gated one is open to all, its files are not."""
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        held = self.hub.repositories.get(name)
        if bearer and bearer not in (self.hub.token, "no-access"):
            self.answer(
                401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        elif held is None or (held.access == "private" and bearer != self.hub.token):
            self.refuse(404 if bearer else 401, "RepoNotFound")
        elif held.access == "gated" and data and bearer != self.hub.token:
            self.refuse(403 if bearer else 401, "GatedRepo")
        else:
            return held
        return None

    def refuse(self, status: int, code: str) -> None:
        self.answer(
            status,
            json.dumps({"error": code}).encode(),
            {"X-Error-Code": code, "X-Error-Message": code},
        )

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def bytes_of(self, file: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """The bytes, or those that a Range asks for, with the next fault of this file."""
        fault = (
            self.hub.faults[file].pop(0)
            if self.command == "GET" and self.hub.faults.get(file)
            else ""
        )
        if fault.isdigit():
            return self.answer(int(fault), b"{}")
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == "pointer":
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n".encode()
        start = (
            int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"]).group(1))
            if "Range" in self.headers
            else 0
        )  # type: ignore[union-attr]
        more = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        body = data[start:]
        self.send_response(206 if start else 200)
        for name, value in (
            {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"} | more | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        kind, _, number = fault.partition(" ")
        if kind == "cut":
            self.wfile.write(body[: int(number)])
            self.close_connection = True
            self.connection.close()
        elif kind == "slow":
            for place in range(0, len(body), int(number) // 10):
                try:
                    self.wfile.write(body[place : place + int(number) // 10])
                    self.wfile.flush()
                except OSError:
                    return None
                time.sleep(0.1)
        else:
            with contextlib.suppress(OSError):  # the client was killed
                self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub and its CDN on two ports of this machine."""
    hub = Hub()
    handler = type("Handler", (Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
