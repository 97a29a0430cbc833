"""Between the engine, which has threads, and the server, which has an event loop."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from glider.inference.batches import open_engine
from glider.inference.engine import Ended, Engine, Event, Failed
from glider.inference.sampler import RequestSettings
from glider.layers.trace import Trace
from glider.routing.condition import Condition
from glider.serve.lanes import LANE, Lanes
from glider.serve.settings import ServeSettings

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.layers.attach import Generation

Result = TypeVar("Result")
log = logging.getLogger("glider.serve")
_LOOK_UP = 0.2  # seconds between looks at whether to stop


class Runner:
    """Owns the engine: one thread takes its events to the requests' queues, another prepares requests.

    What prepares them (tokens, conditions, pools that change) runs one thing after the other, so that a condition is
    always made for the generation that answers by it; the keys take turns.
    """

    def __init__(self, model: "RoutedModel", settings: ServeSettings):
        self.engine = _engine(model, settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._numbers = itertools.count()
        self.preparing = 0  # calls of `prepare` that have not ended
        self._worker = Lanes("glider-prepare")
        self._stop = threading.Event()
        self._pump = threading.Thread(target=self._take_events, name="glider-events", daemon=True)

    def start(self) -> None:
        """Begin; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._pump.start()

    async def prepare(self, work: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Run a function in the thread that prepares requests."""
        done = asyncio.wrap_future(self._worker.submit(LANE.get(), partial(work, *arguments, **named)))
        self.preparing += 1
        done.add_done_callback(self._prepared)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])  # what it takes up must be known to whoever gives it back
            raise

    def _prepared(self, _: object) -> None:
        self.preparing -= 1

    def add(
        self,
        ids: list[int],
        condition: Condition,
        settings: RequestSettings,
        generation: "Generation",
        trace: Trace | None,
        events: "asyncio.Queue[Event]",
    ) -> str:
        """Let the engine answer a prompt, its events to come to this queue; returns its name, to be forgotten. In the
        thread that prepares requests."""
        name = f"r{next(self._numbers)}"
        self._queues[name] = events
        try:
            self.engine.add(name, ids, condition, settings, trace, generation)
        except BaseException:
            self.forget(name)
            raise
        return name

    def forget(self, name: str) -> None:
        """Forget a request, and end it if it is running."""
        if self._queues.pop(name, None) is not None and not self._stop.is_set():
            self._worker.submit("", partial(self.engine.cancel, name))

    def admits(self, lane: str, most: int) -> bool:
        """Whether one more request may be prepared: up to this many, and of a key its share of them in any case."""
        share = most // max(1, self._worker.busy)
        return self.preparing < most or self._worker.unfinished(lane) < share

    def close(self) -> None:
        """Stop the engine and the threads."""
        self._stop.set()
        if self._pump.is_alive():
            self._pump.join()
        self._worker.close()
        self.engine.close()

    def _take_events(self) -> None:
        assert self._loop is not None
        while not self._stop.is_set():
            event = self.engine.next_event(timeout=_LOOK_UP)
            if event is not None:
                self._loop.call_soon_threadsafe(self._hand_over, event)

    def _hand_over(self, event: Event) -> None:
        ended = isinstance(event, Ended | Failed)
        queue = self._queues.pop(event.request, None) if ended else self._queues.get(event.request)
        if isinstance(event, Failed):
            log.error("request %s failed", event.request, exc_info=event.fault)
        if queue is not None:
            queue.put_nowait(event)


def _engine(model: "RoutedModel", settings: ServeSettings) -> Engine:
    from transformers import ContinuousBatchingConfig

    from glider.inference.packing import PAGE

    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        max_requests_per_batch=settings.max_requests,
        max_batch_tokens=settings.pass_tokens,
        num_blocks=-(-settings.cache_tokens // PAGE) + 1,
    )
    return open_engine(model, batching, ())
