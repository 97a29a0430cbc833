"""An OpenAI-compatible endpoint: requests that end in time, with bounded replies and bounded retries."""

import math
import os
import random
import threading
import time
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import Field

from glider.config import Config
from glider.errors import ConfigError, EndpointError, MissingDependency
from glider.files.json_text import parse_json
from glider.instructions.bounded_client import BoundedClient, TooLate, TooMuch
from glider.printable import printable, struck, visible
from glider.progress import Tick

Service = Literal["chat", "embeddings"]
_PASSING = frozenset({408, 409, 429})
_BATCH_WIDE = frozenset({401, 403, 404, 429})
_MESSAGES = ("message", "detail", "error", "msg", "error_msg")
_NAMED = {  # errors by name
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "resource_exhausted", "too_many_requests"), 429),
    **dict.fromkeys(("overloaded_error", "overloaded", "unavailable", "service_unavailable"), 503),
    **dict.fromkeys(("server_error", "internal_error", "internal_server_error", "api_error"), 500),
    **dict.fromkeys(("timeout", "timeout_error", "deadline_exceeded"), 408),
    **dict.fromkeys(("invalid_api_key", "authentication_error", "unauthenticated"), 401),
}
_MESSAGE_CHARACTERS = 1 << 16  # characters of a reply that are looked at for a message
_LONGEST_FORM = 6  # characters that stand for one of a secret, as \\uXXXX
_MOST_MEMBERS = 2_000_000  # values of a reply; 64 vectors of 4,096 have 262,144
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Endpoint(Config):
    """Which model of which endpoint, and how long to try.

    No request takes longer than `timeout`, however slow the reply. Redirects are not followed: the prompt goes only
    where the user said. The key never appears in text made from a reply.
    """

    argument: str = Field(min_length=1, description="Name of the model.")
    base_url: str | None = Field(
        None, pattern=r"^https?://", description="Address up to /v1. Default: $OPENAI_BASE_URL, or OpenAI's own."
    )
    key_variable: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key.")
    timeout: float = Field(30.0, gt=0, description="Seconds for a request, its retries included.")
    retries: int = Field(2, ge=0, le=20, description="Further tries after a failure that may pass.")
    backoff: float = Field(0.5, ge=0, description="Seconds before the first retry; doubles with each.")
    concurrency: int = Field(4, ge=1, le=64, description="Requests at the same time.")

    @property
    def address(self) -> str:
        """The address of requests; raises `ConfigError` for one that is none."""
        address = self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            urlsplit(address)
        except ValueError as fault:
            place = "OPENAI_BASE_URL" if self.base_url is None else "base_url"
            remedy = "Write it as http://127.0.0.1:8000/v1, or http://[::1]:8000/v1."
            raise ConfigError(f"an address in {place}", str(fault), remedy) from None
        return address

    @property
    def shown(self) -> str:
        """The address as it may be shown: without name, password and query."""
        parts = urlsplit(self.address)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))

    def strike(self, text: str) -> str:
        """A text without the key and the secret parts of the address."""
        secrets = self._secrets
        return struck(visible(struck(text, secrets)), secrets)  # invisible characters may have stood within

    @property
    def _secrets(self) -> list[str]:
        """What no text may show: the key, and of the address name, password and query, as written and as sent."""
        parts = urlsplit(self.address)
        login = parts.netloc.rpartition("@")[0]
        secrets = [os.environ.get(self.key_variable), parts.password, login]
        if login:
            sent = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            secrets += [unquote(parts.password or ""), b64encode(sent.encode("utf8", "replace")).decode()]
        secrets += [value for _, value in parse_qsl(parts.query)]
        return [secret for secret in secrets if secret]

    def require_client(self) -> None:
        """Raise `MissingDependency` where the `openai` package is not installed."""
        try:
            import openai  # noqa: F401
        except ImportError:
            raise MissingDependency("openai", "ask a model endpoint", "pip install 'glider-moe[describe]'") from None

    def ask(
        self,
        service: Service,
        requests: Sequence[dict[str, Any]],
        longest: int,
        tick: Tick = lambda done: None,
    ) -> list[dict[str, Any] | EndpointError]:
        """Send requests, several at a time; each gives the reply's JSON object or its fault, in order.

        `longest` bounds a reply in bytes. Once the endpoint proves down (no connection, no answer in time, key or
        quota refused), requests that have not begun are given that fault at once.
        """
        results: dict[int, dict[str, Any] | EndpointError] = {}
        down: list[EndpointError] = []

        def run(request: dict[str, Any]) -> dict[str, Any] | EndpointError:
            if down:
                return down[0]
            try:
                return self._with_retries(service, request, longest)
            except EndpointError as fault:
                if fault.down:
                    down.append(fault)
                return fault

        pool = ThreadPoolExecutor(max_workers=max(1, min(self.concurrency, len(requests))))
        try:
            futures = {pool.submit(run, request): i for i, request in enumerate(requests)}
            for done, future in enumerate(as_completed(futures), start=1):
                results[futures[future]] = future.result()
                tick(done)
        finally:
            pool.shutdown(cancel_futures=True)
            self._let_go()
        return [results[i] for i in range(len(requests))]

    @cached_property
    def _connection(self) -> "_Connection":
        return _Connection()

    def _let_go(self) -> None:
        """The next requests get a new client where one was left behind in this one."""
        connection = self._connection
        with connection.lock:
            if connection.clients is not None and connection.clients[1].renewed():
                connection.clients = None

    @property
    def _clients(self) -> tuple[Any, BoundedClient]:
        connection = self._connection
        with connection.lock:
            if connection.clients is None:
                bounded = BoundedClient()
                connection.clients = self._client(bounded), bounded
            return connection.clients

    def _client(self, bounded: BoundedClient) -> Any:
        self.require_client()
        from openai import OpenAI

        key = os.environ.get(self.key_variable)
        if not key and urlsplit(self.address).hostname not in _LOOPBACK:
            remedy = f"Put the key into {self.key_variable}, or name another variable in key_variable."
            raise EndpointError(f"a key for {self.shown}", f"no {self.key_variable} set", remedy, down=True)
        # the client's own retries obey a Retry-After of up to two minutes each, and so are left off
        return OpenAI(api_key=key or "none", base_url=self.address, max_retries=0, http_client=bounded.http)

    def _with_retries(self, service: Service, request: dict[str, Any], longest: int) -> dict[str, Any]:
        client, bounded = self._clients
        resource = client.chat.completions if service == "chat" else client.embeddings  # importing it takes a second
        deadline = time.monotonic() + self.timeout
        for attempt in range(self.retries + 1):
            try:
                return self._once(resource, bounded, request, longest, deadline)
            except _TryAgain as passing:
                wait = self.backoff * 2**attempt * random.uniform(0.75, 1.0)
                wait = max(wait, passing.wait or 0.0)
                if attempt == self.retries or time.monotonic() + wait >= deadline:
                    raise passing.fault from None
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _once(
        self, resource: Any, bounded: BoundedClient, request: dict[str, Any], longest: int, deadline: float
    ) -> dict[str, Any]:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        left = max(0.001, deadline - time.monotonic())
        headers = {"Accept-Encoding": "identity"}  # what is bounded is what arrives
        sent = {"model": self.argument, **request}

        def send() -> bytes:
            with resource.with_streaming_response.create(**sent, timeout=left, extra_headers=headers) as reply:
                return b"".join(reply.iter_bytes())

        try:
            body = bounded.run(send, deadline, longest)
        except (TooLate, APITimeoutError):
            raise self._late() from None
        except TooMuch as fault:
            raise self._fault(str(fault), "This is no model endpoint, or not the model meant.") from None
        except APIStatusError as fault:
            raise self._refused(fault) from None
        except APIConnectionError as fault:
            if isinstance(fault.__cause__, TooMuch):
                raise self._fault(str(fault.__cause__), "This is no model endpoint, or not the model meant.") from None
            got = f"no connection ({self._printable(str(fault.__cause__ or fault))})"
            raise _TryAgain(self._fault(got, "Is it running?", passing=True, down=True)) from None
        except Exception as fault:  # transport faults while the body is read come unclassified from the HTTP library
            if "timeout" in type(fault).__name__.lower():
                raise self._late() from None
            got = f"a broken reply ({type(fault).__name__}: {self._printable(str(fault))})"
            raise _TryAgain(self._fault(got, "Is it running?", passing=True)) from None
        try:
            return self._answered(_parse(body, self.shown))
        except EndpointError as fault:
            if fault.passing:
                raise _TryAgain(fault) from None
            raise

    def _answered(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The reply; raises for an error with a status of success, as gateways to many models send it."""
        error = _error_of(reply)
        if not error:
            return reply
        message = next((error[name] for name in _MESSAGES if isinstance(error.get(name), str)), None)
        status = _status_of(error)
        text = f": {self._printable(message)}" if isinstance(message, str) else ""
        passing = status is not None and (status in _PASSING or status >= 500)
        remedy = "Wait, or look at your quota." if status == 429 else "Check the model's name and the address."
        raise self._fault(f"an error in place of an answer{text}", remedy, passing=passing, down=status in _BATCH_WIDE)

    def _refused(self, fault: Any) -> Exception:
        status, code = fault.status_code, str(getattr(fault, "code", None) or "")
        if 300 <= status < 400:
            got = f"HTTP {status}, a redirect to {self._printable(fault.response.headers.get('location', 'nowhere'))}"
            return self._fault(got, "Give that address as base_url, if it may read what is asked.", down=True)
        body = fault.body.get("message") if isinstance(fault.body, dict) else None
        quota = code in ("insufficient_quota", "billing_hard_limit_reached")
        passing = (status in _PASSING or status >= 500) and not quota
        text = f": {self._printable(body)}" if isinstance(body, str) else ""
        remedy = "Check the key." if status in (401, 403) else "Check the model's name and the address."
        remedy = "Wait, or look at your quota." if status == 429 else "Try again later." if status >= 500 else remedy
        error = self._fault(f"HTTP {status}{text}", remedy, passing=passing, down=status in _BATCH_WIDE)
        return _TryAgain(error, _retry_after(fault.response.headers)) if passing else error

    def _late(self) -> EndpointError:
        return self._fault(f"none within {self.timeout:g} s", "Raise the timeout, or try again later.", down=True)

    def _fault(self, got: str, remedy: str, *, passing: bool = False, down: bool = False) -> EndpointError:
        return EndpointError(f"an answer of {self.argument} at {self.shown}", got, remedy, passing=passing, down=down)

    def _printable(self, text: str) -> str:
        """The text of a reply, fit for a message."""
        shown = self.strike(text[:_MESSAGE_CHARACTERS])
        if len(text) > _MESSAGE_CHARACTERS:  # its end may be the beginning of a secret
            longest = _LONGEST_FORM * max(map(len, self._secrets), default=0)
            shown = shown[: max(0, len(shown) - longest)]
        return printable(shown)


class _Connection:
    """The client that is kept for the next requests, and what bounds it; nothing until the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clients: tuple[Any, BoundedClient] | None = None


class _TryAgain(Exception):
    """A fault that may pass, and the seconds that the endpoint asks to wait."""

    def __init__(self, fault: EndpointError, wait: float | None = None):
        super().__init__(str(fault))
        self.fault, self.wait = fault, wait


def _parse(body: bytes, address: str) -> dict[str, Any]:
    try:
        parsed = parse_json(body, _MOST_MEMBERS)
    except (ValueError, RecursionError):
        start = body.lstrip()[:1]
        got = "HTML" if start == b"<" else "text that is no JSON" if start else "an empty reply"
        parsed = None
    else:
        got = "JSON that is no object"
    if not isinstance(parsed, dict):
        remedy = "Check the address: it ends in /v1 for most servers."
        raise EndpointError(f"JSON from {address}", got, remedy, passing=True)
    return parsed


def _error_of(reply: dict[str, Any]) -> dict[str, Any] | None:
    """What a reply of a success tells of an error, in one of the forms that servers and gateways have; else None."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if not reply.get("data") and isinstance(choice.get("error"), dict):
        return choice["error"]
    if choices or reply.get("data"):
        return None
    errors = reply.get("errors")
    error = reply.get("error") or (errors[0] if isinstance(errors, list) and errors else errors)
    if error:
        return error if isinstance(error, dict) else {"message": error if isinstance(error, str) else None}
    if reply.get("object") == "error" or (
        "choices" not in reply and any(isinstance(reply.get(name), str) for name in _MESSAGES)
    ):
        return reply
    return None


def _status_of(error: dict[str, Any]) -> int | None:
    """The status that an error within a success names, by number or by word."""
    for name in ("code", "status", "status_code", "http_code", "type"):
        value = error.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.isdecimal() and len(value) < 4:
            return int(value)
        if isinstance(value, str) and (known := _NAMED.get(value.lower())) is not None:
            return known
    return None


def _retry_after(headers: Any) -> float | None:
    """Seconds that a reply asks to wait: a number, or an HTTP date."""
    value = headers.get("retry-after")
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _seconds(float(milliseconds) / 1000)
        return None if value is None else _seconds(float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):  # an hour, or a zone, of twenty digits
        return None


def _seconds(value: float) -> float:
    return max(0.0, value) if not math.isnan(value) else 0.0
