"""The reference: every expert computed for every token, weighted by the decision. Plain PyTorch, differentiable."""

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision, SlotDecision
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


def apply_slots(x: Float[Tensor, "T D"], decision: SlotDecision, bank: Bank) -> Float[Tensor, "T O"]:
    """sum over slots s of combine[t, s] * s_e B_e A_e (sum over u of dispatch[s, u] x_u), e the slot's expert."""
    mixed = decision.dispatch.to(x.dtype) @ x  # (S, D)
    a, b = bank.A[decision.experts].to(x.dtype), bank.B[decision.experts].to(x.dtype)  # (S, R, D), (S, O, R)
    outputs = (b @ (a @ mixed[..., None]))[..., 0] * bank.scaling.to(x.dtype)[decision.experts][:, None]  # (S, O)
    return decision.combine.to(x.dtype) @ outputs
