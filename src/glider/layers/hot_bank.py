"""A site's experts of which memory holds only the most recently used; the others stay in their files."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from glider.errors import ConfigError
from glider.experts.expert import ExpertLike
from glider.layers.bank import Bank
from glider.routing.base import Decision, Prepared
from glider.shapes import Float, Int, Tensor


class HotBank(nn.Module):
    """Places for S of a site's E experts. An expert that a token asks for is read from its file over the coldest one.

    The same results as a `Bank`'s, whatever S: a decision that names more experts than there are places is computed in
    parts. Scalings are multiplied into the weights, so that a place has none of its own. For inference: a backward pass
    that needs an expert that was overwritten since is an error of PyTorch's.
    """

    scaling: Float[Tensor, " E"]
    whole = False

    def __init__(self, site: str, experts: Sequence[ExpertLike], places: int, dtype: torch.dtype):
        super().__init__()
        self.site, self.experts = site, tuple(experts)
        self.stack = Bank.empty(site, experts, places, dtype)
        self.stack.scaling.fill_(1)
        scaling = [expert.scaling(site) if site in expert.sites else 0.0 for expert in experts]
        self.register_buffer("scaling", torch.tensor(scaling), persistent=False)
        self.lock = threading.Lock()
        self.reads = 0
        self._place_of = torch.full((len(experts),), -1)  # (E,) by expert, -1 in the file alone
        self._expert_at = [-1] * places
        self._used_at = torch.zeros(places, dtype=torch.long)
        self._calls = 0

    @property
    def A(self) -> Float[Tensor, "S R D"]:  # noqa: N802  (as in Bank)
        return self.stack.A

    @property
    def B(self) -> Float[Tensor, "S O R"]:  # noqa: N802
        return self.stack.B

    def parts(self, decision: Decision) -> Iterator[Decision]:
        """As `Bank.parts`. Experts are read between the parts; the lock is the caller's to hold."""
        experts = decision.experts.cpu()
        weights = decision.weights * self.scaling.to(decision.weights.dtype)[decision.experts]
        self._calls += 1
        places = self._place_of[experts]
        if bool((places >= 0).all()):
            self._used_at[places] = self._calls
            yield Decision(places.to(weights.device), weights)
            return
        named = experts[(decision.weights != 0).cpu()].unique()  # one without weight adds nothing
        named = named[(self._place_of[named] < 0).long().argsort(stable=True)]  # those in memory first
        for group in named.split(len(self._expert_at)):
            self._hold(group)
            places = self._place_of[experts]
            mine = torch.isin(experts, group)
            yield Decision(
                torch.where(mine, places, 0).to(weights.device), torch.where(mine.to(weights.device), weights, 0.0)
            )

    def _hold(self, experts: Int[Tensor, " N"]) -> None:
        """Bring experts, no more than there are places, into memory."""
        held = self._place_of[experts]
        self._used_at[held[held >= 0]] = self._calls
        missing = experts[held < 0].tolist()
        coldness = self._used_at.index_fill(0, held[held >= 0], self._calls + 1)
        coldest = coldness.topk(len(missing), largest=False).indices.tolist()
        self.reads += len(missing)
        for expert, place in zip(missing, coldest, strict=True):
            if (before := self._expert_at[place]) >= 0:
                self._place_of[before] = -1
                self._expert_at[place] = -1
            owner = self.experts[expert]
            if self.site in owner.sites:
                self.stack.put(place, self.site, owner)
            else:
                self.stack.A[place] = 0
                self.stack.B[place] = 0
            self._place_of[expert], self._expert_at[place], self._used_at[place] = place, expert, self._calls


@dataclass(frozen=True)
class ExpertMemory:
    """Statistics of holding experts in limited memory."""

    places: int  # experts held at a site at once
    size: int  # bytes of the places of all sites; those never used are not resident
    reads: int  # pairs that were read from files, over all sites


def places_within(limit: int, prepared: Prepared, dtypes: dict[str, torch.dtype]) -> int | None:
    """How many experts fit into `limit` bytes at every site at once, or None if all do.

    Raises `ConfigError` if none fits.
    """
    one = 0
    for site, dtype in dtypes.items():
        shapes = [expert.sites[site] for expert in prepared.experts if site in expert.sites]
        one += max(shape.rank for shape in shapes) * (shapes[0].in_features + shapes[0].out_features) * dtype.itemsize
    if limit >= one * len(prepared.experts):
        return None
    if limit < one:
        raise ConfigError(f"expert memory for one expert ({one} bytes) or more", f"{limit} bytes", "Allow more.")
    return limit // one
