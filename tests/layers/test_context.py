"""Which query a token belongs to: rows, beams, packed sequences, threads."""

import threading
import warnings
from pathlib import Path

import pytest
import torch

from glider.errors import QueryError
from glider.inference.base_model import load_base
from glider.layers.attach import Attached, attach
from glider.layers.context import Batch, RoutingContext
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose

IDS = torch.tensor([[40, 71, 99, 5], [8, 8, 150, 31]])
STRONG = Condition.of(torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]), torch.tensor([103.0, 3.0]))


@pytest.fixture
def attached(llama_directory: Path, make_pool) -> Attached:
    return attach(load_base(str(llama_directory)).model, make_pool(llama_directory, 3), Glider(p=0.8))


def logits(attached: Attached, ids: torch.Tensor = IDS, **more: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return attached.model(input_ids=ids, **more).logits


def row(condition: Condition, index: int) -> Condition:
    return condition.rows([index])


def test_without_a_query_the_local_term_decides_and_a_warning_says_so(attached: Attached) -> None:
    with pytest.warns(UserWarning, match="no query is set: routing by the local term alone"):
        got = logits(attached)
    with warnings.catch_warnings(), attached.routing(None):
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(logits(attached), got)


def test_a_router_without_a_global_term_needs_no_query(llama_directory: Path, make_pool) -> None:
    model = load_base(str(llama_directory)).model
    local = attach(model, make_pool(llama_directory, 2), Phatgoose())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        logits(local)


def test_a_condition_that_does_not_divide_the_tokens_is_an_error(attached: Attached) -> None:
    three = Condition.of(torch.zeros(3, 3), torch.ones(3))
    with pytest.raises(QueryError, match="3 queries"), attached.routing(three):
        logits(attached)


def test_a_condition_for_another_number_of_rows_is_an_error(attached: Attached) -> None:
    """Three rows of four tokens divide among two queries by chance: the border would fall inside a row."""
    with pytest.raises(QueryError, match="2 queries"), attached.routing(STRONG):
        logits(attached, torch.cat([IDS, IDS[:1]]))


def test_more_queries_than_rows_is_an_error(attached: Attached) -> None:
    """One row of four tokens is not two queries."""
    with pytest.raises(QueryError, match="2 queries"), attached.routing(STRONG):
        logits(attached, IDS[:1])


@pytest.mark.parametrize("length", [3, 9])
def test_a_map_of_another_length_is_an_error(attached: Attached, length: int) -> None:
    mapped = torch.zeros(length, dtype=torch.long)
    with pytest.raises(QueryError, match="map of 8 tokens"), attached.routing(STRONG, token_to_query=mapped):
        logits(attached)


def test_rows_of_one_query_stand_together() -> None:
    context = RoutingContext()
    with context.use(Batch.of(STRONG)):
        [segment] = context.segments(6, None, torch.device("cpu"))
    term = segment.term_of(6)
    assert term is not None and STRONG.term is not None
    assert torch.equal(term, STRONG.term[[0, 0, 0, 1, 1, 1]])


def test_an_explicit_map_equals_the_implicit_one(attached: Attached) -> None:
    with attached.routing(STRONG):
        wanted = logits(attached)
    with attached.routing(STRONG, token_to_query=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])):
        assert torch.equal(logits(attached), wanted)
    with attached.routing(STRONG, token_to_query=torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])):
        assert not torch.allclose(logits(attached), wanted, atol=0.1)


def test_sequences_packed_into_one_row_keep_their_queries(attached: Attached) -> None:
    """Block-diagonal attention, positions from zero: each sequence as if alone."""
    first, second = IDS[0, :3], IDS[1]
    alone = []
    for index, ids in enumerate((first, second)):
        with attached.routing(row(STRONG, index)):
            alone.append(logits(attached, ids[None])[0])
    mapped = torch.tensor([0] * 3 + [1] * 4)
    causal = torch.ones(7, 7).tril().bool() & (mapped[:, None] == mapped[None])
    mask = torch.zeros(1, 1, 7, 7).masked_fill(~causal, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with attached.routing(STRONG, token_to_query=mapped):
        packed = logits(attached, torch.cat([first, second])[None], attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(packed[0], torch.cat(alone), atol=2e-3, rtol=1e-4)


def test_the_condition_ends_with_its_block_even_on_a_fault(attached: Attached) -> None:
    with pytest.raises(ZeroDivisionError), attached.routing(STRONG):
        raise ZeroDivisionError
    assert attached.context.batch is None


def test_an_inner_block_gives_way_to_the_outer(attached: Attached) -> None:
    with attached.routing(STRONG):
        outer = attached.context.batch
        with attached.routing(None):
            assert attached.context.batch is not outer
        assert attached.context.batch is outer


def test_two_threads_share_a_model_with_their_own_queries(attached: Attached) -> None:
    wanted = []
    for index in range(2):
        with attached.routing(row(STRONG, index)):
            wanted.append(logits(attached, IDS[:1]))
    assert not torch.allclose(wanted[0], wanted[1], atol=0.1)
    got: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    both_inside = threading.Barrier(2)

    def ask(index: int) -> None:
        with attached.routing(row(STRONG, index)):
            for _ in range(5):
                both_inside.wait(timeout=20)
                got[index].append(logits(attached, IDS[:1]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert len(got[index]) == 5
        for result in got[index]:
            torch.testing.assert_close(result, wanted[index], atol=1e-4, rtol=1e-4)
