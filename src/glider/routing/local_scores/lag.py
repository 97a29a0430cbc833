"""LAG's score: Arrow's cheap score picks a few experts for each token, SpectR's ranks them (arXiv 2507.05346)."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Site
from glider.routing.local_scores.base import local_score
from glider.routing.spectral import bases
from glider.shapes import Float, Tensor


@local_score("lag", paper="arXiv:2507.05346")
@dataclass(frozen=True)
class FilteredNorm:
    """|A'_e x| (SpectR's score) for the `candidates` experts of largest |v_e . x| (Arrow's), minus infinity for others.

    Both come of one spectral basis A'_e = S_e V_e^T, v_e its first direction at unit length. A token costs E products
    of one direction and `candidates` of all directions, so it pays for pools of hundreds. The paper's abstract gives
    the two stages; the default of 20 candidates is inferred.
    """

    candidates: int = 20

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise RouterError("candidates of at least 1", str(self.candidates), "Give 1 or more.")

    def prepare(self, pool: Pool) -> dict[str, Site]:
        sites = {}
        for basis in bases(pool):
            first = torch.nn.functional.normalize(basis.rows[:, 0], dim=-1)  # (E, D)
            sites[basis.name] = Site(basis.name, basis.site.absent, {"directions": first, "basis": basis.rows})
        return sites

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        x, basis = x.float(), site["basis"]
        coarse = (x @ site["directions"].T).abs().masked_fill(site.absent, -torch.inf)  # (T, E)
        count = min(self.candidates, int((~site.absent).sum()))
        shortlisted = torch.zeros_like(coarse, dtype=torch.bool).scatter_(1, coarse.topk(count, dim=-1).indices, True)
        if count == len(site.absent):
            answers = (x @ basis.flatten(0, 1).T).unflatten(-1, basis.shape[:2])  # (T, E, S)
            return answers.norm(dim=-1)
        scores = torch.full_like(coarse, -torch.inf)
        for expert in shortlisted.any(dim=0).nonzero()[:, 0].tolist():
            tokens = shortlisted[:, expert].nonzero()[:, 0]
            scores[tokens, expert] = (x[tokens] @ basis[expert].T).norm(dim=-1)
        return scores
