"""The stacked experts of one site."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from glider.experts.expert import ExpertLike
from glider.routing.base import Decision
from glider.shapes import Float, Tensor


class Bank(nn.Module):
    """LoRA factors of all experts at a site, stacked once and padded to the site's largest rank.

    `A` (E, R, D), `B` (E, O, R), `scaling` (E,); rows of an absent expert are zero. `B` lies in memory as (E, R, O), so
    that a kernel adds rows to y. The buffers move with the model and are part of no state dict.
    """

    A: Float[Tensor, "E R D"]
    B: Float[Tensor, "E O R"]
    scaling: Float[Tensor, " E"]
    whole: bool = True  # every expert lies in memory, at its own index
    lock: AbstractContextManager[object] = nullcontext()  # to be held while `parts` are computed

    def __init__(self, a: Float[Tensor, "E R D"], b: Float[Tensor, "E O R"], scaling: Float[Tensor, " E"]):
        super().__init__()
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b.mT.contiguous().mT, persistent=False)
        self.register_buffer("scaling", scaling, persistent=False)

    @property
    def stack(self) -> "Bank":
        """The bank whose tensors a kernel reads."""
        return self

    def parts(self, decision: Decision) -> Iterable[Decision]:
        """Decisions by place in `stack` that add up to this one, each computed before the next is asked for."""
        return (decision,)

    def equals(self, other: "Bank") -> bool:
        """Whether both hold the same experts' pairs, in the same places, dtype and device, to the bit."""
        pairs = ((self.A, other.A), (self.B.mT, other.B.mT), (self.scaling, other.scaling))
        return all(alike(mine, theirs) for mine, theirs in pairs)

    @classmethod
    def of(cls, site: str, experts: Sequence[ExpertLike], dtype: torch.dtype) -> "Bank":
        """Stack the experts' factors at a site, stored in `dtype`."""
        bank = cls.empty(site, experts, len(experts), dtype)
        for i, expert in enumerate(experts):
            if site in expert.sites:
                bank.put(i, site, expert)
                bank.scaling[i] = expert.scaling(site)
        return bank

    @classmethod
    def empty(cls, site: str, experts: Sequence[ExpertLike], places: int, dtype: torch.dtype) -> "Bank":
        """Room for this many of the experts at a site; unused memory is not resident yet."""
        shapes = [expert.sites[site] for expert in experts if site in expert.sites]
        rank = max(shape.rank for shape in shapes)
        a = torch.zeros(places, rank, shapes[0].in_features, dtype=dtype)
        b = torch.zeros(places, rank, shapes[0].out_features, dtype=dtype)
        return cls(a, b.mT, torch.zeros(places))

    def put(self, place: int, site: str, expert: ExpertLike) -> None:
        """Copy an expert's pair to a place, over whatever it held."""
        a, b = expert.factors(site)
        rank = a.shape[0]
        self.A[place, :rank] = a
        self.B[place, :, :rank] = b
        self.A[place, rank:] = 0
        self.B[place, :, rank:] = 0


def storage(site: str, experts: Sequence[ExpertLike], dtype: torch.dtype, narrow: bool) -> torch.dtype:
    """The dtype a site's experts are stored in: `dtype`, or bfloat16 where that is float32 and all files hold bfloat16.

    The values are the same then, in half the memory; `narrow` allows it.
    """
    stored = {expert.sites[site].dtype for expert in experts if site in expert.sites}
    return torch.bfloat16 if narrow and dtype == torch.float32 and stored == {torch.bfloat16} else dtype


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same values, dtype and device, to the bit."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
