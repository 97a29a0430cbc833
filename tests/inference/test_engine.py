"""The engine on token ids: requests join and leave while it runs, each by its own condition and settings."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import QueryError
from glider.inference.batches import EngineSettings
from glider.inference.engine import Ended, Engine, Failed, NewToken, events
from glider.inference.model import RoutedModel
from glider.inference.padded_engine import PaddedEngine
from glider.inference.sampler import RequestSettings
from glider.inference.spec import load
from glider.layers.trace import Trace
from glider.routing.condition import Condition, Settled
from glider.routing.methods.glider import Glider

TEXTS = ["sort 3 1 2", "What is the capital of France?", "a film " * 20, "ok"]
STRONG = Glider(p=-1.0)  # alpha is 103: the global term decides


@pytest.fixture
def model(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory, 4).path, router=STRONG)


@pytest.fixture(params=["packed", "padded"])
def engine(request: pytest.FixtureRequest, model: RoutedModel) -> Iterator[Engine]:
    made = model.engine() if request.param == "packed" else PaddedEngine(model.attached, 0)
    assert made.can.join == (request.param == "packed")
    yield made
    made.close()


def ids_of(model: RoutedModel, text: str) -> list[int]:
    return model.prompt.prompt_ids(model.tokenizer, text)


def run(engine: Engine, names: list[str]) -> dict[str, Ended]:
    """How each request ended; every token was told before."""
    told: dict[str, list[int]] = {name: [] for name in names}
    ended = {}
    for event in events(engine, names):
        if isinstance(event, NewToken):
            told[event.request].append(event.token)
        elif isinstance(event, Ended):
            ended[event.request] = event
            assert event.reason == "cancelled" or list(event.tokens) == told[event.request]
        elif isinstance(event, Failed):
            raise event.fault
    return ended


def test_each_request_has_its_own_condition(model: RoutedModel, engine: Engine) -> None:
    """Routed, bare, one expert and experts left out beside each other: each as if alone."""
    ids, settings = ids_of(model, TEXTS[1]), RequestSettings(8)
    routed = model.condition([TEXTS[1]])
    assert routed.global_scores is not None and routed.alpha is not None
    without = routed.global_scores.clone()
    without[0, :2] = -torch.inf
    conditions = {
        "routed": routed,
        "bare": Condition.nobody(1),
        "e2 alone": Condition(1, settled=Settled(torch.tensor([[2]]), torch.tensor([[1.0]]))),
        "not e0, e1": Condition.of(without, routed.alpha),
        "tokens": None,
    }
    for name, condition in conditions.items():
        engine.add(name, ids, condition, settings)
    ended = run(engine, list(conditions))
    pool = model.pool.path
    base = str(model.base.model.config._name_or_path)
    [alone] = model.generate([TEXTS[1]], max_new_tokens=8)
    assert ended["routed"].tokens == alone.token_ids
    for name, router in (("bare", "base"), ("e2 alone", "single:e2"), ("tokens", "phatgoose")):
        [wanted] = load(base, pool, router=router).generate([TEXTS[1]], max_new_tokens=8)
        assert ended[name].tokens == wanted.token_ids, name
    assert len({end.tokens for end in ended.values()}) >= 4


def test_prompts_of_one_batch_share_its_passes(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the second one's settings take, the first one's pass waits for it."""
    request = EngineSettings.request

    def late(*arguments: Any) -> RequestSettings:
        time.sleep(0.2)
        return request(*arguments)

    monkeypatch.setattr(EngineSettings, "request", late)
    rows = [piece.row for piece in model.stream(TEXTS[:2], max_new_tokens=8)]
    assert rows != sorted(rows)  # a step of both at a time


def test_requests_join_and_leave_while_it_runs(model: RoutedModel) -> None:
    engine = model.engine()
    try:
        long, late = ids_of(model, TEXTS[2]), ids_of(model, TEXTS[0])
        engine.add("long", long, model.condition([TEXTS[2]]), RequestSettings(60))
        seen: list[str] = []
        for event in events(engine, ["long", "late", "gone"]):
            seen.append(f"{type(event).__name__} {event.request}")
            if len(seen) == 5:
                engine.add("late", late, model.condition([TEXTS[0]]), RequestSettings(6))
                engine.add("gone", late, model.condition([TEXTS[0]]), RequestSettings(400))
            if seen.count("NewToken gone") == 3:
                engine.cancel("gone")
            if isinstance(event, Ended):
                wanted = {"long": "length", "late": "length", "gone": "cancelled"}
                assert event.reason == wanted[event.request]
                if event.request == "late":
                    [alone] = model.generate([TEXTS[0]], max_new_tokens=6)
                    assert event.tokens == alone.token_ids
        assert seen.index("Ended late") < seen.index("Ended long")
        assert seen.count("NewToken gone") < 100
        engine.add("again", late, None, RequestSettings(2))  # it goes on
        assert run(engine, ["again"])["again"].reason == "length"
    finally:
        engine.close()


