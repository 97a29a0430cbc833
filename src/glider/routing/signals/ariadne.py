"""A global signal by several centroids an expert: tasks whose inputs are of several kinds (arXiv 2606.19079)."""

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
from glider.shapes import Float, Tensor

KIND = "ariadne"


@dataclass(frozen=True)
class Centroids:
    """The largest cosine of a query's embedding with an expert's centroids, as a lead over the other experts."""

    centroids: Float[Tensor, "E C G"]  # of unit length
    needs: frozenset[Need] = frozenset({"inputs"})

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.inputs is not None
        experts, each, _ = self.centroids.shape
        cosines = cosine(features.inputs, self.centroids.flatten(0, 1)).unflatten(1, (experts, each)).amax(dim=-1)
        return lead(cosines, absent(cosines, without)) / USUAL_LEAD


@signal("ariadne", paper="arXiv:2606.19079")
@dataclass(frozen=True)
class Ariadne:
    """global_e = lead of max over e's centroids of cosine(centroid, query), k-means over embeddings of e's inputs.

    ARIADNE takes the adapter of the nearest centroid; of the lead the argmax is the same. The paper leaves open how
    centroids are found and compared: k-means, four an expert, and the cosine are inferred; the lead is ours, for
    alpha's p. Learnt by `glider pool train-router POOL --router ariadne`. Needs the pool's embedder for each query, and
    no LLM.
    """

    def prepare(self, pool: Pool) -> Centroids:
        if pool.index.embedder is None:
            raise RouterError("a pool with an embedder", "one without", "Describe its experts, or choose `examples`.")
        shapes = {"centroids": (len(pool), None, pool.index.embedder.dimension)}
        centroids = read_router(pool, KIND, shapes)[0]["centroids"]
        require_values(pool, KIND, {"centroids": has_unit_length(centroids)})
        return Centroids(torch.nn.functional.normalize(centroids, dim=-1))

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
