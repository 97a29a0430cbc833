"""The score of vector-quantised routing: a token's code says which experts suit it (arXiv 2411.19402)."""

from dataclasses import dataclass

from glider.experts.pool import Pool
from glider.experts.router_files import read_router, require_values
from glider.routing.base import Site, absent_at
from glider.routing.local_scores.base import local_score
from glider.routing.local_scores.joint import width_at
from glider.routing.scores import standardise
from glider.shapes import Bool, Float, Int, Tensor

KIND = "vq"
_ROUNDING = 1e-3  # of the sum of the experts' shares


@local_score("vq", paper="arXiv:2411.19402")
@dataclass(frozen=True)
class CodeTable:
    """log P(e | code), code the nearest of a site's codebook to std(x)."""

    def prepare(self, pool: Pool) -> dict[str, Site]:
        shapes = {f"{name}.codes": (f"codes of {name}", width_at(pool, name)) for name in pool.sites}
        shapes |= {f"{name}.table": (len(pool), f"codes of {name}") for name in pool.sites}
        tensors, _ = read_router(pool, KIND, shapes)
        tables = {name: table for name, table in tensors.items() if name.endswith(".table")}
        require_values(pool, KIND, {name: bool(_is_log_of_shares(table)) for name, table in tables.items()})
        sites = {}
        for name in pool.sites:
            codes = tensors[f"{name}.codes"].expand(len(pool), -1, -1)  # one codebook for all
            table = {"table": tensors[f"{name}.table"], "codes": codes}
            sites[name] = Site(name, absent_at(name, pool.experts), table)
        return sites

    def scores(self, x: Float[Tensor, "T D"], site: Site) -> Float[Tensor, "T E"]:
        codes = nearest_code(standardise(x), site["codes"][0])
        return site["table"].T[codes].masked_fill(site.absent, float("-inf"))


def _is_log_of_shares(table: Float[Tensor, "E C"]) -> Bool[Tensor, ""]:
    return (table.logsumexp(dim=0).abs() < _ROUNDING).all()


def nearest_code(x: Float[Tensor, "T D"], codes: Float[Tensor, "C D"]) -> Int[Tensor, " T"]:
    """The code of smallest distance to each token."""
    return (codes.square().sum(dim=1) - 2 * x @ codes.T).argmin(dim=1)
