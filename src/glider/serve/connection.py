"""Connections whose requests arrive in time, and whose bodies leave others their turn.

uvicorn waits for the head of a request as long as its client likes, and so for the rest of a body that was answered
before its end (a refusal reads none), and takes whatever has arrived in one step: a quarter of a megabyte, in chunks of
a byte three seconds long.
"""

import asyncio
from collections import deque
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_STEP = 4096  # bytes taken at once


class Connection(H11Protocol):
    """uvicorn's, closed where the head of a request, or the rest of a body that nobody reads, takes longer than
    `patience` seconds."""

    def __init__(self, *arguments: Any, patience: float, **named: Any):
        super().__init__(*arguments, **named)
        self._patience = patience
        self._late: asyncio.TimerHandle | None = None
        self._awaited: str | None = None  # what that is the limit of
        self._arrived: deque[bytes] = deque()
        self._next: asyncio.Handle | None = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._arrived.clear()
        if self._next is not None:
            self._next.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._arrived.extend(data[begin : begin + _STEP] for begin in range(0, len(data), _STEP))
        if self._next is None:
            self._take()
        if self._arrived and not self.transport.is_closing():
            self.transport.pause_reading()

    def _take(self) -> None:
        """One step of what has arrived; the next one when the loop has had its turn."""
        self._next = None
        super().data_received(self._arrived.popleft())
        self._watch()
        if self.transport.is_closing():
            self._arrived.clear()
        elif self._arrived:
            self._next = self.loop.call_soon(self._take)
        elif not self.flow.read_paused:  # by uvicorn, which has reasons of its own
            self.transport.resume_reading()

    def _watch(self) -> None:
        """Between requests uvicorn has a limit of its own, which ends with the next byte that comes."""
        if self._awaits != self._awaited:
            self._forget()
            self._awaited = self._awaits
            if self._awaited is not None:
                self._late = self.loop.call_later(self._patience, self._close)

    def _should_upgrade(self) -> bool:
        """Never: a request to speak another protocol (websocket, h2c) is answered in this one, as HTTP allows. uvicorn
        advised in the log, for each of them, to install a package."""
        return False

    @property
    def _awaits(self) -> str | None:
        """What the client has to send that no application waits for."""
        if self.conn.their_state is h11.IDLE:
            return "head"
        rest = self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        return "rest" if rest else None

    def _forget(self) -> None:
        self._awaited = None
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self._awaits is not None and not self.transport.is_closing():
            self.transport.close()
