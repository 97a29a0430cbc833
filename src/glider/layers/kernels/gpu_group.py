"""Sites that see the same tokens and write side by side, on a GPU: q, k and v, gate and up, in as many launches as one.

They are computed by a table of queries that stays where it is, so that a CUDA graph can hold the calls while queries
come and go.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glider.errors import KernelError
from glider.layers.bank import Bank
from glider.layers.kernels import gpu
from glider.layers.kernels.gpu_site import MOST_EXPERTS, QueryTable, choose, split
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearTopK
from glider.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class GroupPart:
    """A site of a group: where its outputs lie in those of the group, its experts, and how its router decides."""

    start: int
    stop: int
    bank: Bank
    site: Site
    linear: LinearTopK


class TritonGroup:
    """Experts and gates of sites that see the same tokens, stacked once; `parts` in the order of their outputs.

    `per_token` are the experts that a token has room for at a site, at least those that the router chooses. Sites whose
    outputs lie at multiples of a tile, with routers that differ in their gates alone, go together: `joins` says so.
    Raises `KernelError` for a site with more experts than one program holds.
    """

    name = "triton"

    def __init__(self, parts: Sequence[GroupPart], per_token: int):
        first = parts[0]
        self.linear, self.sites = first.linear, len(parts)
        self.count, self.width = first.bank.A.shape[0], first.bank.A.shape[2]
        if self.count > MOST_EXPERTS:
            got = f"{self.count} at {first.site.name}"
            raise KernelError(f"at most {MOST_EXPERTS} experts, for the triton kernel", got, "Take a smaller pool.")
        self.start, self.stop = first.start, parts[-1].stop
        self.top = min(first.linear.k, self.count)
        self.per_token = max(self.top, per_token)
        rank = max(part.bank.A.shape[1] for part in parts)
        device, dtype = first.bank.A.device, first.bank.A.dtype
        self._a = torch.zeros(self.sites * self.count, rank, self.width, dtype=dtype, device=device)
        self._b = torch.zeros(self.count, rank, self.stop - self.start, dtype=dtype, device=device)
        self._bounds = [(part.start - self.start, part.stop - self.start) for part in parts]
        for number, (part, (start, stop)) in enumerate(zip(parts, self._bounds, strict=True)):
            part_rank = part.bank.A.shape[1]
            self._a[number * self.count : (number + 1) * self.count, :part_rank] = part.bank.A
            self._b[:, :part_rank, start:stop] = part.bank.B.mT
        self._scaling = torch.cat([part.bank.scaling for part in parts])
        self._factors = gpu.Factors(self._a, self._b.mT, self._scaling)
        self._dense = bool(self._a.isfinite().all() & self._b.isfinite().all())
        self._absent = torch.stack([part.site.absent.to(torch.uint8) for part in parts]).to(device)
        gates = [part.linear.scores.rows for part in parts]
        self._rows = None if gates[0] is None else [rows.float() for rows in gates if rows is not None]
        self._sums = None if self._rows is None else torch.stack([rows.sum(dim=-1) for rows in self._rows])
        self._parts: dict[torch.dtype, Tensor] = {}
        owners = [number for number, (a, b) in enumerate(self._bounds) for _ in range(a, b, gpu.OUTS)]
        self._owners = torch.tensor(owners, dtype=torch.long, device=device)

    @staticmethod
    def joins(parts: Sequence[GroupPart]) -> bool:
        """Whether these sites can be one group."""
        first = parts[0]
        ends = [part.stop for part in parts[:-1]]
        return all(
            part.bank.A.shape[2] == first.bank.A.shape[2]
            and part.bank.A.dtype == first.bank.A.dtype
            and _kind(part.linear) == _kind(first.linear)
            for part in parts
        ) and all(
            stop == part.start and (stop - first.start) % gpu.OUTS == 0
            for stop, part in zip(ends, parts[1:], strict=True)
        )

    def add(
        self, y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], table: QueryTable, row_of: Int[Tensor, " T"]
    ) -> None:
        """Add to y, in place, what each token's row of the table says for the tokens x.

        x is contiguous, y may be a part of longer rows. Raises `KernelError` for a call that the kernel cannot run.
        """
        refused = gpu.refusal(x, self._factors)
        if refused is not None or x.dtype != y.dtype:
            got = refused or f"tokens in {x.dtype} and outputs in {y.dtype}"
            raise KernelError("a call that the triton kernel can run", got, "Serve the pool by `glider serve`.")
        places = (self.top, self.per_token)
        rows = self._split(x.dtype)
        decision = choose(x, self.linear, rows, self._sums, self._absent, places, None, row_of, table)
        self._apply(y, x, decision)

    def _apply(self, y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision) -> None:
        alike = x.dtype == y.dtype == self._a.dtype
        ranks = self._a.shape[0] * self._a.shape[1]
        with gpu.on_device(x):
            if len(x) <= gpu.FEW:
                gpu.by_pair(y, x, decision, self._factors, self.sites, self._owners)
            elif self._dense and alike and ranks <= self.sites * gpu.DENSE:
                z = gpu.weighed(x, decision, self._factors)
                each = ranks // self.sites
                for number, (start, stop) in enumerate(self._bounds):
                    outputs = self._b.reshape(each, -1)[:, start:stop]
                    y[:, start:stop].addmm_(z[:, number * each : (number + 1) * each], outputs)
            else:
                self._by_site(y, x, decision)

    def _by_site(self, y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision) -> None:
        for number, (start, stop) in enumerate(self._bounds):
            rows = slice(number * self.count, (number + 1) * self.count)
            columns = slice(number * self.per_token, (number + 1) * self.per_token)
            bank = gpu.Factors(self._a[rows], self._b[:, :, start:stop].mT, self._scaling[rows])
            part = Decision(decision.experts[:, columns] - number * self.count, decision.weights[:, columns])
            gpu.add_experts(y[:, start:stop], x, part, bank)

    def _split(self, dtype: torch.dtype) -> Float[Tensor, "P D"] | None:
        if self._rows is None:
            return None
        if dtype not in self._parts:
            self._parts[dtype] = torch.cat([split(rows, dtype) for rows in self._rows]).contiguous()
        return self._parts[dtype]


def _kind(linear: LinearTopK) -> tuple[object, ...]:
    scores = linear.scores
    return (scores.rows is None, scores.divisor, scores.standardise, scores.absolute, linear.k, linear.renormalise)
