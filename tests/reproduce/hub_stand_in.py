"""A server of this machine in the hub's place: lists of files and files by ranges, as its documentation has them.

It was written from that documentation and is not the hub. Faults are given one by one, each for one answer.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], bool]  # answers in place of the server, and says whether it did


@dataclass
class Stand:
    """What lies there: (repository, revision) -> path -> content; the asked addresses with their ranges."""

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    claims: dict[str, str] = field(default_factory=dict)  # sha256 told of a path, in place of the true one
    endpoint: str = ""

    def fetched(self, path: str) -> int:
        """How many bytes of a file were asked for."""
        total = 0
        for address, asked in self.asked:
            if address.endswith(path) and asked:
                first, last = asked.removeprefix("bytes=").split("-")
                total += int(last) + 1 - int(first)
        return total


class Handler(BaseHTTPRequestHandler):
    stand: Stand

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.stand.asked.append((unquote(path), self.headers.get("Range")))
        parts = path.split("/")
        if parts[1] == "api":  # /api/datasets/owner/name/tree/revision[/folder]
            self._tree(f"{parts[3]}/{parts[4]}", unquote(parts[6]), unquote("/".join(parts[7:])))
        else:  # /datasets/owner/name/resolve/revision/path; a model's begins with its owner
            parts = parts[2:] if parts[1] == "datasets" else parts[1:]
            self._file(f"{parts[0]}/{parts[1]}", unquote(parts[3]), unquote("/".join(parts[4:])))

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _lost(self, code: str) -> None:
        self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def _tree(self, repository: str, revision: str, folder: str) -> None:
        if not any(known == repository for known, _ in self.stand.files):
            return self._lost("RepoNotFound")
        if (repository, revision) not in self.stand.files:
            return self._lost("RevisionNotFound")
        there = self.stand.files[repository, revision]
        chosen = {path: content for path, content in there.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not chosen:
            return self._lost("EntryNotFound")
        told: list[dict[str, Any]] = [{"type": "directory", "path": folder or "data", "oid": "0"}]
        for path, content in chosen.items():
            digest = self.stand.claims.get(path, hashlib.sha256(content).hexdigest())
            lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
            told.append({"type": "file", "path": path, "oid": "1", "size": len(content), "lfs": lfs})
        return self.answer(200, json.dumps(told).encode(), Content_Type="application/json")

    def _file(self, repository: str, revision: str, path: str) -> None:
        content = self.stand.files[repository, revision][path]
        if self.stand.faults and self.stand.faults.pop(0)(self, content):
            return None
        asked = self.headers.get("Range")
        if asked is None:
            return self.answer(200, content)
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        where = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], Content_Range=where)


@contextmanager
def serving() -> Iterator[Stand]:
    """The stand-in, at `endpoint`; while it stands huggingface_hub may ask, which tests else may not."""
    from huggingface_hub import constants

    stand, offline = Stand(), constants.HF_HUB_OFFLINE
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stand": stand}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand.endpoint = f"http://127.0.0.1:{server.server_port}"
    constants.HF_HUB_OFFLINE = False
    try:
        yield stand
    finally:
        constants.HF_HUB_OFFLINE = offline
        server.shutdown()
        server.server_close()
        thread.join()


def busy(handler: Handler, content: bytes) -> bool:
    """Too many requests."""
    handler.answer(429, b"slow down", Retry_After="7")
    return True


def fine(handler: Handler, content: bytes) -> bool:
    """No fault: the answer before one that has a fault."""
    return False


def without_ranges(handler: Handler, content: bytes) -> bool:
    """The whole file, whatever part was asked for."""
    handler.answer(200, content)
    return True


def a_page(handler: Handler, content: bytes) -> bool:
    """A page for a person (a portal's, a maintenance notice) in place of the file."""
    handler.answer(200, b"<html>Please log in</html>", Content_Type="text/html")
    return True


def short(handler: Handler, content: bytes) -> bool:
    """Fewer bytes than were asked for."""
    handler.answer(206, content[:10])
    return True


def broken(handler: Handler, content: bytes) -> bool:
    """The connection ends within the answer."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:5])
    handler.close_connection = True
    return True
