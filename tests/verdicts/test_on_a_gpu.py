"""A whole model on a GPU answers as the same one does on the CPU, where there is a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

from .conftest import BETWEEN, STRANGER, own_query

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ROUTERS = ("glider", "phatgoose", "arrow", "spectr", "merge", "single:e1")
QUERIES = [
    *("sort 3 1 2", "a film " * 20, own_query(1), STRANGER, BETWEEN),
    *(Query(own_query(2), verdict="base"), Query(f"{BETWEEN} {BETWEEN}", verdict="route")),
]


@pytest.fixture(params=ROUTERS)
def pair(request: pytest.FixtureRequest, base_directory: Path, calibrated: Callable) -> tuple[RoutedModel, RoutedModel]:
    """A model on the GPU, and the same one on the CPU."""
    pool = calibrated(base_directory)
    on_gpu, on_cpu = (
        load(str(base_directory), pool.path, router=request.param, device=device) for device in ("cuda", "cpu")
    )
    return on_gpu, on_cpu


def test_answers_are_the_cpus(pair: tuple[RoutedModel, RoutedModel]) -> None:
    got, expected = (model.generate(QUERIES, max_new_tokens=12) for model in pair)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in expected]
    assert [answer.verdict for answer in got] == [answer.verdict for answer in expected]
    choices = [["yes", "no, never"]] * len(QUERIES)
    scores, others = (model.score_many(QUERIES, choices)[0] for model in pair)
    for row, other in zip(scores, others, strict=True):
        expected_values = [one.log_likelihood for one in other]
        assert [one.log_likelihood for one in row] == pytest.approx(expected_values, abs=2e-3, rel=2e-4)


@pytest.mark.parametrize("router", ["glider"])
def test_streams_and_packed_passes_are_those_of_generate(
    llama_directory: Path, calibrated: Callable, router: str
) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path, router=router, device="cuda")
    alone = [model.generate([query], max_new_tokens=12)[0] for query in QUERIES]
    assert ["".join(model.stream(query, max_new_tokens=12)) for query in QUERIES] == [one.text for one in alone]
    packed = model.generate_batch(QUERIES, max_new_tokens=12)
    assert [answer.token_ids for answer in packed] == [answer.token_ids for answer in alone]


def test_a_trace_is_the_cpus(pair: tuple[RoutedModel, RoutedModel]) -> None:
    (tokens, trace), (_, other) = (model.trace(BETWEEN) for model in pair)
    assert tokens and set(trace.kernels) & {"triton", "torch"}
    assert trace.usage() == pytest.approx(other.usage(), abs=1e-3)


def test_memory_for_a_few_experts_is_enough(llama_directory: Path, calibrated: Callable) -> None:
    pool = calibrated(llama_directory)
    whole, limited = (
        load(str(llama_directory), pool.path, router="phatgoose", device="cuda", expert_memory=memory)
        for memory in (None, "100kB")
    )
    got, expected = (model.generate(QUERIES, max_new_tokens=12) for model in (limited, whole))
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in expected]
