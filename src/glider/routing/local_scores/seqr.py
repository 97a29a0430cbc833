"""SEQR's score: the length of an adapter's answer, exactly and without an SVD (arXiv 2509.18093)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import read_router, require_values
from glider.routing.base import Site, absent_at
from glider.routing.local_scores.base import local_score
from glider.routing.products import require_experts
from glider.shapes import Float, Tensor

Norms = Literal["raw", "white", "calibrated"]
KIND = "seqr"
_TINY = 1e-12


@local_score("seqr", paper="arXiv:2509.18093")
@dataclass(frozen=True)
class QRNorm:
    """|R_e A_e x| with s_e B_e = Q_e R_e: the length of what the adapter would add, since Q_e keeps lengths.

    The choice is SpectR's (`spectr`), found by one QR in place of QR and SVD. Where all experts of a site share one A
    (a frozen down-projection, the paper's cheap case) A x is computed once and A is held once; else R_e A_e is
    multiplied out. `norms` says what the lengths are measured against, so that a loud adapter is not chosen for being
    loud: "raw" nothing; "white" the root mean square length for x of white noise, |s_e B_e A_e|_F, which needs no data
    and is ours; "calibrated" (length - mean_e) / deviation_e over tokens of rows of all experts, the paper's offline
    calibration (`glider pool train-router POOL --router seqr`; only its abstract and summaries could be read).
    """

    norms: Norms = "raw"

    def __post_init__(self) -> None:
        if self.norms not in ("raw", "white", "calibrated"):
            raise RouterError("norms of raw, white, calibrated", repr(self.norms), "Check the spelling.")

    def prepare(self, pool: Pool) -> dict[str, Site]:
        require_experts(pool)
        sites = {name: _site(pool, name, self.norms) for name in pool.sites}
        if self.norms != "calibrated":
            return sites
        parts = ("mean", "deviation")
        known, _ = read_router(pool, KIND, {f"{n}.{part}": (len(pool),) for n in pool.sites for part in parts})
        deviations = {f"{name}.deviation": known[f"{name}.deviation"] for name in pool.sites}
        require_values(pool, KIND, {name: bool((one > 0).all()) for name, one in deviations.items()})
        statistics = {name: {part: known[f"{name}.{part}"] for part in parts} for name in sites}
        return {name: replace(site, tensors={**site.tensors, **statistics[name]}) for name, site in sites.items()}

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        if "down" in site.tensors:
            small = x.float() @ site["down"][0].T  # (T, R)
            answers = torch.einsum("eij,tj->tei", site["triangles"], small)
        else:
            rows = site["answers"]  # (E, R, D)
            answers = (x.float() @ rows.flatten(0, 1).T).unflatten(-1, rows.shape[:2])  # (T, E, R)
        lengths = answers.norm(dim=-1)
        if "mean" in site.tensors:
            lengths = (lengths - site["mean"]) / site["deviation"].clamp(min=_TINY)
        return lengths.masked_fill(site.absent, -torch.inf)


def triangle(b: Float[Tensor, "O R"], scaling: float) -> Float[Tensor, "S R"]:
    """R of s B = Q R, in float64."""
    return torch.linalg.qr(scaling * b.double(), mode="r").R


def _site(pool: Pool, name: str, norms: Norms) -> Site:
    present = [expert for expert in pool if name in expert.sites]
    downs = {expert.name: expert.factors(name)[0].double() for expert in present}
    triangles = {expert.name: triangle(expert.factors(name)[1], expert.scaling(name)) for expert in present}
    if norms == "white":
        for expert, r in triangles.items():
            r /= (r @ downs[expert]).norm().clamp(min=_TINY)
    absent, first = absent_at(name, pool.experts), downs[present[0].name]
    if len(present) > 1 and all(torch.equal(a, first) for a in downs.values()):
        stacked = _stacked([triangles.get(expert.name) for expert in pool])
        return Site(name, absent, {"triangles": stacked, "down": first.float().expand(len(pool), -1, -1)})
    products = [triangles[expert.name] @ downs[expert.name] if expert.name in triangles else None for expert in pool]
    return Site(name, absent, {"answers": _stacked(products)})


def _stacked(matrices: Sequence[Float[Tensor, "_ _"] | None]) -> Float[Tensor, "E R _"]:
    """Matrices in float32, with rows of zero for those that are shorter or not there."""
    known = [matrix for matrix in matrices if matrix is not None]
    stack = torch.zeros(len(matrices), max(len(matrix) for matrix in known), known[0].shape[1])
    for place, matrix in zip(stack, matrices, strict=True):
        if matrix is not None:
            place[: len(matrix)] = matrix.float()
    return stack
