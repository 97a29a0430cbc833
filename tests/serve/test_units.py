"""Parts that need no server."""

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError, model_validator

from glider.errors import ConfigError, EndpointError
from glider.experts.gains import GAINS_FILE, Gain, store_gains
from glider.experts.pool import Pool
from glider.inference import queries
from glider.inference.spec import ModelSpec
from glider.instructions.cache import Cache
from glider.instructions.embedders import Embedder
from glider.routing.condition import Described
from glider.serve import bodies
from glider.serve.errors import ApiError
from glider.serve.exchange import Prompt
from glider.serve.keys import Keys
from glider.serve.places import Places
from glider.serve.pools import Pools, ServedPool
from glider.serve.prompts import room
from glider.serve.response_schemas import ResponsesRequest
from glider.serve.sampling import _bias_ids, _Penalty
from glider.serve.schemas import ChatRequest, CompletionRequest
from glider.serve.service import Service
from glider.serve.settings import ServeSettings
from glider.serve.steering import _client_fault
from glider.serve.streaming import _event


def test_penalties_look_at_the_answer_alone() -> None:
    ids = torch.tensor([[5, 5, 3, 4, 4]])  # a prompt of two tokens
    logits = torch.zeros(1, 6)
    changed = _Penalty(presence=0.5, frequency=0.25, start=2)(ids, logits)
    assert changed.tolist() == [[0, 0, 0, -0.75, -1.0, 0]]
    assert logits.tolist() == [[0] * 6]


def test_a_key_file_that_is_not_there_is_not_one_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file of keys at .*none\.json; got no such file.*Check the path"):
        Keys.read(str(tmp_path / "none.json"), ["tiny"])


def test_gains_are_told_and_a_bad_file_of_them_is_not(pool_directory: Path, tmp_path: Path) -> None:
    """`/v1/pool` had none, so that the page could not tell whether an expert is worth its place."""
    pool = Pool.open(shutil.copytree(pool_directory, tmp_path / "tiny"))

    def served() -> ServedPool:
        model, generation, storage = SimpleNamespace(pool=pool), SimpleNamespace(number=1), SimpleNamespace()
        return ServedPool("tiny", cast(Any, model), cast(Any, generation), cast(Any, storage))

    gain = Gain(metric="accuracy", rows=8, base=0.25, alone=0.5)
    store_gains(pool, {"e1": gain})
    assert served().gains == {"e1": gain}
    (pool.path / GAINS_FILE).write_text("{")
    assert served().gains == {}


def test_places_are_given_in_the_order_of_asking() -> None:
    async def run() -> list[str]:
        places, order = Places(2, 8), list[str]()

        async def ask(name: str, count: int) -> None:
            taken = await places.enter(count, "", None)
            order.append(name)
            await asyncio.sleep(0)
            places.leave(taken, "")

        await asyncio.gather(*(ask(name, count) for name, count in (("a", 1), ("b", 2), ("c", 1), ("d", 5))))
        assert (places.running, places.waiting) == (0, 0)
        return order

    assert asyncio.run(run()) == ["a", "b", "c", "d"]


