"""How keys share places, the queue and the thread that prepares their requests."""

import asyncio
import threading

import pytest

from glider.serve.errors import ApiError
from glider.serve.lanes import Lanes
from glider.serve.places import Places


def test_a_key_of_many_requests_holds_up_no_other() -> None:
    """All of one key's came first, and the others waited for the last of them."""

    async def run() -> list[str]:
        places, order = Places(2, 8), list[str]()

        async def ask(name: str, key: str) -> None:
            taken = await places.enter(1, key, None)
            order.append(name)
            await asyncio.sleep(0)
            places.leave(taken, key)

        asked = [(f"a{number}", "ann") for number in range(6)] + [("b0", "bob"), ("b1", "bob")]
        await asyncio.gather(*(ask(name, key) for name, key in asked))
        assert (places.running, places.waiting) == (0, 0)
        return order

    order = asyncio.run(run())
    assert order[:2] == ["a0", "a1"]
    assert order.index("b1") < order.index("a4")


def test_a_full_queue_takes_the_newest_of_the_greediest() -> None:
    """One key filled the queue, and every other was refused."""

    async def run() -> None:
        places = Places(1, 3)
        await places.enter(1, "ann", None)
        waiting = [asyncio.ensure_future(places.enter(1, "ann", None)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="3 requests wait already"):
            await places.enter(1, "ann", None)
        late = asyncio.ensure_future(places.enter(1, "bob", None))
        with pytest.raises(ApiError, match="3 requests wait already") as caught:
            await waiting[2]
        assert (caught.value.status, caught.value.code, caught.value.retry) == (429, "queue_full", 1)
        assert places.waiting == 3
        places.leave(1, "ann")
        assert await late == 1
        assert not waiting[0].done()
        places.leave(1, "bob")
        assert [await one for one in waiting[:1]] == [1]
        places.leave(1, "ann")
        assert await waiting[1] == 1
        places.leave(1, "ann")
        assert (places.running, places.waiting) == (0, 0)

    asyncio.run(run())


def test_work_of_keys_takes_turns() -> None:
    """Others' waited behind all that one key had asked."""
    lanes, order, begin = Lanes("test"), list[str](), threading.Event()
    jobs = [lanes.submit("ann", begin.wait)]
    jobs += [lanes.submit("ann", lambda name=f"a{number}": order.append(name)) for number in range(3)]
    jobs += [lanes.submit("bob", lambda: order.append("b0")), lanes.submit("bob", lambda: 1 // 0)]
    assert (lanes.unfinished("ann"), lanes.unfinished("bob"), lanes.busy) == (4, 2, 2)
    begin.set()
    with pytest.raises(ZeroDivisionError):
        jobs[-1].result(10)
    for job in jobs[:-1]:
        job.result(10)
    assert order.index("b0") <= 1
    assert [name for name in order if name[0] == "a"] == ["a0", "a1", "a2"]
    lanes.close()
    assert (lanes.unfinished("ann"), lanes.busy) == (0, 0)
    with pytest.raises(RuntimeError):
        lanes.submit("ann", list)


def test_what_waits_is_cancelled_with_the_end() -> None:
    lanes, running, end = Lanes("test"), threading.Event(), threading.Event()

    def long() -> None:
        running.set()
        end.wait()

    first, second = lanes.submit("ann", long), lanes.submit("ann", list)
    running.wait(10)
    closing = threading.Thread(target=lanes.close)
    closing.start()
    while not second.cancelled():
        pass
    end.set()
    closing.join(10)
    assert first.result(10) is None
