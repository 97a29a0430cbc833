"""Places among the requests that share passes, given out in order of arrival, and among keys evenly."""

import asyncio
from collections import Counter, deque

from glider.serve.errors import ApiError, shutting_down

RETRY = 1  # seconds, told to whoever is refused
_Turn = tuple[int, "asyncio.Future[None]"]


class Places:
    """A number of places with a bounded queue. Belongs to one event loop.

    The next place is for the key that has the fewest. Where the queue is full, a key that has fewer requests in flight
    than another takes the place in it of that one's newest, so that no key keeps others out.
    """

    def __init__(self, places: int, queue: int, streams: int | None = None):
        self._all, self._free, self._queue = places, places, queue
        self._waiting: dict[str, deque[_Turn]] = {}  # by key
        self._streams, self._by_key, self._held = streams, Counter[str](), Counter[str]()
        self.closed = False

    @property
    def running(self) -> int:
        """Places that are taken."""
        return self._all - self._free

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._waiting.values()))

    @property
    def taken(self) -> bool:
        """Whether any request has a place or waits for one."""
        return bool(self._by_key)

    def check(self, key: str, streams: int | None) -> None:
        """Raise `ApiError` where a request of this key would be refused: 503 while draining, 429 for limits."""
        if self.closed:
            raise shutting_down()
        limit = streams or self._streams
        if limit is not None and self._by_key[key] >= limit:
            message = f"this key has {limit} requests in flight, as many as it may"
            raise ApiError(429, message, code="too_many_streams", retry=RETRY)
        if self._full and self._greedier(key) is None:
            raise _queue_full(self._queue)

    async def enter(self, count: int, key: str, streams: int | None) -> int:
        """Wait for places and take them; returns how many, to be given to `leave`."""
        self.check(key, streams)
        if self._full and (other := self._greedier(key)) is not None:
            self._drop_newest(other)
        count = min(count, self._all)  # of more answers the engine itself lets some wait
        self._by_key[key] += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((count, turn))
        self._admit()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(count, key)  # it was given while the client went
            else:
                self._take_out(key, turn)
            self._forget(key)
            self._admit()
            raise
        return count

    def leave(self, count: int, key: str) -> None:
        """Give places back."""
        self._give_back(count, key)
        self._forget(key)
        self._admit()

    @property
    def _full(self) -> bool:
        return not self._free and self.waiting >= self._queue

    def _greedier(self, key: str) -> str | None:
        """The waiting key with the most requests in flight, where it has more than this one with one more."""
        most = max(self._waiting, key=lambda one: self._by_key[one], default=None)
        return most if most is not None and self._by_key[most] > self._by_key[key] + 1 else None

    def _drop_newest(self, key: str) -> None:
        _, turn = self._waiting[key][-1]
        self._take_out(key, turn)
        if not turn.done():
            turn.set_exception(_queue_full(self._queue))

    def _admit(self) -> None:
        while self._waiting:
            key = min(self._waiting, key=lambda one: self._held[one])
            count, turn = self._waiting[key][0]
            if self._free < count:
                return
            self._take_out(key, turn)
            if not turn.done():
                self._free -= count
                self._held[key] += count
                turn.set_result(None)

    def _take_out(self, key: str, turn: "asyncio.Future[None]") -> None:
        rest = deque(one for one in self._waiting.pop(key, ()) if one[1] is not turn)
        if rest:
            self._waiting[key] = rest  # behind the keys that wait longer for their next

    def _give_back(self, count: int, key: str) -> None:
        self._free += count
        self._held[key] -= count
        if self._held[key] <= 0:
            del self._held[key]

    def _forget(self, key: str) -> None:
        self._by_key[key] -= 1
        if self._by_key[key] <= 0:
            del self._by_key[key]


def _queue_full(queue: int) -> ApiError:
    return ApiError(429, f"{queue} requests wait already", code="queue_full", retry=RETRY)
