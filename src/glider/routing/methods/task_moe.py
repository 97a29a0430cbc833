"""Task-level MoE: a trained router from a task's representation to each layer's experts (arXiv 2205.12701)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from glider.errors import QueryError, RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import read_router
from glider.routing.base import Decision, GlobalTerm, Prepared, Site, router
from glider.routing.compose import Composed
from glider.routing.nearest import Everywhere
from glider.routing.select import Select, TopK
from glider.routing.signals.base import signals
from glider.shapes import Float, Tensor

KIND = "task-moe"


@router("task-moe", paper="arXiv:2205.12701")
@dataclass(frozen=True)
class TaskMoe(Composed):
    """score at a site = M g(q) + b there, then top-2, the same for every token: a choice for each layer, by the task.

    g(q) (E,) represents the query's task by how well each of the pool's tasks suits it, a global signal's scores: of a
    query with examples or a description the task's, of one without its own. M (E, E) and b (E,) of each site are
    trained jointly on the pool's tasks, each batch of one task under the mean g of its rows. The paper's router is an
    MLP on embeddings of tasks, and its experts are whole layers trained with it; here they are there already. `glider
    pool train-router POOL --router task-moe --signal examples`. Decided in PyTorch; the experts run in any kernel.
    """

    select: Select = TopK(2)
    trained: ClassVar[str] = KIND

    def local_score(self) -> Everywhere:
        return Everywhere()

    def prepare(self, pool: Pool) -> Prepared:
        shapes = {f"{name}.matrix": (len(pool), len(pool)) for name in pool.sites}
        shapes |= {f"{name}.bias": (len(pool),) for name in pool.sites}
        tensors, record = read_router(pool, KIND, shapes)
        signal = record.settings.get("signal")
        if not isinstance(signal, str):
            raise RouterError("the signal that task-moe was trained with", repr(signal), "Train it again.")
        return self.prepared_with(pool, tensors, signal)

    def prepared_with(self, pool: Pool, tensors: Mapping[str, Tensor], signal: str) -> Prepared:
        """What the router makes of a pool, with these weights and this signal."""
        prepared = super().prepare(pool)
        sites = {
            name: replace(site, tensors={part: tensors[f"{name}.{part}"] for part in ("matrix", "bias")})
            for name, site in prepared.sites.items()
        }
        term = GlobalTerm(signals.create(signal).prepare(pool), p=1.0, gamma=0.0, beta=1.0, signal=signal)
        return replace(prepared, sites=sites, global_term=term)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if term is None:
            remedy = "Use RoutedModel's methods, or `with attached.routing(condition)`."
            raise QueryError("a query (this router has no local score)", "none", remedy)
        scores = term @ site["matrix"].T + site["bias"]
        return self.selection()(scores.masked_fill(site.absent, -torch.inf))
