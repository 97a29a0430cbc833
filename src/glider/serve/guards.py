"""Checks before every route: host and origin, size and form of a body, and the request's id."""

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from anyio import fail_after
from starlette.exceptions import HTTPException

from glider.serve.errors import ApiError, shutting_down
from glider.serve.paths import as_route
from glider.serve.settings import ServeSettings

if TYPE_CHECKING:
    from glider.serve.service import Service

_OPEN = frozenset({"/", "/health", "/ready", "/version", "/load", "/openapi.json"})  # paths that need no key
_ONCE = (b"host", b"authorization", b"content-length", b"content-type")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LONGEST_NUMBER = 18  # digits of a Content-Length
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SAFE = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}


class Guards:
    """An ASGI application around another."""

    def __init__(self, app: Any, service: "Service"):
        self._app, self._service, settings = app, service, service.settings
        self._settings = settings
        self._hosts: Collection[str] | None = settings.allowed_host or None
        if self._hosts is None and settings.loopback:
            self._hosts = _LOOPBACK | {settings.host}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = as_route(scope)
        headers = dict(scope["headers"])
        header = headers.get(b"x-request-id", b"")
        scope.setdefault("state", {})["request_id"] = header.decode() if _REQUEST_ID.fullmatch(header) else _new_id()
        sent = _Sent(send, scope["state"]["request_id"])
        body = _Body(receive, self._settings)
        try:
            self._check(scope, headers)
            await self._app(scope, body, sent)
        except ApiError as fault:
            if sent.started:
                raise
            self._service.metrics.refused(fault)
            await fault.response(scope, receive, sent)
        except asyncio.CancelledError:
            if not self._service.places.closed:
                raise
            if not sent.started:  # whoever has a part of an answer is told by the connection, which breaks
                await shutting_down().response(scope, receive, sent)

    def _check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        names = [name for name, _ in scope["headers"]]
        if b"host" not in names or any(names.count(name) > 1 for name in _ONCE):
            message = "one Host, and one Authorization, Content-Length and Content-Type at most"
            raise ApiError(400, message, code="invalid_headers")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise ApiError(400, "Content-Length or Transfer-Encoding", code="invalid_headers")
        host = headers[b"host"].decode("latin-1").lower()
        if self._hosts is not None and _name(host) not in self._hosts:
            message = f"this server is not asked by the name {_name(host)[:100]!r}; see --allowed-host"
            raise ApiError(403, message, code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().split("://")[-1] != host:
            raise ApiError(403, "pages of other origins may not ask this server", code="origin_not_allowed")
        if headers.get(b"sec-fetch-site") == b"cross-site" and scope["method"] != "GET":
            raise ApiError(403, "pages of other origins may not ask this server", code="origin_not_allowed")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _LONGEST_NUMBER:
            raise ApiError(400, "a Content-Length that is a number", code="invalid_headers")
        if int(length) > self._settings.max_body:
            raise _too_large(self._settings)
        if scope["path"] not in _OPEN:  # before a stranger's body is read
            self._service.keys.of(headers.get(b"authorization", b"").decode("latin-1"))


class _Body:
    """Receives a body that is neither too large nor too slow."""

    def __init__(self, receive: Any, settings: ServeSettings):
        self._receive, self._settings = receive, settings
        self._size, self._whole = 0, False
        self._until: float | None = None

    async def __call__(self) -> Any:
        if self._whole:
            return await self._receive()  # waits for the client to hang up
        try:
            self._until = self._until or time.monotonic() + self._settings.body_timeout
            with fail_after(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive in time") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._size > self._settings.max_body:
                raise HTTPException(413, _too_large(self._settings).message)
        return message


class _Sent:
    """Adds the headers that every answer has."""

    def __init__(self, send: Any, request_id: str):
        self._send, self._id, self.started = send, request_id, False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            present = {name.lower() for name, _ in message["headers"]}
            more = [(name, value) for name, value in _SAFE.items() if name not in present]
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self._id.encode()), *more]}
        await self._send(message)


def _new_id() -> str:
    return secrets.token_hex(12)


def _name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _too_large(settings: ServeSettings) -> ApiError:
    return ApiError(413, f"a body of at most {settings.max_body} bytes", code="body_too_large")
