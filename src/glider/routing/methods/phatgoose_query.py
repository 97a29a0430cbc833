"""One decision per query: the ablation between routing by token and routing by query."""

from dataclasses import dataclass

import torch

from glider.routing.base import Decision, Site, router, routers
from glider.routing.compose import Composed
from glider.routing.condition import Condition
from glider.routing.local_scores.gates import TrainedGates
from glider.routing.scores import LocalScale
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@router("phatgoose-query")
@dataclass(frozen=True)
class PhatgooseQuery(Composed):
    """score = mean over the prompt's tokens and all sites of PHATGOOSE's local score, the same for every token.

    The prompt runs twice: once by token, to find the means, and once by them. An expert absent at some sites has its
    mean over the others. It was called `tasklevel`, which still names it.
    """

    select: Select = TopK(2)
    local_scale: LocalScale = "width"

    def local_score(self) -> TrainedGates:
        return TrainedGates(self.local_scale)

    def observe(self, scores: Float[Tensor, "B E"]) -> Condition:
        return Condition.of(scores, torch.ones(len(scores)))

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if term is None:
            return self.selection()(self.local_score().scores(x, site))
        return self.selection()(term.masked_fill(site.absent, -torch.inf))


routers.alias("tasklevel", of="phatgoose-query")
