"""A global signal by tasks: a query finds its task, and the task the adapter that a small validation set chose
(arXiv 2601.21795)."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import read_router, require_values
from glider.routing.base import Need, QueryFeatures
from glider.routing.scores import cosine, has_unit_length
from glider.routing.signals.base import absent, lead, signal
from glider.routing.signals.ensemble import USUAL_LEAD
from glider.routing.signals.examples import THRESHOLD
from glider.shapes import Bool, Float, Tensor

KIND = "lorauter"
_NO_TASK = -1.0  # the least cosine, of an adapter that is no task's best


@dataclass(frozen=True)
class ByTask:
    """The largest cosine of a query's embedding with the tasks whose best adapter an expert is."""

    tasks: Float[Tensor, "K G"]  # mean embeddings, of unit length
    best: Bool[Tensor, "K E"]
    needs: frozenset[Need] = frozenset({"inputs"})

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.inputs is not None
        cosines = cosine(features.inputs, self.tasks)  # (B, K)
        scores = torch.where(self.best, cosines[:, :, None], _NO_TASK).amax(dim=1)  # (B, E)
        return lead(scores, absent(scores, without)) / USUAL_LEAD


@signal("lorauter", paper="arXiv:2601.21795")
@dataclass(frozen=True)
class Lorauter:
    """global_e = lead of max over tasks t whose best adapter is e of cosine(mean embedding of t's rows, query).

    LoRAuter embeds tasks by small validation sets, not adapters, and finds a task's adapter by its loss there, with
    successive halving; so an adapter of any name may serve a task. Learnt by `glider pool train-router POOL --router
    lorauter` on rows of the pool's tasks. How it weighs several tasks could not be read; here the nearest counts.
    """

    def prepare(self, pool: Pool) -> ByTask:
        if pool.index.embedder is None:
            raise RouterError("a pool with an embedder", "one without", "Describe its experts, or choose `examples`.")
        shapes = {"tasks": (len(pool), pool.index.embedder.dimension), "best": (len(pool), len(pool))}
        tensors, _ = read_router(pool, KIND, shapes)
        best = tensors["best"]
        one_each = ((best == 0) | (best == 1)).all() and (best.sum(dim=1) == 1).all()
        require_values(pool, KIND, {"tasks": has_unit_length(tensors["tasks"]), "best": bool(one_each)})
        return ByTask(torch.nn.functional.normalize(tensors["tasks"], dim=-1), tensors["best"] > 0.5)

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
