"""Plain PyTorch, on any device: tokens sorted by expert, a product for each expert that is used. Differentiable."""

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision
from glider.shapes import Float, Int, Tensor

_FEW = 2  # tokens for which each (token, expert) pair is computed by itself on the CPU
_GATHERED = 16  # tokens for which factors are gathered elsewhere: no count has to reach the host


def add_experts(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision, bank: Bank) -> None:
    """y += sum over kept e of w_e * s_e * B_e A_e x, in place and in the dtype of x."""
    if not x.shape[0]:
        return
    weights = decision.weights.to(x.dtype) * bank.scaling.to(x.dtype)[decision.experts]  # (T, K)
    if bank.A.shape[0] == 1:
        z = _weighed(x @ bank.A[0].to(x.dtype).T, weights.sum(dim=1, keepdim=True))
        y.addmm_(z, bank.B[0].to(x.dtype).T)
    elif x.device.type == "cpu":
        (_by_pair if x.shape[0] <= _FEW and not y.requires_grad else _by_expert)(y, x, decision.experts, weights, bank)
    else:
        (_gathered if x.shape[0] <= _GATHERED else _by_expert)(y, x, decision.experts, weights, bank)


def _by_pair(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T D"],
    experts: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    bank: Bank,
) -> None:
    for row, token, own, scales in zip(y, x, experts.tolist(), weights.tolist(), strict=True):
        for expert, scale in zip(own, scales, strict=True):
            if scale != 0:
                z = torch.mv(bank.A[expert].to(x.dtype), token)
                row.addmv_(bank.B[expert].to(x.dtype), z, alpha=scale)


def _by_expert(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T D"],
    experts: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    bank: Bank,
) -> None:
    flat = experts.flatten()
    order = flat.argsort(stable=True)  # (T * K) pairs by expert
    tokens = order // experts.shape[1]
    inputs, scales = x[tokens], weights.flatten()[order][:, None]
    outputs, start = [], 0
    for expert, count in enumerate(flat.bincount(minlength=bank.A.shape[0]).tolist()):
        if count:
            part = slice(start, start + count)
            z = _weighed(inputs[part] @ bank.A[expert].to(x.dtype).T, scales[part])
            outputs.append(z @ bank.B[expert].to(x.dtype).T)
            start += count
    y.index_add_(0, tokens, torch.cat(outputs))


def _gathered(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T D"],
    experts: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    bank: Bank,
) -> None:
    a, b = bank.A[experts].to(x.dtype), bank.B[experts].to(x.dtype)  # (T, K, R, D), (T, K, O, R)
    z = _weighed((a @ x[:, None, :, None])[..., 0], weights[..., None])  # (T, K, R)
    outputs = torch.where(weights[..., None] == 0, 0.0, (b @ z[..., None])[..., 0])
    y.add_(outputs.sum(dim=1))


def _weighed(z: Float[Tensor, "*N R"], weights: Float[Tensor, "*N 1"]) -> Float[Tensor, "*N R"]:
    """What has no weight adds nothing, even where it is not finite."""
    return torch.where(weights == 0, 0.0, z * weights)
