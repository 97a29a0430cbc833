"""A routed model under `torch.compile`: one graph, which serves whoever asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import glider
from glider.calibration.automatic import calibrated
from glider.inference.model import RoutedModel

# where this is missing, transformers' own code asks for it in a compiled pass
pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers' models do not compile with this PyTorch"
)

PROMPTS = ["the e0 e01 of e02", "the e1 and e12 of e13"]
OTHERS = ["the e2 e23 e25", "What is the capital of Egypt?"]


class Graphs:
    """A backend of `torch.compile` that runs graphs as they are, through functionalisation, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        from torch._dynamo.backends.debugging import aot_eager

        self.count += 1
        return aot_eager(graph, inputs)


@pytest.fixture
def model(pool_with_profiles, llama_directory: Path) -> Iterator[RoutedModel]:
    torch._dynamo.reset()
    yield glider.load(str(llama_directory), calibrated(pool_with_profiles()).path)
    torch._dynamo.reset()


def inputs(model: RoutedModel, prompts: list[str] = PROMPTS) -> dict[str, torch.Tensor]:
    return dict(model.tokenizer(prompts, return_tensors="pt", padding=True))


def logits(model: RoutedModel, queries: list, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode(), model.routing(queries):
        return model.model(**given).logits.clone()


def by_verdict(verdict: str) -> list[glider.Query]:
    return [glider.Query(text, verdict=verdict) for text in PROMPTS]


@pytest.mark.parametrize("kernel", ["native", "torch", "reference"])
def test_one_graph_serves_every_condition(model: RoutedModel, kernel: str, llama_directory: Path) -> None:
    model = glider.load(str(llama_directory), model.pool.path, kernel=kernel)
    given, graphs = inputs(model), Graphs()
    mixed = [glider.Query(PROMPTS[0], verdict="base"), glider.Query(PROMPTS[1], verdict="route")]
    cases = [PROMPTS, OTHERS, by_verdict("route"), by_verdict("base"), mixed, PROMPTS]
    expected = [logits(model, case, given) for case in cases]
    assert min((expected[0] - other).abs().max().item() for other in (expected[1], expected[3])) > 1e-3
    model.model.forward = torch.compile(model.model.forward, backend=graphs, fullgraph=True, dynamic=False)
    for case, right in zip(cases, expected, strict=True):
        torch.testing.assert_close(logits(model, case, given), right, atol=1e-5, rtol=1e-5)
    assert graphs.count == 1
    with model.attached.bare(), torch.inference_mode():
        bare = model.model(**given).logits
    assert torch.equal(logits(model, by_verdict("base"), given), bare)


def test_a_compiled_model_finds_its_queries_by_itself(model: RoutedModel) -> None:
    given = inputs(model)
    with torch.inference_mode():
        expected = model.model(**given).logits
        compiled = torch.compile(model.model, backend="aot_eager", dynamic=False)
        torch.testing.assert_close(compiled(**given).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_generation_over_a_static_cache(model: RoutedModel) -> None:
    expected = [answer.text for answer in model.generate(PROMPTS, max_new_tokens=6)]
    model.model.forward = torch.compile(model.model.forward, backend=Graphs(), dynamic=False)
    result = model.generate(PROMPTS, max_new_tokens=6, cache_implementation="static")
    assert [answer.text for answer in result] == expected


@pytest.mark.slow
def test_a_trace_sees_a_compiled_pass(model: RoutedModel) -> None:
    prompts = [glider.Query(PROMPTS[0], verdict="route")]
    expected = model.generate(prompts, max_new_tokens=3, trace=True)[0].usage
    model.model.forward = torch.compile(model.model.forward, backend="aot_eager")
    result = model.generate(prompts, max_new_tokens=3, trace=True)[0].usage
    assert expected and result == pytest.approx(expected, abs=1e-5)


def test_another_router_and_a_detached_pool_after_compiling(model: RoutedModel) -> None:
    given = inputs(model)
    model.model.forward = torch.compile(model.model.forward, backend="aot_eager", dynamic=False)
    before = logits(model, PROMPTS, given)
    model.set_router("single:e1")
    single = logits(model, PROMPTS, given)
    assert (before - single).abs().max() > 1e-3
    del model.model.forward
    torch.testing.assert_close(single, logits(model, PROMPTS, given), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_inductors_code_is_right_too(model: RoutedModel) -> None:
    given = inputs(model)
    expected = [logits(model, case, given) for case in (PROMPTS, OTHERS, by_verdict("base"))]
    model.model.forward = torch.compile(model.model.forward, fullgraph=True, dynamic=False)
    for case, right in zip((PROMPTS, OTHERS, by_verdict("base")), expected, strict=True):
        torch.testing.assert_close(logits(model, case, given), right, atol=1e-4, rtol=1e-4)
