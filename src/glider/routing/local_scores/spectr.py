"""SpectR's score: how strongly an adapter answers a token, by its full spectrum (arXiv 2504.03454)."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Site
from glider.routing.local_scores.base import local_score
from glider.routing.spectral import bases
from glider.shapes import Float, Tensor


@local_score("spectr", paper="arXiv:2504.03454")
@dataclass(frozen=True)
class SpectralNorm:
    """|A'_e x| with A'_e = S_e V_e^T and s_e B_e A_e = U_e S_e V_e^T: the length of what the adapter would add.

    The authors' published code scores by |V_e^T x|, its singular values beside U_e. We weigh the directions, which
    makes the chosen adapter the one that answers strongest (so their arXiv 2509.18093 describes SpectR).
    """

    def prepare(self, pool: Pool) -> dict[str, Site]:
        return {basis.name: Site(basis.name, basis.site.absent, {"basis": basis.rows}) for basis in bases(pool)}

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        basis = site["basis"]  # (E, S, D), the rows of A'_e = S_e V_e^T, zero beyond an expert's own rank
        experts, directions, _ = basis.shape
        answers = x.float() @ basis.flatten(0, 1).T  # (T, E * S)
        return answers.unflatten(-1, (experts, directions)).norm(dim=-1).masked_fill(site.absent, -torch.inf)
