"""Random sites for the kernels: experts of unlike rank, absent ones, every way of scoring."""

from dataclasses import dataclass

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearScores, LinearTopK
from glider.routing.scores import standardise
from glider.routing.select import TopK


@dataclass(frozen=True)
class Case:
    bank: Bank
    site: Site
    linear: LinearTopK
    x: torch.Tensor  # (T, D)
    y: torch.Tensor  # (T, O)
    term: torch.Tensor | None  # (B, E)

    def scores(self) -> torch.Tensor:
        """What the description says, in plain PyTorch."""
        told = self.linear.scores
        if told.rows is None:
            scores = torch.zeros(len(self.x), self.bank.A.shape[0])
        else:
            x = standardise(self.x) if told.standardise else self.x
            scores = x @ told.rows.T / told.divisor
        scores = scores.abs() if told.absolute else scores
        scores = scores.masked_fill(self.site.absent, -torch.inf)
        return scores if self.term is None else scores + self.term.repeat_interleave(len(self.x) // len(self.term), 0)

    def decision(self) -> Decision:
        return TopK(self.linear.k, self.linear.renormalise)(self.scores())


def random_case(
    seed: int,
    *,
    tokens: int = 6,
    experts: int = 5,
    rank: int = 3,
    width: int = 20,
    out: int = 18,
    dtype: torch.dtype = torch.float32,
    k: int = 2,
    renormalise: bool = True,
    standardised: bool = True,
    absolute: bool = False,
    queries: int | None = None,
    absent: int = 0,
) -> Case:
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    a, b = normal(experts, rank, width) / width**0.5, normal(experts, out, rank) / rank**0.5
    for expert in range(experts):  # ranks are mixed: what an expert does not have is zero
        own = 1 + (expert + seed) % rank
        a[expert, own:], b[expert, :, own:] = 0, 0
    bank = Bank(a.to(dtype), b.to(dtype), torch.rand(experts, generator=chance) + 0.1)
    rows = standardise(normal(experts, width))
    missing = torch.zeros(experts, dtype=torch.bool)
    missing[torch.randperm(experts, generator=chance)[: min(absent, experts - 1)]] = True
    rows[missing] = 0
    scores = LinearScores(rows, width**0.5 if standardised else 2.0, standardised, absolute)
    return Case(
        bank,
        Site("s", missing, {"gates": rows}),
        LinearTopK(scores, k, renormalise),
        normal(tokens, width) + 0.3,
        normal(tokens, out),
        None if queries is None else 3 * normal(queries, experts),
    )
