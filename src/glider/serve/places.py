"""Places among the requests that share passes, given out in order of arrival."""

import asyncio
from collections import Counter, deque

from glider.serve.errors import ApiError

RETRY = 1  # seconds, told to whoever is refused


class Places:
    """A number of places with a bounded queue. Belongs to one event loop."""

    def __init__(self, places: int, queue: int, streams: int | None = None):
        self._all, self._free, self._queue = places, places, queue
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._streams, self._by_key = streams, Counter[str]()
        self.closed = False

    @property
    def running(self) -> int:
        """Places that are taken."""
        return self._all - self._free

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def check(self, key: str, streams: int | None) -> None:
        """Raise `ApiError` where a request of this key would be refused: 503 while draining, 429 for limits."""
        if self.closed:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry=5)
        limit = streams or self._streams
        if limit is not None and self._by_key[key] >= limit:
            message = f"this key has {limit} requests in flight, as many as it may"
            raise ApiError(429, message, code="too_many_streams", retry=RETRY)
        if not self._free and len(self._waiting) >= self._queue:
            raise ApiError(429, f"{len(self._waiting)} requests wait already", code="queue_full", retry=RETRY)

    async def enter(self, count: int, key: str, streams: int | None) -> int:
        """Wait for places and take them; returns how many, to be given to `leave`."""
        self.check(key, streams)
        count = min(count, self._all)  # of more answers the engine itself lets some wait
        self._by_key[key] += 1
        try:
            if self._waiting or self._free < count:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append((count, turn))
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.done() and not turn.cancelled():
                        self._free += count  # it was given while the client went
                    else:
                        self._waiting = deque(one for one in self._waiting if one[1] is not turn)
                    self._admit()
                    raise
            else:
                self._free -= count
        except BaseException:
            self._forget(key)
            raise
        return count

    def leave(self, count: int, key: str) -> None:
        """Give places back."""
        self._free += count
        self._forget(key)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._free >= self._waiting[0][0]:
            count, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= count
                turn.set_result(None)

    def _forget(self, key: str) -> None:
        self._by_key[key] -= 1
        if self._by_key[key] <= 0:
            del self._by_key[key]
