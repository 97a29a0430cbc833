"""A site as the GPU kernel knows it: score, select and apply in a few launches, none of which waits for the host.

The scores are one product of the tokens with all gates. Tokens in 16 bits are exact factors; a gate in float32 is the
sum of three of their numbers, so that three products on the matrix units, added up in float32, are as accurate as one
in float32. A program for each token then standardises, adds the global term and selects.
"""

from dataclasses import dataclass

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
        self.per_token = 1 if linear is None else min(linear.k, bank.A.shape[0])
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
        self.apply(y, tokens, self.decide(tokens, self.per_token, term, query_of))

    def apply(self, y: Float[Tensor, "*N O"], x: Float[Tensor, "*M D"], decision: Decision) -> None:
        """Add the outputs of a decision's experts to y, in place. x and y contiguous."""
        tokens = x.view(-1, self._width)
        gpu.add_experts(y.view(len(tokens), -1), tokens, decision, self.bank, dense=self._dense)

    def decide(
        self,
        x: Float[Tensor, "T D"],
        per_token: int,
        term: Float[Tensor, "B E"] | None = None,
        query_of: Int[Tensor, " T"] | None = None,
    ) -> Decision:
        """The decision by itself, of `per_token` experts."""
        assert self._linear is not None
        rows = None if self._rows is None else self._split(x.dtype)
        return choose(x, self._linear, rows, self._sums, self._absent, (per_token, per_token), term, query_of)

    def _split(self, dtype: torch.dtype) -> Float[Tensor, "P D"]:
        assert self._rows is not None
        if dtype not in self._parts:
            self._parts[dtype] = split(self._rows, dtype)
        return self._parts[dtype]


@dataclass(frozen=True)
class QueryTable:
    """What the tokens of queries use, by row: the experts that are chosen with a global term, or settled ones.

    It stays where it is, so that a CUDA graph which has read it reads what was put there since. `routed` is 1 for rows
    whose tokens are routed; tokens of another row use its `experts` with `weights`, and none where all weights are 0.
    """

    term: Float[Tensor, "Q E"]
    routed: Int[Tensor, " Q"]
    experts: Int[Tensor, "Q K"]
    weights: Float[Tensor, "Q K"]


def choose(
    x: Float[Tensor, "T D"],
    linear: LinearTopK,
    rows: Float[Tensor, "P D"] | None,
    sums: Tensor | None,  # as absent
    absent: Tensor,  # (E,) or (S, E), of one byte
    places: tuple[int, int],
    term: Float[Tensor, "B E"] | None = None,
    query_of: Int[Tensor, " T"] | None = None,
    table: QueryTable | None = None,
) -> Decision:
    """The decisions of one site, or of several (S) that see the same tokens and whose router is `linear` at each.

    `places` are how many experts are chosen and how many a token has room for. `rows` are the gates' parts, by site, by
    part, by expert. Experts of several sites are numbered through, those of a token stand by site (T, S K). With a
    table, `query_of` are rows of it.
    """
    sites = absent.shape[0] if absent.dim() > 1 else 1
    tokens, count, scores, (top, per_token) = len(x), absent.shape[-1], linear.scores, places
    experts = torch.empty(tokens, sites * per_token, dtype=torch.long, device=x.device)
    weights = torch.empty(tokens, sites * per_token, dtype=torch.float32, device=x.device)
    if not tokens:
        return Decision(experts, weights)
    term = term if table is None else table.term
    parts = 0 if rows is None else len(rows) // (sites * count)
    products = weights if rows is None else gpu.products(x, rows)
    routed, settled, shares = experts, experts, weights  # not read without a table
    if table is not None:
        routed, settled, shares = table.routed, table.experts, table.weights
    with gpu.on_device(x):
        gpu.programs().choose[(tokens, sites)](
            experts_at=experts, weights_at=weights, products_at=products, x_at=x,
            sums_at=weights if sums is None else sums, absent_at=absent,
            term_at=weights if term is None else term, queries_at=experts if query_of is None else query_of,
            routed_at=routed, settled_at=settled, shares_at=shares,
            count=count, width=x.shape[1], per_token=per_token, top=top,
            queries=0 if term is None else len(term),
            tokens_each=1 if term is None or query_of is not None else max(1, tokens // len(term)),
            divisor=scores.divisor,
            PARTS=parts, EXPERTS=gpu.power(count), WIDTHS=min(_WIDTHS, gpu.power(x.shape[1])),
            PLACES=gpu.power(per_token), STANDARDISE=scores.standardise and parts > 0, ABSOLUTE=scores.absolute,
            RENORMALISE=linear.renormalise, TERM=term is not None, MAPPED=query_of is not None,
            SETTLED=table is not None, SITES=sites, num_warps=8,
        )  # fmt: skip
    return Decision(experts, weights)


def split(rows: Float[Tensor, "E D"], dtype: torch.dtype) -> Float[Tensor, "P D"]:
    """Gates as rows of a dtype that add up to them: all first parts, all second ones, all third ones."""
    rest, parts = rows, []
    for _ in range(1 if dtype == torch.float32 else _PARTS):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].float()
    return torch.cat(parts).contiguous()
