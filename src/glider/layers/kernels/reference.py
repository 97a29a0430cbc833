"""The truth: every expert computed for every token, weighed by the decision. Plain PyTorch, differentiable."""

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision
from glider.shapes import Float, Tensor


def apply_experts(x: Float[Tensor, "T D"], decision: Decision, bank: Bank) -> Float[Tensor, "T O"]:
    """sum over kept e of w_e * s_e * B_e A_e x, in the dtype of x (float32 for a bfloat16 bank under a float32 x)."""
    count, rank, width = bank.A.shape
    weights = x.new_zeros(x.shape[0], count).scatter_add(1, decision.experts, decision.weights.to(x.dtype))
    weights = weights * bank.scaling.to(x.dtype)  # (T, E)
    z = x @ bank.A.reshape(count * rank, width).to(x.dtype).T  # (T, E R)
    z = z.view(-1, count, rank) * weights[..., None]
    # an expert that is not kept adds nothing, even where its own output is not finite
    z = torch.where(weights[..., None] == 0, 0.0, z).flatten(1)
    return z @ bank.B.transpose(0, 1).reshape(-1, count * rank).to(x.dtype).T  # (T, O)
