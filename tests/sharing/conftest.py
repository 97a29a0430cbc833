"""A stand-in for the model hub: the few endpoints that the installed client calls, on the loopback interface."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """Files by branch, and every commit by its sha."""

    repo_id: str
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, changes: dict[str, bytes]) -> str:
        self.branches[branch] = files = {**self.branches[branch], **changes}
        digests = {path: hashlib.sha1(content).hexdigest() for path, content in sorted(files.items())}
        sha = hashlib.sha1(json.dumps(digests).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            revision = self.commit(revision, {})
        return (revision, self.commits[revision]) if revision in self.commits else None


@dataclass
class HubStandIn:
    """What the stand-in holds and what it was asked; `failures` maps a part of a path to `(status, headers)`."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)  # that it tells in place of the true ones

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_id].branches[branch]


class _Answers(BaseHTTPRequestHandler):
    """One request to the stand-in."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    hub: HubStandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, value: Any = b"", status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _run(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.calls.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for part, (status, headers) in self.hub.failures.items():
            if part in path:
                return self._answer({"error": "by order of the test"}, status, **headers)
        if self.command in ("POST", "PUT") and "/lfs-object/" not in path and not self._authorised():
            return self._answer({"error": "Invalid username or password."}, 401)
        parts = path.strip("/").split("/")
        if path.startswith("/lfs-object/"):
            self.hub.objects[parts[1]] = body
            assert hashlib.sha256(body).hexdigest() == parts[1]
            return self._answer()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repo_id = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._authorised()):
            return self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self._repository(repository, parts[4:] if parts[0] == "api" else parts[2:], body)

    do_GET = do_HEAD = do_POST = do_PUT = _run  # noqa: N815

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        if repo_id in self.hub.repositories:
            return self._answer({"url": f"{self.hub.endpoint}/{repo_id}"}, 409)
        self.hub.repositories[repo_id] = Repository(repo_id, private=wanted.get("visibility") == "private")
        return self._answer({"url": f"{self.hub.endpoint}/{repo_id}"})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**thing, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs-object/{thing['oid']}"}}}
            for thing in wanted["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _repository(self, repository: Repository, rest: list[str], body: bytes) -> None:
        what, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        if what == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, dict(repository.branches["main"]))
            return self._answer(status=409 if known else 200)
        found = repository.resolve(revision)
        if found is None:
            return self._answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        sha, files = found
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in asked}
            listed = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self._answer({"files": listed})
        if what == "commit":
            oid = repository.commit(revision, self._changes(body))
            url = f"{self.hub.endpoint}/{repository.repo_id}/commit/{oid}"
            return self._answer({"success": True, "commitOid": oid, "commitUrl": url})
        if what == "tree":
            return self._answer([self._entry(path, content) for path, content in files.items()])
        if what == "revision":
            return self._answer({"id": "of/the-test", "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        path = "/".join(rest[2:])
        if path not in files:
            return self._answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        return self._answer(files[path], X_Repo_Commit=sha, ETag=f'"{_sha1(files[path])}"')

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.hub.sizes.get(path, len(content))
        return {"type": "file", "path": path, "size": size, "oid": _sha1(content)}

    def _changes(self, body: bytes) -> dict[str, bytes]:
        changes = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
        return changes


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running stand-in that the client of this process talks to, logged in."""
    stand_in = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": stand_in}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
    downloads = f"{stand_in.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", downloads)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the older upload protocol
    huggingface_hub.close_session()
    yield stand_in
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with standing_in(monkeypatch) as stand_in:
        yield stand_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pools here are of bases in directories, which pushing warns of."""
    told = pytest.mark.filterwarnings("ignore:the files name the directory of the base model")
    for item in items:
        if "tests/sharing/" in item.path.as_posix():
            item.add_marker(told)
