"""Scores of experts: local (per token and site) and global (per query)."""

from math import sqrt
from typing import Literal

import torch

from glider.experts.pool import Pool
from glider.routing.base import Site, absent_at
from glider.shapes import Float, Tensor

LocalScale = Literal["width", "experts"]
_EPSILON = 1e-5
_ROUNDING = 1e-3


def standardise(z: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Zero mean and unit variance over the last axis (population variance, eps 1e-5), in float32."""
    return torch.nn.functional.layer_norm(z.float(), z.shape[-1:], eps=_EPSILON)  # without scale and shift it is that


def local_scores(x: Float[Tensor, "T D"], site: Site, scale: LocalScale) -> Float[Tensor, "T E"]:
    """std(x) . std(v_e) / sqrt(D) for every expert; minus infinity where the expert is absent.

    "width" divides by sqrt(D), as PHATGOOSE and the published GLIDER code do. "experts" is the GLIDER paper's text
    (section 4.2): the cosine over sqrt(N), N experts; about sqrt(D N) times smaller.
    """
    gates = site["gates"]
    scores = standardise(x) @ gates.T / local_divisor(gates, scale)  # (T, E)
    return scores.masked_fill(site.absent, -torch.inf)


def local_divisor(gates: Float[Tensor, "E D"], scale: LocalScale) -> float:
    """What the products of standardised tokens and gates are divided by."""
    count, width = gates.shape
    return sqrt(width) if scale == "width" else width * sqrt(count)


def standardised_gates(pool: Pool) -> dict[str, Site]:
    """Each site's gates, standardised, a row per expert (zero where the expert is absent)."""
    sites = {}
    for name in pool.sites:
        width = next(expert.sites[name].in_features for expert in pool if name in expert.sites)
        rows = []
        for expert in pool:
            gate = expert.gate(name) if name in expert.sites else None
            rows.append(torch.zeros(width) if gate is None else standardise(gate))
        sites[name] = Site(name, absent_at(name, pool.experts), {"gates": torch.stack(rows)})
    return sites


def cosine(queries: Float[Tensor, "B G"], experts: Float[Tensor, "E G"]) -> Float[Tensor, "B E"]:
    """Cosine of every query with every expert's instruction embedding."""
    return torch.nn.functional.normalize(queries.float(), dim=-1) @ experts.T


def has_unit_length(vectors: Float[Tensor, "*N G"]) -> bool:
    """Whether vectors were normalised: of length one, or zero where there was nothing to divide by."""
    lengths = vectors.norm(dim=-1)
    return bool((((lengths - 1).abs() < _ROUNDING) | (lengths == 0)).all())
