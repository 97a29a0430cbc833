"""A site as the GPU kernel knows it: score, select and apply in a few launches, none of which waits for the host.

The scores are one product of the tokens with all gates. Tokens in 16 bits are exact factors; a gate in float32 is the
sum of three of their numbers, so that three products on the matrix units, added up in float32, are as accurate as one
in float32. A program for each token then standardises, adds the global term and selects.
"""

import torch

from glider.layers.bank import Bank
from glider.layers.kernels import gpu
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearTopK
from glider.shapes import Float, Int, Tensor

MOST_EXPERTS = 4096  # whose scores one program holds
_WIDTHS = 2048  # columns of a token that are looked at together
_PARTS = 3  # numbers of 16 bits that add up to a float32


class TritonSite:
    """A site's experts, and where it can be described its router, on a GPU.

    Everything it reads stays where it is: whoever moves the bank or the site makes a new one.
    """

    name = "triton"

    def __init__(self, bank: Bank, site: Site | None, linear: LinearTopK | None, whole: bool = True):
        self.bank = bank
        self.decides = site is not None and linear is not None and len(site.absent) <= MOST_EXPERTS
        self.kept = 1 if linear is None else min(linear.k, bank.A.shape[0])
        self._width = bank.A.shape[-1]
        # all experts are multiplied by some tokens' zeros: no harm where everything is finite
        self._dense = whole and bool(bank.A.isfinite().all() & bank.B.isfinite().all())
        self._linear = linear
        if self.decides:
            assert site is not None and linear is not None
            self._absent = site.absent.to(torch.uint8)
            rows = linear.scores.rows
            self._rows = None if rows is None else rows.float().contiguous()
            self._sums = None if self._rows is None else self._rows.sum(dim=-1)
            self._parts: dict[torch.dtype, Tensor] = {}

    def serves(self, x: Tensor, y: Tensor) -> bool:
        """Whether it can compute a call for the tokens x that are to be added to y."""
        learns = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        return not learns and x.dtype == y.dtype and gpu.refusal(x, self.bank) is None

    def route(
        self,
        y: Float[Tensor, "*N O"],
        x: Float[Tensor, "*M D"],
        term: Float[Tensor, "B E"] | None,
        query_of: Int[Tensor, " T"] | None,
    ) -> None:
        """Decide for each token of x and add the experts' outputs to y, in place. Both contiguous."""
        tokens = x.view(-1, self._width)
        self.apply(y, tokens, self.decide(tokens, self.kept, term, query_of))

    def apply(self, y: Float[Tensor, "*N O"], x: Float[Tensor, "*M D"], decision: Decision) -> None:
        """Add the outputs of a decision's experts to y, in place. x and y contiguous."""
        tokens = x.view(-1, self._width)
        gpu.add_experts(y.view(len(tokens), -1), tokens, decision, self.bank, dense=self._dense)

    def decide(
        self,
        x: Float[Tensor, "T D"],
        kept: int,
        term: Float[Tensor, "B E"] | None = None,
        query_of: Int[Tensor, " T"] | None = None,
    ) -> Decision:
        """The decision by itself, of `kept` experts."""
        assert self._linear is not None
        tokens, count, scores = len(x), len(self._absent), self._linear.scores
        experts = torch.empty(tokens, kept, dtype=torch.long, device=x.device)
        weights = torch.empty(tokens, kept, dtype=torch.float32, device=x.device)
        if not tokens:
            return Decision(experts, weights)
        parts = 0 if self._rows is None else len(self._split(x.dtype)) // count
        products = weights if not parts else gpu.products(x, self._split(x.dtype))
        with gpu.on_device(x):
            gpu.programs().choose[(tokens,)](
                *(experts, weights, products, x, weights if self._sums is None else self._sums, self._absent),
                *(weights if term is None else term, experts if query_of is None else query_of),
                *(count, x.shape[1], kept, 0 if term is None else len(term)),
                *(1 if term is None else max(1, tokens // len(term)), scores.divisor),
                PARTS=parts,
                EXPERTS=gpu.power(count),
                WIDTHS=min(_WIDTHS, gpu.power(x.shape[1])),
                KEPT=gpu.power(kept),
                STANDARDISE=scores.standardise and parts > 0,
                ABSOLUTE=scores.absolute,
                RENORMALISE=self._linear.renormalise,
                TERM=term is not None,
                MAPPED=query_of is not None,
                num_warps=8,
            )
        return Decision(experts, weights)

    def _split(self, dtype: torch.dtype) -> Float[Tensor, "P D"]:
        """The gates as rows of a dtype that add up to them: all first parts, all second ones, all third ones."""
        if dtype not in self._parts:
            rest, parts = self._rows, []
            assert rest is not None
            for _ in range(1 if dtype == torch.float32 else _PARTS):
                parts.append(rest.to(dtype))
                rest = rest - parts[-1].float()
            self._parts[dtype] = torch.cat(parts).contiguous()
        return self._parts[dtype]
