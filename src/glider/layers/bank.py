"""The stacked experts of one site."""

from collections.abc import Sequence

import torch
from torch import nn

from glider.experts.expert import ExpertLike
from glider.shapes import Float, Tensor


class Bank(nn.Module):
    """LoRA factors of all experts at a site, stacked once and padded to the site's largest rank.

    `A` (E, R, D), `B` (E, O, R), `scaling` (E,); rows of an absent expert are zero. `B` lies in memory as (E, R, O), so
    that a kernel adds rows to y. The buffers move with the model and are part of no state dict.
    """

    A: Float[Tensor, "E R D"]
    B: Float[Tensor, "E O R"]
    scaling: Float[Tensor, " E"]

    def __init__(self, a: Float[Tensor, "E R D"], b: Float[Tensor, "E O R"], scaling: Float[Tensor, " E"]):
        super().__init__()
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b.mT.contiguous().mT, persistent=False)
        self.register_buffer("scaling", scaling, persistent=False)

    @classmethod
    def of(cls, site: str, experts: Sequence[ExpertLike], dtype: torch.dtype, narrow: bool = False) -> "Bank":
        """Stack what the experts hold at a site, stored in `dtype`.

        `narrow` stores in bfloat16 what is bfloat16 in all files, under a float32 `dtype`: the same values, half the
        memory.
        """
        present = [(i, expert) for i, expert in enumerate(experts) if site in expert.sites]
        shapes = [expert.sites[site] for _, expert in present]
        rank = max(shape.rank for shape in shapes)
        if narrow and dtype == torch.float32:
            stored = {factor.dtype for _, expert in present for factor in expert.factors(site)}
            dtype = torch.bfloat16 if stored == {torch.bfloat16} else dtype
        a = torch.zeros(len(experts), rank, shapes[0].in_features, dtype=dtype)
        b = torch.zeros(len(experts), rank, shapes[0].out_features, dtype=dtype).mT
        scaling = torch.zeros(len(experts))
        for i, expert in present:
            own_a, own_b = expert.factors(site)
            a[i, : own_a.shape[0]] = own_a
            b[i, :, : own_b.shape[1]] = own_b
            scaling[i] = expert.scaling(site)
        return cls(a, b, scaling)
