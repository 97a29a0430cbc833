"""LoGo: what each adapter answers to the prompt's last token says how much of it to use (arXiv 2511.07129)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, absent_at, router
from glider.routing.condition import Condition
from glider.routing.nearest import require_count
from glider.routing.products import require_experts
from glider.shapes import Float, Tensor


@router("logo", paper="arXiv:2511.07129")
@dataclass(frozen=True)
class Logo:
    """w_e = s_e / sum of the K largest, s_e = |o_e| or 1 / entropy(softmax(o_e)), o_e = s_e B_e A_e x at one site.

    x is what the probe site sees at the prompt's last token, in a pass with `adapters` "all" on at their full weight,
    as the authors' code runs it, or "none"; the prompt then runs again with the K experts of largest s, the same for
    every token. `probe` names the site (default: the query projection of the last layer that all experts adapt, as the
    authors have it, or else their last site). The outputs are mixed, as the paper does. The authors' code reads the
    hidden state before the layer's norm; here x is the site's own input, behind it.
    """

    k: int = 3
    signal: Literal["norm", "entropy"] = "norm"
    probe: str | None = None
    adapters: Literal["all", "none"] = "all"
    observes: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        require_count(self.k)
        if self.signal not in ("norm", "entropy"):
            raise RouterError("a signal of norm, entropy", repr(self.signal), "Check the spelling.")
        if self.adapters not in ("all", "none"):
            raise RouterError("adapters of all, none", repr(self.adapters), "Check the spelling.")

    def prepare(self, pool: Pool) -> Prepared:
        require_experts(pool)
        if self.k != type(self).k and self.k > len(pool):
            raise RouterError(f"k of at most {len(pool)}, the pool's experts", str(self.k), "Keep fewer experts.")
        sites = {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites}
        probe = self._probe(pool)
        sites[probe] = Site(probe, sites[probe].absent, _factors(pool, probe))
        return Prepared(pool.experts, sites)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def observe(self, scores: Float[Tensor, "B E"]) -> Condition:
        return Condition.of(scores, torch.ones(len(scores)), "logo")

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        if term is None:
            every = torch.arange(len(site.absent), device=x.device).expand(len(x), -1)
            on = (~site.absent).float() * (self.adapters == "all")
            signals = self._signals(site, x) if "up" in site.tensors else None
            return Decision(every, on.expand(len(x), -1), signals)
        there = term.clamp(min=0).masked_fill(site.absent, 0.0)
        values, experts = there.topk(min(self.k, there.shape[1]), dim=-1)
        return Decision(experts, values / values.sum(dim=-1, keepdim=True).clamp(min=1e-12), term)

    def _signals(self, site: Site, x: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        small = torch.einsum("erd,td->ter", site["down"], x.float())
        answers = torch.einsum("eor,ter->teo", site["up"], small)
        if self.signal == "norm":
            return answers.norm(dim=-1)
        logs = answers.log_softmax(dim=-1)
        return 1 / (1e-6 - (logs.exp() * logs).sum(dim=-1))

    def _probe(self, pool: Pool) -> str:
        shared = [name for name in pool.sites if all(name in expert.sites for expert in pool)]
        if self.probe is not None:
            if self.probe not in shared:
                raise RouterError("a probe that all experts adapt", self.probe, "Name another site.")
            return self.probe
        if not shared:
            raise RouterError("a site that all experts adapt", "none", "Choose another router.")
        queries = [name for name in shared if name.rpartition(".")[2] in ("q_proj", "q", "query", "q_lin")]
        return (queries or shared)[-1]


def _factors(pool: Pool, site: str) -> dict[str, Tensor]:
    """A (E, R, D) and s B (E, O, R) of all experts at a site, zero beyond an expert's rank."""
    pairs = [expert.factors(site) for expert in pool]
    rank = max(len(a) for a, _ in pairs)
    down, up = torch.zeros(len(pool), rank, pairs[0][0].shape[1]), torch.zeros(len(pool), len(pairs[0][1]), rank)
    for place, (expert, (a, b)) in enumerate(zip(pool, pairs, strict=True)):
        down[place, : len(a)], up[place, :, : len(a)] = a.float(), expert.scaling(site) * b.float()
    return {"down": down, "up": up}
