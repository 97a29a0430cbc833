"""Routes tokens on a device whose tensors have shapes and no values, and prints what was done, as JSON.

It is a process of its own because PyTorch keeps such a device until its end. An operation whose result the host would
have to see cannot run on these tensors; a copy between devices is noted.
"""

import json
from typing import Any

import torch
from cases import random_case
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from glider.layers.bank import Bank
from glider.layers.context import Batch, RoutingContext
from glider.layers.kernels.gpu import Blocks
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.routing.base import Router, Site
from glider.routing.condition import Condition
from glider.routing.methods.arrow import Arrow
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.select import TopK, TopP

ROUTERS = {
    "glider": Glider(p=0.8),
    "phatgoose": Phatgoose(),
    "phatgoose, all": Phatgoose(TopK(99)),
    "phatgoose, top-p": Phatgoose(TopP(0.6)),
    "arrow": Arrow(),
}
_setup_privateuseone_for_python_backend("valueless")
DEVICE = torch.device("valueless:0")


class Watch(TorchDispatchMode):
    """Notes every operation, and those that carry values from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations.add(name)
        result = func(*args, **(kwargs or {}))
        values = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        if len({value.device for value in values}) > 1:
            self.copies.append(name)
        return result


def layer_of(router: Router, experts: int, fake: FakeTensorMode, rank: int = 3) -> RoutedLinear:
    case = random_case(0, experts=experts, absent=1, rank=rank)

    def there(tensor: torch.Tensor | None) -> torch.Tensor:
        assert tensor is not None
        return fake.from_tensor(tensor).to(DEVICE)

    bank = Bank(there(case.bank.A), there(case.bank.B), there(case.bank.scaling))
    site = Site("s", there(case.site.absent), {name: there(case.site["gates"]) for name in ("gates", "directions")})
    base = torch.nn.Linear(20, 18, device=DEVICE)
    return RoutedLinear.over(base, RoutedSite(site, bank, router), RoutingContext())


def routed(router: Router, tokens: int, experts: int, mapped: bool) -> dict[str, Any]:
    """Two calls in one batch: the second finds the query's term where the first put it."""
    with FakeTensorMode() as fake, torch.no_grad():
        layer = layer_of(router, experts, fake)
        condition = (
            Condition.of(torch.rand(tokens, experts), torch.ones(tokens)) if isinstance(router, Glider) else None
        )
        x, watches = torch.randn(tokens, 1, 20, device=DEVICE), []
        with layer.context.use(Batch.of(condition, torch.arange(tokens, device=DEVICE) if mapped else None)):
            for _ in range(2):
                with Watch() as watch:
                    output = layer(x)
                watches.append(watch)
        assert output.device == DEVICE and output.shape == (tokens, 1, 18)
    return {"first": watches[0].copies, "then": watches[1].copies, "operations": sorted(watches[1].operations)}


def refused(tokens: int, rank: int) -> str:
    """The error of a call that asks the host."""
    with FakeTensorMode() as fake, torch.no_grad():
        try:
            layer_of(Phatgoose(), 5, fake, rank)(torch.randn(1, tokens, 20, device=DEVICE))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return str(error)
    return ""


def blocks() -> dict[str, Any]:
    with FakeTensorMode():
        experts, weights = torch.ones(300, 2, dtype=torch.long, device=DEVICE), torch.rand(300, 2, device=DEVICE)
        scaling = torch.ones(5, device=DEVICE)
        with Watch() as watch:
            made = Blocks.of(experts, weights, scaling, 32)
    assert made.order.device == DEVICE
    return {"copies": watch.copies, "operations": sorted(watch.operations), "blocks": len(made.owners)}


cases = [(1, 1, False), (1, 5, True), (16, 5, False), (16, 60, True)]
routes = {name: [routed(router, *case) for case in cases] for name, router in ROUTERS.items()}
print(
    json.dumps(
        {
            "routes": routes,
            "blocks": blocks(),
            "refused": {f"{n} x {r}": refused(n, r) for n in (16, 17) for r in (3, 900)},
        }
    )
)
