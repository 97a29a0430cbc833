"""Layers that see one input are answered in one step, and each is right whatever it is given."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from glider.errors import QueryError
from glider.layers.bank import Bank
from glider.layers.context import Batch, Part, RoutingContext
from glider.layers.kernels import native
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.layers.trace import Trace
from glider.routing.base import Site
from glider.routing.condition import Condition, Settled
from glider.routing.methods.glider import Glider
from glider.routing.scores import standardise

pytestmark = pytest.mark.skipif(native.extension() is None, reason=f"no native kernel: {native.why_absent()}")
EXPERTS, RANK, WIDTH = 5, 3, 20
OUTS = {"a.q": 24, "a.k": 8, "a.v": 8}
CONDITIONS = {
    "routed": Condition.of(
        torch.tensor([[0.5, 0.1, 0.3, 0.2, 0.6], [0.1, 0.9, 0.2, 0.4, 0.3]]), torch.tensor([3.0, 3.0])
    ),
    "settled": Condition(2, settled=Settled(torch.tensor([[1], [3]]), torch.ones(2, 1))),
    "alike": Condition(2, settled=Settled(torch.tensor([[1, 2, 4], [0, 3, 1]]), torch.full((2, 3), 1 / 3))),
    "one a stranger": Condition(
        2, settled=Settled(torch.tensor([[1], [0]]), torch.ones(2, 1)), bare=torch.tensor([False, True])
    ),
    "strangers": Condition.nobody(2),
}
conditions = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)


@dataclass
class Block:
    """Three layers of one module, and one of another."""

    context: RoutingContext
    layers: dict[str, RoutedLinear]

    @property
    def three(self) -> tuple[RoutedLinear, RoutedLinear, RoutedLinear]:
        return self.layers["a.q"], self.layers["a.k"], self.layers["a.v"]

    def attend(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer in self.three]

    def computed_ahead(self) -> list[str]:
        """The layers whose outputs wait for them."""
        shared = self.context.here.shared
        return [] if shared is None else [str(layer.name) for layer in shared.outputs]


@pytest.fixture
def block() -> Block:
    return make_block()


def make_block() -> Block:
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    context, layers = RoutingContext(), {}
    for name, out in {**OUTS, "b.q": 24}.items():
        a = torch.randn(EXPERTS, RANK, WIDTH, generator=chance)
        b = torch.randn(EXPERTS, out, RANK, generator=chance)
        gates = standardise(torch.randn(EXPERTS, WIDTH, generator=chance))
        site = Site(name, torch.zeros(EXPERTS, dtype=torch.bool), {"gates": gates})
        base = nn.Linear(WIDTH, out)
        layers[name] = RoutedLinear.over(
            base, RoutedSite(site, Bank(a, b, torch.ones(EXPERTS)), Glider(p=0.8)), context
        )
    return Block(context, layers)


def tokens(seed: int = 1, length: int = 3) -> torch.Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@conditions
@pytest.mark.parametrize("length", [0, 1, 3, 40])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_together_as_apart(block: Block, condition: Condition, length: int, mode: Callable) -> None:
    apart = make_block()
    batch = Batch.of(condition)
    with mode(), block.context.use(batch), apart.context.use(batch):
        for seed in range(3):
            x = tokens(seed, length)
            got = [block.layers["a.q"](x)]
            if length:
                ahead = [] if condition is CONDITIONS["strangers"] or not seed else ["a.k", "a.v"]
                assert block.computed_ahead() == ahead
            got += [block.layers["a.k"](x), block.layers["a.v"](x)]
            expected = [layer(x.clone()) for layer in apart.three]
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_first_answers_for_those_that_followed_it_before(block: Block) -> None:
    with torch.inference_mode(), block.context.use(Batch.of(CONDITIONS["settled"])):
        block.attend(tokens())
        assert block.computed_ahead() == []
        x = tokens()
        block.layers["a.q"](x)
        assert block.computed_ahead() == ["a.k", "a.v"]
        block.layers["a.k"](x)
        block.layers["a.v"](x)
        assert block.computed_ahead() == []


@conditions
def test_a_layer_that_sees_another_input_is_right(block: Block, condition: Condition) -> None:
    """Its name is that of one that followed; its input is not."""
    q, k, v = block.three
    with torch.inference_mode(), block.context.use(Batch.of(condition)):
        block.attend(tokens())
        x, other = tokens(2), tokens(3)
        q(x)
        got = k(other), v(other)
        for one, layer in zip(got, (k, v), strict=True):
            torch.testing.assert_close(one, layer(other.clone()), atol=1e-5, rtol=1e-5)


@conditions
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_an_input_that_changes_between_two_layers_is_seen(block: Block, condition: Condition, mode: Callable) -> None:
    q, k, v = block.three
    with mode(), block.context.use(Batch.of(condition)):
        block.attend(tokens())
        x = tokens(2)
        q(x)
        x[1, 2, 5] += 1
        got = k(x), v(x)
        for one, layer in zip(got, (k, v), strict=True):
            torch.testing.assert_close(one, layer(x.clone()), atol=1e-5, rtol=1e-5)


def test_another_batch_has_outputs_of_its_own(block: Block) -> None:
    q, k, _ = block.three
    x = tokens()
    with torch.inference_mode():
        with block.context.use(Batch.of(CONDITIONS["settled"])):
            block.attend(tokens())
            q(x)
            with block.context.use(Batch.of(CONDITIONS["strangers"])):
                assert torch.equal(k(x), k.base(x))
        assert block.context.here.shared is None, "nothing outlives its batch"


def test_what_did_not_come_is_not_computed_ahead_again(block: Block) -> None:
    q, k, _ = block.three
    with torch.inference_mode(), block.context.use(Batch.of(CONDITIONS["settled"])):
        block.attend(tokens())
        for seed in range(3):
            x = tokens(seed)
            q(x)
            k(x)
        x = tokens(5)
        q(x)
        assert block.computed_ahead() == ["a.k"]


def test_layers_of_other_modules_do_not_join(block: Block) -> None:
    with torch.inference_mode(), block.context.use(Batch.of(CONDITIONS["settled"])):
        for seed in range(2):
            x = tokens(seed)
            block.layers["a.q"](x)
            assert block.computed_ahead() == []
            block.layers["b.q"](x)


def test_a_base_that_may_do_more_than_compute_is_called_in_its_turn(block: Block) -> None:
    q, k, _ = block.three
    calls = []
    with torch.inference_mode(), block.context.use(Batch.of(CONDITIONS["settled"])):
        block.attend(tokens())
        k.base.register_forward_hook(lambda *_: calls.append("k"))
        x = tokens(2)
        q(x)
        assert calls == []
        k(x)
        assert calls == ["k"]


def test_a_batch_of_strangers_goes_straight_to_the_base(block: Block) -> None:
    batch = Batch.of(CONDITIONS["strangers"])
    assert batch.strangers == 2 and not Batch.of(CONDITIONS["one a stranger"]).strangers
    assert not Batch.of(CONDITIONS["strangers"], recorder=Trace([], None, torch.ones(2, 1).bool())).strangers, (
        "a trace shows them too"
    )
    parts = (Part(0, CONDITIONS["strangers"]), Part(0, CONDITIONS["settled"]))
    assert not Batch(parts).strangers and not Batch.of(None).strangers
    with torch.inference_mode(), block.context.use(batch):
        x = tokens()
        for layer, y in zip(block.three, block.attend(x), strict=True):
            assert torch.equal(y, layer.base(x))
        assert block.context.here.shared is None and not batch._segments, "nothing is prepared for nobody"
        with pytest.raises(QueryError, match="rows for 2 queries"):
            block.three[0](tokens()[:1])


def test_a_stranger_beside_others_has_the_bare_layer_to_the_bit(block: Block) -> None:
    with torch.inference_mode(), block.context.use(Batch.of(CONDITIONS["one a stranger"])):
        for seed in range(3):
            x = tokens(seed)
            for layer, y in zip(block.three, block.attend(x), strict=True):
                assert torch.equal(y[1], layer.base(x)[1])
                assert not torch.equal(y[0], layer.base(x)[0])


def test_gradients_pass_as_before(block: Block) -> None:
    with block.context.use(Batch.of(CONDITIONS["settled"])):
        for _ in range(2):
            x = tokens().requires_grad_()
            torch.stack([y.square().sum() for y in block.attend(x)]).sum().backward()
            assert x.grad is not None and x.grad.abs().sum() > 0