def test_a_seed_is_the_requests_own(model: RoutedModel, engine: Engine) -> None:
    """The same request gives the same tokens whoever runs beside it, and however often."""
    ids, condition = ids_of(model, TEXTS[3]), model.condition([TEXTS[3]])
    for number in range(6):
        engine.add(str(number), ids, condition, RequestSettings(8, seed=number % 3))
    ended = run(engine, [str(number) for number in range(6)])
    engine.add("alone", ids, condition, RequestSettings(8, seed=1))
    alone = run(engine, ["alone"])["alone"].tokens
    assert ended["1"].tokens == ended["4"].tokens == alone
    assert ended["0"].tokens == ended["3"].tokens != alone


def test_log_probabilities_are_the_models_own(model: RoutedModel, engine: Engine) -> None:
    ids, condition = ids_of(model, TEXTS[1]), model.condition([TEXTS[1]])

    def double(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return 2 * scores

    engine.add("a", ids, condition, RequestSettings(4, processors=(double,), seed=3, logprobs=5))
    told = [event for event in events(engine, ["a"]) if isinstance(event, NewToken)]
    written = [event.token for event in told]
    with torch.inference_mode(), model.attached.routing(condition):
        logits = model.model(input_ids=torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1].float()
    wanted = logits.log_softmax(dim=-1)
    for step, event in enumerate(told):
        assert event.logprob == pytest.approx(wanted[step, event.token].item(), abs=1e-3)
        assert [token for token, _ in event.likeliest] == wanted[step].topk(5).indices.tolist()


def test_a_trace_is_of_its_request_alone(model: RoutedModel, engine: Engine) -> None:
    ids = [ids_of(model, text) for text in TEXTS]
    conditions = [model.condition([text]) for text in TEXTS]
    traces: list[Trace | None] = [
        Trace(model.experts, condition, torch.ones(1, len(row), dtype=torch.bool)) if i in (1, 2) else None
        for i, (row, condition) in enumerate(zip(ids, conditions, strict=True))
    ]
    for i, (row, condition) in enumerate(zip(ids, conditions, strict=True)):
        engine.add(str(i), row, condition, RequestSettings(5), traces[i])
    run(engine, ["0", "1", "2", "3"])
    for i in (1, 2):
        [answer] = model.generate([TEXTS[i]], max_new_tokens=5, trace=True)
        trace = traces[i]
        assert trace is not None and trace.usage() == pytest.approx(answer.usage, abs=1e-3)


def test_a_request_keeps_the_generation_it_began_with(model: RoutedModel, grow_pool, llama_directory: Path) -> None:
    """An expert joins and the router changes in the middle of an answer; both generations share passes."""
    [wanted] = model.generate([TEXTS[2]], max_new_tokens=160)  # it must not end before the change
    engine, ids = model.engine(), ids_of(model, TEXTS[2])
    try:
        engine.add("old", ids, model.condition([TEXTS[2]]), RequestSettings(160))
        tokens = 0
        for event in events(engine, ["old", "new"]):
            tokens += isinstance(event, NewToken)
            if tokens == 3 and isinstance(event, NewToken) and event.request == "old":
                grow_pool(model.pool, llama_directory, "late", seed=77)
                model.reload()
                model.set_router("single:late")
                engine.add("new", ids, model.condition([TEXTS[2]]), RequestSettings(40))
                assert len(model.attached._generations) == 2
            if isinstance(event, Ended) and event.request == "old":
                assert event.tokens == wanted.token_ids
            if isinstance(event, Ended) and event.request == "new":
                new = event.tokens
    finally:
        engine.close()
    assert len(model.attached._generations) == 1  # the old one went with its last request
    assert new == model.generate([TEXTS[2]], max_new_tokens=40)[0].token_ids != wanted.token_ids[:40]


def test_passes_hold_the_generations_of_their_requests_alone(model: RoutedModel) -> None:
    """One that nobody asked for yet could not be dropped when the next router comes in the middle of a pass."""
    attached, engine, ids = model.attached, model.engine(), ids_of(model, TEXTS[2])
    began, held = attached.generation.number, []
    hook = model.model.get_submodule("model.layers.0").register_forward_hook(
        lambda *_: held.append((attached.generation.number, set(attached._running)))
    )
    try:
        engine.add("old", ids, model.condition([TEXTS[2]]), RequestSettings(40))
        changed = False
        for event in events(engine, ["old"]):
            if isinstance(event, NewToken) and not changed:
                model.set_router(STRONG)
                changed = True
    finally:
        hook.remove()
        engine.close()
    later = [running for current, running in held if current != began]
    assert later and all(running == {began} for running in later)


def test_blocks_are_shared_where_the_condition_is_the_same(model: RoutedModel) -> None:
    """Two conversations of one condition compute their beginning once; others, and another generation, do not."""
    from transformers import ContinuousBatchingConfig

    paged = ContinuousBatchingConfig(page_size=16, max_batch_tokens=200, max_requests_per_batch=1, num_blocks=64)
    engine = model.engine(paged)
    widths: list[int] = []

    def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        widths.append(inputs["input_ids"].shape[-1])

    hook = model.model.register_forward_pre_hook(watch, with_kwargs=True)
    ids = ids_of(model, "tell me a story about a fox and a crow " * 3)
    one, other = model.condition(["a"]), model.condition(["quite another thing"])
    try:
        for name, condition in (("first", one), ("same", one), ("other", other)):
            engine.add(name, ids, condition, RequestSettings(3))
            run(engine, [name])
        model.set_router(STRONG)  # equal, but another generation
        engine.add("next", ids, one, RequestSettings(3))
        run(engine, ["next"])
    finally:
        hook.remove()
        engine.close()
    assert widths[::3] == [len(ids), widths[3], len(ids), len(ids)] and widths[3] <= 16


def test_a_processor_that_gives_up_fails_its_own_request(model: RoutedModel, engine: Engine) -> None:
    """A fault in one request's processors ended the requests that shared its pass."""
    ids, condition = ids_of(model, TEXTS[0]), model.condition([TEXTS[0]])

    def give_up(so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if so_far.shape[1] == len(ids) + 2:
            raise QueryError("a token", "none", "Ask for less.")
        return logits

    engine.add("alone", ids, condition, RequestSettings(8))
    expected = run(engine, ["alone"])["alone"].tokens
    engine.add("fails", ids, condition, RequestSettings(8, processors=(give_up,)))
    engine.add("goes on", ids, condition, RequestSettings(8))
    last = {event.request: event for event in events(engine, ["fails", "goes on"])}
    failed, ended = last["fails"], last["goes on"]
    assert isinstance(failed, Failed) and "Ask for less" in str(failed.fault)
    assert isinstance(ended, Ended) and ended.tokens == expected
    engine.add("later", ids, condition, RequestSettings(8))
    assert run(engine, ["later"])["later"].tokens == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_condition_that_is_not_finite_is_refused(model: RoutedModel, engine: Engine, value: float) -> None:
    ids, broken = ids_of(model, TEXTS[0]), Condition.of(torch.full((1, 4), value), torch.ones(1))
    with pytest.raises(QueryError, match="finite"):
        engine.add("broken", ids, broken, RequestSettings(4))
    assert not model.attached._running


def test_logits_that_are_not_finite_are_a_fault(model: RoutedModel, engine: Engine) -> None:
    """An expert of another kind than pools hold: its outputs overflow."""
    site = next(iter(model.attached.prepared.sites))
    layer: Any = model.model.get_submodule(site)
    layer.current.bank.B.fill_(3e38)
    engine.add("broken", ids_of(model, TEXTS[0]), None, RequestSettings(4))
    [event] = [event for event in events(engine, ["broken"]) if not isinstance(event, NewToken)]
    assert isinstance(event, Failed) and "finite logits" in str(event.fault)


def test_a_pass_that_fails_ends_its_requests_and_the_engine_goes_on(model: RoutedModel, engine: Engine) -> None:
    ids = ids_of(model, TEXTS[0])

    def fail(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("of the test")

    engine.add("bad", ids, None, RequestSettings(4, processors=(fail,)))
    [event] = list(events(engine, ["bad"]))
    assert isinstance(event, Failed)
    engine.add("good", ids, None, RequestSettings(4))
    assert run(engine, ["good"])["good"].reason == "length"


def test_a_name_in_use_is_refused(model: RoutedModel, engine: Engine) -> None:
    ids = ids_of(model, TEXTS[0])
    engine.add("a", ids, None, RequestSettings(40))
    with pytest.raises(QueryError, match="new name"):
        engine.add("a", ids, None, RequestSettings(4))
    run(engine, ["a"])
    engine.close()
    assert not model.attached._running


def test_closing_leaves_nothing_behind(model: RoutedModel, engine: Engine) -> None:
    engine.add("a", ids_of(model, TEXTS[0]), None, RequestSettings(400))
    assert engine.next_event(timeout=20) is not None
    engine.close()
    assert not model.attached._running
    model.detach()
