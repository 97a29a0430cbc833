"""GLIDER with a null expert, for the comparison in LAB.md: `glider`, with one more router.

    python reproduce/mini/null_expert.py evaluate WORK/RUN.yaml --out RESULTS

The router `null-expert` is GLIDER with an expert of zero output beside the pool's, whose score is `null` for every
token at every site: softmax over the scores of E + 1, the two best are kept, their weights are divided by their sum,
the null expert's with them, so that it keeps its share and the others add less. The pool is calibrated by
`--unsure-by tokens`; a run file names the router as any other, {router: null-expert, settings: {"null": 4.5}}.
"""

import sys
from dataclasses import dataclass

import torch

from glider.cli.main import main
from glider.cli.terminal import exit_code
from glider.routing.base import Decision, router
from glider.routing.methods.glider import Glider
from glider.routing.select import Select
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class WithNull:
    """The k best of the experts and the null expert."""

    null: float
    k: int = 2

    def __call__(self, scores: Float[Tensor, "T E"]) -> Decision:
        null = scores.new_full((*scores.shape[:-1], 1), self.null)
        probabilities = torch.cat([scores, null], dim=-1).float().softmax(dim=-1)
        weights, experts = probabilities.topk(min(self.k, probabilities.shape[-1]), dim=-1)  # (T, K)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        nobody = experts == scores.shape[-1]
        return Decision(experts.masked_fill(nobody, 0), weights.masked_fill(nobody, 0.0), scores)


@router("null-expert", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class NullExpert(Glider):
    """GLIDER with a null expert of one score."""

    null: float = 0.0

    def selection(self) -> Select:
        return WithNull(self.null)


if __name__ == "__main__":
    sys.exit(exit_code(main))
