"""One decision per query: the ablation between routing by token and routing by query."""

from dataclasses import dataclass

import torch

from glider.routing.base import Condition, Decision, Site, router
from glider.routing.compose import Composed
from glider.routing.parts import TrainedGates
from glider.routing.scores import LocalScale
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@router("tasklevel")
@dataclass(frozen=True)
class TaskLevel(Composed):
    """score = mean over the prompt's tokens and all sites of PHATGOOSE's local score, the same for every token.

    The prompt runs twice: once by token, to find the means, and once by them. An expert absent at some sites has its
    mean over the others.
    """

    select: Select = TopK(2)
    local_scale: LocalScale = "width"

    @property
    def local(self) -> TrainedGates:
        return TrainedGates("tasklevel", self.local_scale)

    def observe(self, scores: Float[Tensor, "B E"]) -> Condition:
        return Condition(scores, torch.ones(len(scores)))

    def route(self, site: Site, x: Float[Tensor, "T D"], condition: Float[Tensor, "T E"] | None) -> Decision:
        if condition is None:
            return self.select(self.local.scores(x, site))
        return self.select(condition.masked_fill(site.absent, -torch.inf))
