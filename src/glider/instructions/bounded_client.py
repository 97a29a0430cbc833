"""An HTTP client for untrusted servers: every reply, of any status, is bounded in time and size, and no redirect is
followed.

The OpenAI client waits for as long as single bytes keep coming, reads the body of an error to its end whatever its
length, and unpacks it. Here each request runs in a thread that is left behind at its deadline, and a body is counted
as it arrives.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

Result = TypeVar("Result")
_PACKINGS = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})


class TooLate(Exception):
    """The deadline has passed."""


class TooMuch(Exception):
    """A reply beyond its bound, or one that could grow beyond it."""


class BoundedClient:
    """The HTTP client that is handed to the OpenAI client: without redirects, each reply within bounds."""

    def __init__(self) -> None:
        from openai import DefaultHttpxClient

        self._bounds = _Bounds()  # apart from this object: what the client refers to lives as long as its connections
        hooks = {"response": [self._bounds.apply]}
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # they would be sent again, and grow
        self.http = DefaultHttpxClient(follow_redirects=False, event_hooks=hooks, cookies=no_cookies)
        self._left_behind = False
        weakref.finalize(self, self.http.close)

    def run(self, work: Callable[[], Result], deadline: float, longest: int) -> Result:
        """The result of `work`, which sends one request; raises `TooLate` at the deadline.

        A body of more than `longest` bytes is `TooMuch`, and so is a packed one: it was asked for as it is.
        """
        outcome: list[Any] = []
        bounds = self._bounds  # and not the object itself, which a thread that is left behind would keep

        def attempt() -> None:
            bounds.deadline, bounds.longest = deadline, longest
            try:
                outcome[:] = True, work()
            except BaseException as fault:  # handed to the caller
                outcome[:] = False, fault

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            self._left_behind = True
            raise TooLate
        done, value = outcome
        if not done:
            raise value
        return value

    def renewed(self) -> bool:
        """Close what requests were left behind on; whether there were any, and a new client is needed."""
        if self._left_behind:
            self.http.close()  # their threads end with the next byte that comes, or with their own time limit
        return self._left_behind


class _Bounds(threading.local):
    """The bounds of the reply to this thread's request."""

    deadline: float
    longest: int

    def apply(self, response: Any) -> None:
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            known = all(part.strip() in _PACKINGS for part in packed.split(","))
            raise TooMuch(f"a reply packed by {packed[:20] if known else 'no known way'}, which nobody asked for")
        response.encoding = "utf8"  # what a reply names may be any codec of Python's: some unpack, others are quadratic
        response.stream = _bounded_kind(type(response.stream))(response.stream, self.deadline, self.longest)


class _Bounded:
    def __init__(self, stream: Any, deadline: float, longest: int):
        self._stream, self._deadline, self._longest = stream, deadline, longest

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for chunk in self._stream:
            count += len(chunk)
            if count > self._longest:
                raise TooMuch(f"a reply of more than {self._longest} bytes")
            if time.monotonic() > self._deadline:
                raise TooLate
            yield chunk

    def close(self) -> None:
        self._stream.close()


@cache
def _bounded_kind(stream: type) -> Any:
    """Streams of this kind with a bound: the HTTP library takes nothing but its own."""
    base = next(kind for kind in stream.__mro__ if kind.__name__ == "SyncByteStream")
    return type("BoundedStream", (_Bounded, base), {})
