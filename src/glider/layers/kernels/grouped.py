"""Plain PyTorch, on any device: tokens sorted by expert, a product for each expert that is used. Differentiable."""

import torch

from glider.layers.bank import Bank
from glider.layers.kernels.padded import add_padded
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision, SlotDecision
from glider.shapes import Float, Tensor

_FEW = 64  # (token, expert) pairs that are computed one by one on the CPU, if they are no more than ...
_PAIRS = 4  # ... so many for each expert: a product for an expert costs about five of a pair
_MANY = 128  # pairs from which on the CPU multiplies experts together
_DENSE = 4096  # ranks of all experts together, up to which a GPU multiplies tokens by all of them
_GATHERED = 16  # tokens for which factors are gathered elsewhere: no count has to reach the host


def add_experts(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision, bank: Bank) -> None:
    """y += sum over kept e of w_e * s_e * B_e A_e x, in place and in the dtype of x."""
    if not x.shape[0]:
        return
    weights = decision.weights.to(x.dtype) * bank.scaling.to(x.dtype)[decision.experts]  # (T, K)
    scaled = Decision(decision.experts, weights)
    if bank.A.shape[0] == 1:
        z = _weighed(x @ bank.A[0].to(x.dtype).T, weights.sum(dim=1, keepdim=True))
        y.addmm_(z, bank.B[0].to(x.dtype).T)
    elif x.device.type == "cpu":
        _on_cpu(y, x, scaled, bank)
    elif x.shape[0] <= _GATHERED and weights.numel() < bank.A.shape[0]:
        _gathered(y, x, scaled, bank)
    elif x.shape[0] <= _GATHERED or bank.A.shape[0] * bank.A.shape[1] <= _DENSE:
        y.add_(apply_experts(x, decision, bank))  # all experts: fewer bytes than a copy for each pair, fewer launches
    else:
        _by_expert(y, x, scaled, bank)


def add_slots(x: Float[Tensor, "T D"], decision: SlotDecision, bank: Bank) -> Float[Tensor, "T O"]:
    """The outputs of slots that mix tokens, one expert's slots at a time. Differentiable."""
    mixed = decision.dispatch.to(x.dtype) @ x  # (S, D)
    outputs = x.new_zeros(len(mixed), bank.B.shape[1])
    order = decision.experts.argsort(stable=True)
    counts = decision.experts.bincount(minlength=bank.A.shape[0]).tolist()
    for expert, slots in enumerate(order.split(counts)):
        if len(slots):
            z = mixed.index_select(0, slots) @ bank.A[expert].to(x.dtype).T * bank.scaling[expert].to(x.dtype)
            outputs = outputs.index_copy(0, slots, z @ bank.B[expert].to(x.dtype).T)
    return decision.combine.to(x.dtype) @ outputs


def _on_cpu(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], scaled: Decision, bank: Bank) -> None:
    """Of a decision whose weights have the scaling in them, as in all that follow."""
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (y, x, scaled.weights, bank.A, bank.B))
    if not learns and scaled.weights.numel() <= min(_FEW, _PAIRS * bank.A.shape[0]):
        _by_pair(y, x, scaled, bank)
    elif learns or scaled.weights.numel() < _MANY:
        _by_expert(y, x, scaled, bank)
    else:
        add_padded(y, x, scaled, bank)


def _by_pair(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], scaled: Decision, bank: Bank) -> None:
    for row, token, selected, scales in zip(y, x, scaled.experts.tolist(), scaled.weights.tolist(), strict=True):
        for expert, scale in zip(selected, scales, strict=True):
            if scale != 0:
                z = torch.mv(bank.A[expert].to(x.dtype), token)
                row.addmv_(bank.B[expert].to(x.dtype), z, alpha=scale)


def _by_expert(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], scaled: Decision, bank: Bank) -> None:
    flat = scaled.experts.flatten()
    order = flat.argsort(stable=True)  # (T * K) pairs by expert
    counts = flat.bincount(minlength=bank.A.shape[0]).tolist()
    tokens, scales = order // scaled.experts.shape[1], scaled.weights.flatten()[order][:, None]
    parts = zip(tokens.split(counts), scales.split(counts), strict=True)
    for expert, (members, scale) in enumerate(parts):
        if counts[expert]:  # one expert's tokens at a time: memory that is small enough to be used again is fast
            z = _weighed(x.index_select(0, members) @ bank.A[expert].to(x.dtype).T, scale)
            y.index_add_(0, members, z @ bank.B[expert].to(x.dtype).T)


def _gathered(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], scaled: Decision, bank: Bank) -> None:
    a, b = bank.A[scaled.experts].to(x.dtype), bank.B[scaled.experts].to(x.dtype)  # (T, K, R, D), (T, K, O, R)
    weights = scaled.weights[..., None]  # (T, K, 1)
    z = _weighed((a @ x[:, None, :, None])[..., 0], weights)  # (T, K, R)
    outputs = torch.where(weights == 0, 0.0, (b @ z[..., None])[..., 0])
    y.add_(outputs.sum(dim=1))


def _weighed(z: Float[Tensor, "*N R"], weights: Float[Tensor, "*N 1"]) -> Float[Tensor, "*N R"]:
    """What has no weight adds nothing, even where it is not finite."""
    return torch.where(weights == 0, 0.0, z * weights)
