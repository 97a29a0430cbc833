"""Plans that hand a sequence's tokens out to experts evenly: entropy-regularised, or with few tokens an expert."""

from math import log

import torch

from glider.shapes import Float, Tensor


def sinkhorn(scores: Float[Tensor, "N E"], iterations: int) -> Float[Tensor, "N E"]:
    """The plan of largest <plan, scores> + entropy whose rows sum to 1 and whose columns to N / E.

    Sinkhorn's iterations in the logarithm; the last one makes the rows exact.
    """
    count, experts = scores.shape
    scores = scores.double()
    u, v = scores.new_zeros(count, 1), scores.new_zeros(1, experts)
    for _ in range(iterations):
        v = log(count / experts) - (scores + u).logsumexp(dim=0, keepdim=True)
        u = -(scores + v).logsumexp(dim=1, keepdim=True)
    return (scores + u + v).exp().float()


def sparse_plan(scores: Float[Tensor, "N E"], most: int, gamma: float, steps: int) -> Float[Tensor, "N E"]:
    """The plan of largest <plan, scores> - gamma / 2 |plan|^2 of rows 1 and columns N / E, `most` tokens a column.

    By the semi-dual (arXiv 2209.15466): with prices a of the tokens every column is the projection of its `most`
    largest (scores + a) / gamma onto the simplex of its mass; the prices rise where a token has less than 1. Gradient
    ascent with momentum, `steps` of it: columns are exact at every step, rows only when it has converged, and with the
    bound `most` not always then: the dual need not meet them.
    """
    count, experts = scores.shape
    mass, scores = count / experts, scores.double()
    prices = momentum = scores.new_zeros(count, 1)
    for step in range(steps):
        gradient = 1 - _columns(scores + momentum, most, mass, gamma).sum(dim=1, keepdim=True)
        following = momentum + gamma / experts * gradient
        momentum = following + step / (step + 3) * (following - prices)
        prices = following
    return _columns(scores + prices, most, mass, gamma).float()


def _columns(values: Float[Tensor, "N E"], most: int, mass: float, gamma: float) -> Float[Tensor, "N E"]:
    """Each column's `most` largest values / gamma, projected onto the simplex of this mass; zero elsewhere."""
    largest, places = (values / gamma).topk(min(most, len(values)), dim=0)  # sorted
    largest = largest - largest[:1]  # else a small gamma leaves no digits for the mass
    sums = largest.cumsum(dim=0) - mass
    rank = torch.arange(1, len(largest) + 1, dtype=values.dtype, device=values.device)[:, None]
    support = (largest * rank > sums).sum(dim=0, keepdim=True)
    threshold = sums.gather(0, support - 1) / support
    return torch.zeros_like(values).scatter(0, places, (largest - threshold).clamp(min=0))
