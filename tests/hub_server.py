"""A Hub on loopback: create, preupload, commit, revision, tree and resolve, over real HTTP, with faults on demand.

As much of the protocol as huggingface_hub 2.4 asks for. Point `HF_ENDPOINT` at its `url`.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "theTestsOwnToken" * 2


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)  # (hash, name -> content)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((digest, files))
        return digest


class HubServer:
    """`repos` is what has been published: {"models/USER/NAME": Repo}. `fault` sees each request and may spoil it.

    Args:
        user: whom the token belongs to; may write to repositories of that name only.
    """

    def __init__(self, user: str = "someone"):
        self.user, self.repos, self.requests = user, {}, []
        self.fault: Callable[[str, str], int | str | None] = lambda method, path: None  # a status, or "cut"

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, name: str, private: bool = False, files: dict[str, bytes] | None = None, kind: str = "models") -> Repo:
        repo = self.repos[f"{kind}/{name}"] = Repo(private)
        repo.commit({".gitattributes": b"", **(files or {})})
        return repo


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        hub = self.server_hub
        hub.requests.append((self.command, path))
        fault = hub.fault(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":
            self.rfile.read(length // 2)
            # Reset, and not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.close()
            return
        body = self.rfile.read(length)
        if fault is not None:
            return self._json({"error": f"fault {fault}"}, fault)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, path):
                return method(self, body, known, *found.groups())
        return self._json({"error": f"no such page: {path}"}, 404)

    # Each: (body, whether the token is known, what the path names)

    def _whoami(self, body: bytes, known: bool) -> None:
        self._json({"name": self.server_hub.user, "type": "user", "auth": {}}, 200 if known else 401)

    def _create(self, body: bytes, known: bool) -> None:
        asked, hub = json.loads(body), self.server_hub
        if not known:
            return self._json({"error": "Invalid credentials"}, 401)
        owner = asked.get("organization") or hub.user
        if owner != hub.user:
            return self._json({"error": f"You don't have the rights to create a model under the namespace {owner}"}, 403)
        kind, name = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
        if f"{kind}/{name}" in hub.repos:
            return self._json({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        hub.create(name, private, kind=kind)
        return self._json({"url": f"{hub.url}/{name}"})

    def _validate(self, body: bytes, known: bool) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, known: bool, kind: str, name: str) -> None:
        if self._repo(kind, name, known, writing=True):
            asked = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})

    def _commit(self, body: bytes, known: bool, kind: str, name: str) -> None:
        repo = self._repo(kind, name, known, writing=True)
        if repo is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repo.commits[-1][0]):
                return self._json({"error": "A commit has happened since."}, 412)
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(files)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.server_hub.url}/{name}/commit/{commit}"})

    def _info(self, body: bytes, known: bool, kind: str, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(kind, name, known)) and (found := self._at(repo, revision)):
            siblings = [{"rfilename": file} for file in found[1]]
            self._json({"id": name, "sha": found[0], "private": repo.private, "siblings": siblings, "tags": []})

    def _tree(self, body: bytes, known: bool, kind: str, name: str, revision: str) -> None:
        if (repo := self._repo(kind, name, known)) and (found := self._at(repo, revision)):
            self._json([{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in found[1].items()])

    def _resolve(self, body: bytes, known: bool, name: str, revision: str, file: str) -> None:
        repo = self._repo("models", name, known)
        if repo is None or (found := self._at(repo, revision)) is None:
            return
        if file not in found[1]:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = found[1][file]
        self._send(content, 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": found[0], "Content-Type": "text/plain"})

    def _repo(self, kind: str, name: str, known: bool, writing: bool = False) -> Repo | None:
        repo = self.server_hub.repos.get(f"{kind}/{name}")
        if writing and not known:
            self._json({"error": "Invalid credentials"}, 401)
        elif repo is None or (repo.private and not known):
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            return repo
        return None

    def _at(self, repo: Repo, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        for commit in reversed(repo.commits):
            if revision in (None, "main", commit[0]):
                return commit
        self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _json(self, what, status: int = 200, headers: dict | None = None) -> None:
        self._send(json.dumps(what).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if status >= 400:
            self.send_header("X-Error-Message", json.loads(content)["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"/api/whoami-v2", _Handler._whoami),
    (r"/api/repos/create", _Handler._create),
    (r"/api/validate-yaml", _Handler._validate),
    (rf"/api/(models|spaces)/{_NAME}/preupload/main", _Handler._preupload),
    (rf"/api/(models|spaces)/{_NAME}/commit/main", _Handler._commit),
    (rf"/api/(models|spaces)/{_NAME}/revision/([\w.-]+)", _Handler._info),
    (rf"/api/(models|spaces)/{_NAME}/tree/([\w.-]+)", _Handler._tree),
    (rf"/api/(models|spaces)/{_NAME}", _Handler._info),
    (rf"/{_NAME}/resolve/([\w.-]+)/(.+)", _Handler._resolve),
]
