"""SpectR: how strongly each adapter answers a token, by its full spectrum (arXiv 2504.03454)."""

from dataclasses import dataclass

import torch

from glider.experts.pool import Pool
from glider.routing.base import Site, router
from glider.routing.compose import Composed
from glider.routing.select import Select, TopK
from glider.routing.spectral import bases
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class SpectralSite(Site):
    """A site with the rows of A'_e = S_e V_e^T of every expert, zero beyond an expert's own rank."""

    basis: Float[Tensor, "E S D"]

    def to(self, device: torch.device) -> "SpectralSite":
        return SpectralSite(self.name, None, self.absent.to(device), self.basis.to(device))


@dataclass(frozen=True)
class SpectralNorm:
    """|A'_e x| with A'_e = S_e V_e^T and s_e B_e A_e = U_e S_e V_e^T: the length of what the adapter would add.

    The authors' published code scores by |V_e^T x|, its singular values beside U_e. We weigh the directions, which
    makes the chosen adapter the one that answers strongest (so their arXiv 2509.18093 describes SpectR).
    """

    def prepare(self, pool: Pool) -> dict[str, Site]:
        return {basis.name: SpectralSite(basis.name, None, basis.site.absent, basis.rows) for basis in bases(pool)}

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        assert isinstance(site, SpectralSite)
        experts, directions, _ = site.basis.shape
        answers = x.float() @ site.basis.flatten(0, 1).T  # (T, E * S)
        return answers.unflatten(-1, (experts, directions)).norm(dim=-1).masked_fill(site.absent, -torch.inf)


@router("spectr", paper="arXiv:2504.03454")
@dataclass(frozen=True)
class Spectr(Composed):
    """score = |S_e V_e^T x| with s_e B_e A_e = U_e S_e V_e^T, then top-2 (spectral routing)."""

    select: Select = TopK(2)

    @property
    def local(self) -> SpectralNorm:
        return SpectralNorm()
