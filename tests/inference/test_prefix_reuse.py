"""What a turn of a conversation takes from the cache of the turns before it, and what it must not take."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import ContinuousBatchingConfig

from glider.inference import packed_engine
from glider.inference.engine import Ended, NewToken, PrefixCache, Reuse, events
from glider.inference.model import RoutedModel
from glider.inference.packed_engine import PackedEngine
from glider.inference.sampler import RequestSettings
from glider.inference.spec import load
from glider.routing.condition import Condition, Settled
from glider.routing.methods.glider import Glider

PAGE, NEW = 16, 20
FIRST = list(range(3, 3 + 70))
ROUTED = Condition.of(torch.tensor([[1.0, 0.0, -1.0, 0.5]]), torch.tensor([3.0]))
OTHER = Condition.of(torch.tensor([[-1.0, 1.0, 0.0, 0.5]]), torch.tensor([103.0]))


def settled(expert: int, *scores: float) -> Condition:
    by_scores = Condition.of(torch.tensor([scores]), torch.tensor([103.0]))
    return Condition(
        1, by_scores.global_scores, by_scores.alpha, settled=Settled(torch.tensor([[expert]]), torch.ones(1, 1))
    )


@pytest.fixture
def model(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory, 4).path, router=Glider(p=-1.0))


@pytest.fixture
def engine(model: RoutedModel) -> Iterator[PackedEngine]:
    with_pages = ContinuousBatchingConfig(page_size=PAGE, max_batch_tokens=256)
    engine = PackedEngine(model.attached, with_pages)
    yield engine
    engine.close()


def answer(engine: PackedEngine, name: str, ids: list[int], condition: Condition) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of its prompt the cache had."""
    before = engine.prefix_cache
    engine.add(name, ids, condition, RequestSettings(NEW))
    (ended,) = [event for event in events(engine, [name]) if isinstance(event, Ended)]
    after = engine.prefix_cache
    assert after.queries - before.queries == len(ids)
    return list(ended.tokens), after.hits - before.hits


def alone(model: RoutedModel, ids: list[int], condition: Condition) -> list[int]:
    """The same by plain `generate`."""
    with torch.inference_mode(), model.attached.routing(condition):
        bare = model.model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return bare[0, len(ids) :].tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ROUTED, ROUTED),
        (settled(2, 0.1, 0.2, 0.9, 0.3), settled(2, 0.3, 0.1, 0.8, 0.0)),  # both turns fit: the same treatment
        (Condition.nobody(1), Condition.nobody(1)),
    ],
    ids=["routed", "settled", "bare"],
)
def test_a_turn_takes_up_what_the_turns_before_it_left(
    model: RoutedModel, engine: PackedEngine, first: Condition, second: Condition
) -> None:
    """Prompt and answer of the first turn are the beginning of the second's prompt."""
    earlier, none = answer(engine, "first", FIRST, first)
    more = [*FIRST, *earlier, *range(100, 130)]
    got, shared = answer(engine, "second", more, second)
    assert none == 0
    assert shared == (len(FIRST) + NEW - 1) // PAGE * PAGE  # whole pages; the last token was never computed
    assert (earlier, got) == (alone(model, FIRST, first), alone(model, more, second))


def test_turns_of_unlike_conditions_share_nothing(
    model: RoutedModel, engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values depend on who is asked: taken over, they make other answers."""
    earlier, _ = answer(engine, "first", FIRST, ROUTED)
    more = [*FIRST, *earlier, *range(100, 130)]
    for number, condition in enumerate((OTHER, settled(2, 0.1, 0.2, 0.9, 0.3), Condition.nobody(1))):
        got, shared = answer(engine, f"other{number}", more, condition)
        assert (shared, got) == (0, alone(model, more, condition))
    monkeypatch.setattr(packed_engine, "_salt", lambda condition, generation, cache: ())
    earlier, _ = answer(engine, "again", FIRST[::-1], ROUTED)
    more = [*FIRST[::-1], *earlier, *range(100, 130)]
    got, shared = answer(engine, "taken over", more, OTHER)
    assert shared > 0
    assert got != alone(model, more, OTHER)


def test_turns_of_unlike_generations_share_nothing(model: RoutedModel, engine: PackedEngine) -> None:
    earlier, _ = answer(engine, "first", FIRST, ROUTED)
    model.reload()
    got, shared = answer(engine, "second", [*FIRST, *earlier], ROUTED)
    assert (shared, got) == (0, alone(model, [*FIRST, *earlier], ROUTED))


def test_what_is_evicted_is_computed_anew(model: RoutedModel) -> None:
    small = ContinuousBatchingConfig(page_size=PAGE, max_batch_tokens=256, num_blocks=12, safety_margin=0.0)
    engine = PackedEngine(model.attached, small)
    try:
        earlier, _ = answer(engine, "first", FIRST, ROUTED)
        answer(engine, "other", FIRST[::-1] + FIRST[:30], ROUTED)
        got, shared = answer(engine, "second", [*FIRST, *earlier], ROUTED)
    finally:
        engine.close()
    assert (shared, got) == (0, alone(model, [*FIRST, *earlier], ROUTED))


def test_a_digest_leaves_out_what_its_row_does_not_use() -> None:
    bare = Condition(1, ROUTED.global_scores, ROUTED.alpha, bare=torch.tensor([True]))
    assert bare.digest(0) == Condition.nobody(1).digest(0)
    assert settled(2, 0.1).digest(0) == settled(2, 0.7).digest(0) != settled(1, 0.1).digest(0)
    unsettled = Condition(
        1, ROUTED.global_scores, ROUTED.alpha, settled=Settled(torch.ones(1, 1).long(), torch.zeros(1, 1))
    )
    assert unsettled.digest(0) == ROUTED.digest(0)
    digests = {one.digest(0) for one in (ROUTED, OTHER, settled(2, 0.1), Condition.nobody(1), Condition.local(1))}
    assert len(digests) == 5
    assert PrefixCache() == PrefixCache(0, 0)


def test_what_is_told_of_the_cache_is_what_was_reused(engine: PackedEngine) -> None:
    """Each token of an answer says it, and requests of another cache share nothing."""

    def reuse(name: str, cache: str = "", new: int = 2) -> Reuse | None:
        engine.add(name, FIRST, ROUTED, RequestSettings(new, cache=cache))
        tokens = [event for event in events(engine, [name]) if isinstance(event, NewToken)]
        assert len({event.reuse for event in tokens}) == 1
        return tokens[0].reuse

    pages = len(FIRST) // PAGE * PAGE
    assert reuse("ends with its first token", new=1) == Reuse(0, 0)  # transformers shares no page of one that has ended
    assert reuse("first") == Reuse(0, pages)
    assert reuse("again") == Reuse(pages, 0)
    assert reuse("another key's", "bob") == Reuse(0, pages)
    assert reuse("and again", "bob") == Reuse(pages, 0)