def test_who_leaves_the_queue_holds_up_nobody() -> None:
    async def run() -> None:
        places = Places(1, 8)
        first = await places.enter(1, "x", None)
        tasks = [asyncio.ensure_future(places.enter(1, "x", None)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        places.leave(first, "x")
        tasks[1].cancel()  # its turn had come
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert await asyncio.wait_for(tasks[2], 10) == 1
        places.leave(1, "x")
        assert (places.running, places.waiting) == (0, 0)
        places.closed = True
        with pytest.raises(ApiError, match="shutting down"):
            places.check("x", None)

    asyncio.run(run())


def test_pools_have_names() -> None:
    assert ServeSettings().pools == {"demo": "demo"}
    named = ServeSettings(pool=["a/b/tiny/", "other=a/b/tiny"])
    assert named.pools == {"tiny": "a/b/tiny/", "other": "a/b/tiny"}
    for wrong in (["a=x", "a=y"], ["=x"], ["a b=x"], ["x/.."]):
        with pytest.raises(ConfigError):
            assert ServeSettings(pool=wrong).pools


def test_loopback() -> None:
    for host, inside in (("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)):
        assert ServeSettings(host=host).loopback is inside


def test_a_bias_of_a_number_without_end_is_refused() -> None:
    """Python refuses to read more than 4300 digits, by an error that was a 500."""
    with pytest.raises(ApiError, match="token ids") as caught:
        _bias_ids({"9" * 5000: 1.0}, 100)
    assert caught.value.status == 400


def test_the_first_question_finds_the_embedder_loaded(
    llama_directory: Path, pool_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache knew the vector of the question at the start, so that the embedder was loaded at the first one."""
    settings = ServeSettings(pool=[str(pool_directory)])
    spec = ModelSpec(
        base=str(llama_directory), pool=str(pool_directory), router="glider(global=ensemble, abstain=false)"
    )
    service = Service(Pools.load(spec, settings), settings)
    store = Cache(tmp_path / "cache.sqlite3", 8.0)
    monkeypatch.setattr(queries, "cache", lambda: store)
    texts: list[str] = []
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, rows: (texts.extend(rows), embed(self, rows))[1])
    service.warm()
    texts.clear()
    service.warm()
    service.close()
    store.close()
    assert texts == ["Hello"]


def test_no_line_of_an_event_ends_within_it() -> None:
    """Clients that take every line separator of Unicode for one broke such answers in two."""
    text = "a\x85b\u2028c\u2029d\re\nf"
    event = _event({"type": "x", "text": text}, named=True)
    assert event.splitlines()[0] == "event: x"
    assert json.loads(event.splitlines()[1].removeprefix("data: "))["text"] == text


def test_what_comes_before_the_queue_is_bounded_too(llama_directory: Path, pool_directory: Path) -> None:
    """Prompts that were being read, and routes that were being told, waited in any number."""
    settings = ServeSettings(pool=[str(pool_directory)], max_requests=1, max_queue=2)
    service = Service(
        Pools.load(ModelSpec(base=str(llama_directory), pool=str(pool_directory), abstain=False), settings), settings
    )
    go = threading.Event()

    async def run() -> None:
        waiting = [asyncio.ensure_future(service.runner.prepare(go.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="3 requests") as caught:
            service.admit()
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        go.set()
        await asyncio.gather(*waiting)
        await asyncio.sleep(0)
        service.admit()

    asyncio.run(run())
    service.close()


def _model(context: int | None, length: int, encoder_decoder: bool = True) -> Any:
    config = SimpleNamespace(is_encoder_decoder=encoder_decoder, get_text_config=lambda: SimpleNamespace(vocab_size=8))
    encoder, tokenizer = SimpleNamespace(context=context), SimpleNamespace(model_max_length=length)
    return SimpleNamespace(encoder=encoder, tokenizer=tokenizer, model=SimpleNamespace(config=config))


@pytest.mark.parametrize(
    ("context", "length", "setting", "most"),
    [(None, 512, None, 512), (None, 10**30, None, 2048), (None, 512, 1024, 1024), (1024, 512, None, 1024)],
)
def test_the_prompt_of_an_encoder_has_a_bound(context: int | None, length: int, setting: int | None, most: int) -> None:
    """T5 has no context: a prompt of 20,000 tokens was read whole."""
    model, settings = _model(context, length), ServeSettings(prompt_tokens=setting)
    assert room(model, settings, Prompt([5] * most, "x"), 8, False, ("prompt", "max_tokens")) == 8
    with pytest.raises(ApiError, match=f"{most + 1} tokens of a prompt, where {most} is the most") as fault:
        room(model, settings, Prompt([5] * (most + 1), "x"), 8, False, ("prompt", "max_tokens"))
    assert (fault.value.status, fault.value.param) == (400, "prompt")


def test_a_client_is_not_told_the_address_of_an_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    address = "http://10.1.2.3:8000/v1"
    endpoint = EndpointError(f"an answer of gpt at {address}", "no connection", "Is it running?")
    described = Described(
        None, "openai:gpt", fault=f"{endpoint}; the examples are not used", unused="the examples are not used"
    )
    for text in (
        _client_fault(described),
        _client_fault(replace(described, unused=None)),
        ApiError.of(endpoint).message,
    ):
        assert text is not None and address not in text and "log says why" in text
    assert caplog.text.count(address) == 3
    only = Described(None, "none", fault="the examples are not used", unused="the examples are not used")
    assert _client_fault(only) == only.fault
    assert _client_fault(Described("x", "given")) is None


@pytest.mark.parametrize("last", [{"role": "user", "content": "x"}, {"role": "nobody", "content": "x"}])
def test_a_large_body_is_brought_into_its_form_beside_the_loop(last: dict[str, str]) -> None:
    """Four thousand items held all other requests for a second."""
    threads, router = [], bodies.router()

    class Watched(ResponsesRequest):
        @model_validator(mode="before")
        @classmethod
        def _note(cls, value: Any) -> Any:
            if isinstance(value, dict):
                threads.append(threading.get_ident())
            return value

    @router.post("/ask")
    async def ask(body: Watched) -> dict[str, int]:
        return {"items": len(body.input), "loop": threading.get_ident()}

    app = FastAPI()
    app.include_router(router)
    items = [{"role": "user", "content": "hello"}] * 4000
    answer = TestClient(app).post("/ask", json={"model": "tiny", "input": [*items, last]})
    if last["role"] == "user":
        assert answer.json()["items"] == 4001
        assert len(threads) == 1 and threads[0] != answer.json()["loop"]
    else:
        assert answer.status_code == 422 and len(threads) == 1
        assert answer.json()["detail"][0]["loc"][:2] == ["body", "input"]


def test_large_bodies_are_brought_into_their_form_one_at_a_time() -> None:
    """Beside sixteen of them the event loop had no turn for seconds."""
    running, most, router = [0], [0], bodies.router()

    class Watched(ResponsesRequest):
        @model_validator(mode="before")
        @classmethod
        def _note(cls, value: Any) -> Any:
            running[0] += 1
            most[0] = max(most[0], running[0])
            threading.Event().wait(0.05)
            running[0] -= 1
            return value

    @router.post("/ask")
    async def ask(body: Watched) -> dict[str, int]:
        return {"items": len(body.input)}

    app = FastAPI()
    app.include_router(router)
    body = {"model": "tiny", "input": [{"role": "user", "content": "hello"}] * 3000}
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda key: client.post("/ask", json=body, headers={"authorization": key}), "aabb"))
    assert [answer.json()["items"] for answer in answers] == [3000] * 4 and most == [1]


def test_the_log_has_a_users_name_in_a_line_of_bounded_length(caplog: pytest.LogCaptureFixture) -> None:
    """A name of four megabytes was a line of four megabytes, at each request."""
    exchange = SimpleNamespace(
        request=SimpleNamespace(user="name\x1b[31m " * 400_000),
        key=SimpleNamespace(name="key"),
        target=SimpleNamespace(name="pool"),
        request_id="a",
        verdict_label="none",
        begun=True,
        prompt_tokens=1,
        completion_tokens=1,
        choices=[],
    )
    service = SimpleNamespace(
        metrics=SimpleNamespace(ended=lambda *_: None), settings=SimpleNamespace(log_prompts=False)
    )
    with caplog.at_level("INFO", logger="glider.serve.access"):
        Service.ended(service, exchange, 1.0)  # pyright: ignore[reportArgumentType]
    assert len(caplog.text) < 1000, "a line of any length"
    assert "name name" in caplog.text and "[31m" not in caplog.text


@pytest.mark.parametrize("count", [1024, 1025])
def test_a_message_has_so_many_parts_and_a_request_so_many_prompts(count: int) -> None:
    """Forty thousand parts held the event loop for more than a second."""
    part, item = {"type": "text", "text": "a"}, {"type": "input_text", "text": "a"}
    bodies: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [part] * count}]}),
        (CompletionRequest, {"model": "m", "prompt": ["a"] * count}),
        (CompletionRequest, {"model": "m", "prompt": [[1]] * count}),
        (ResponsesRequest, {"model": "m", "input": [{"role": "user", "content": [item] * count}]}),
    ]
    for form, body in bodies:
        if count > 1024:
            with pytest.raises(ValidationError, match="at most 1024 items"):
                form.model_validate(body)
        else:
            form.model_validate(body)
