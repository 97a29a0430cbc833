"""Actors that run one job after another and keep loaded models: requested, ready, at work, gone.

Only an actor that is up is given a job. One that the cluster has no room for yet must hold none: the room that it waits
for may be that of an idle actor of ours, which would keep it until the run ends, and the run would wait for the job.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from glider.jobs.ray_node import Ended, Order, work

UNKNOWN = "a node that was not told yet"
_PATIENCE = 2.0  # seconds for what Ray has the word of already
_TRANSFER = 600.0  # seconds for one message to come over the network


class Seat:
    """The actor: a process."""

    def work(self, order: Order) -> Iterator[Any]:
        """As `ray_node.work`."""
        yield from work(order)


@dataclass
class Seats:
    """The actors of one run that have no job."""

    ray: Any
    take: dict[str, Any]  # what each takes of a node
    coming: dict[Any, Any] = field(default_factory=dict)  # those that are not up yet, by what comes when they are
    idle: list[Any] = field(default_factory=list)

    def ask(self, count: int) -> None:
        """Request actors until this many are ready or starting."""
        while len(self.idle) + len(self.coming) < count:
            actor = self.ray.remote(Seat).options(**self.take, max_restarts=0).remote()
            self.coming[actor.__ray_ready__.remote()] = actor
        while self.coming and len(self.idle) + len(self.coming) > count:
            _, actor = self.coming.popitem()
            self.ray.kill(actor)

    def arrive(self, up: Any) -> None:
        """Add the actor that is ready; raises a `RayError` if it was lost while starting."""
        actor = self.coming.pop(up)
        self.ray.get(up)
        self.idle.append(actor)

    def clear(self) -> None:
        """Give up the idle ones: they may be gone with a node, and would take the next jobs with them."""
        while self.idle:
            self.ray.kill(self.idle.pop())

    def close(self) -> None:
        """Let none go on."""
        self.clear()
        self.ask(0)


@dataclass(eq=False)
class Running:
    """A job at work: where its messages come from, and the actor that does it, if one does.

    `end` comes when the work is over in any way, and is an error where the process or its node is gone. It does not
    depend on the stream of messages, which may be silent for hours and need not tell of a death.
    """

    job: Any
    messages: Any
    end: Any
    actor: Any = None
    node: str = UNKNOWN
    ended: Ended | None = None

    @classmethod
    def by_actor(cls, job: Any, order: Order, actor: Any) -> "Running":
        """Given to an actor, which does one call after the other: the second is answered when the first is over."""
        messages = actor.work.options(num_returns="streaming").remote(order)
        return cls(job, messages, actor.__ray_ready__.remote(), actor)

    def hear(self, ray: Any) -> Any:
        """The next message; it or the end has already arrived.

        Raises `StopIteration` after the last one, and a `RayError` where none will come.
        """
        if not ray.wait([self.messages], timeout=_PATIENCE)[0]:
            ray.get(self.end, timeout=_PATIENCE)
            raise ray.exceptions.RayError("its work is over and its messages did not end")
        message = next(self.messages)
        if message != self.end:  # which is what a stream breaks off with
            ray.wait([message, self.end], num_returns=1)  # a large message may lie on a node that is gone
        return ray.get(message, timeout=_PATIENCE if self._is_lost(ray) else _TRANSFER)

    def stop(self, ray: Any) -> None:
        """Let it not go on; `end` comes when it does not."""
        if self.actor is None:
            ray.cancel(self.messages, force=True)
        else:
            ray.kill(self.actor)

    def _is_lost(self, ray: Any) -> bool:
        if not ray.wait([self.end], timeout=0)[0]:
            return False
        with suppress(ray.exceptions.RayError):
            ray.get(self.end, timeout=_PATIENCE)
            return False
        return True
