"""The CPU kernel in C++: score, select and apply in one call, threads and vectors within. Built where it can be.

It takes addresses, so it is bound to no version of PyTorch, and runs its threads in the OpenMP runtime that PyTorch
has loaded. The arithmetic is float32; experts may be stored in bfloat16, and inputs and outputs be bfloat16.
Where the processor has tiles for bfloat16 (AMX), experts in bfloat16 are multiplied there if they have several
tokens: float32 inputs as sums of three bfloat16, which keeps all of them; bfloat16 ones as they are, and a token's
codes then have 16 bits between A and B. So are the scores of many tokens by the rows of a router.
"""

import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearTopK
from glider.shapes import Float, Int, Tensor

DTYPES = (torch.float32, torch.bfloat16)  # of inputs and outputs
SHORTLIST_FROM = 48  # experts; with fewer, reading all rows in float32 costs less than two passes


@cache
def extension() -> ModuleType | None:
    """The built extension, with the threads of PyTorch's runtime; None where it was not built."""
    try:
        from glider.layers.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return None
    any(_native.use_runtime(name) for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"))
    isa = os.environ.get("GLIDER_ISA")
    if isa in _native.isas():
        _native.use_isa(isa)
    return _native


def why_absent() -> str | None:
    """Why there is no native kernel, or None if there is."""
    if extension() is not None:
        return None
    return "it was not built (no C++ compiler at installation)"


def refusal(bank: Bank) -> str | None:
    """Why the kernel cannot serve a site's experts, or None."""
    if bank.A.device.type != "cpu":
        return f"the experts are on {bank.A.device.type}"
    if bank.A.dtype != bank.B.dtype or bank.A.dtype not in (torch.float32, torch.bfloat16):
        return f"the experts are stored in {str(bank.A.dtype).removeprefix('torch.')}"
    if bank.A.requires_grad or bank.B.requires_grad:
        return "the experts need gradients"
    return None


class NativeSite:
    """A site's experts, and where it can be described its router, as the extension knows them.

    Everything it reads stays where it is: whoever moves the bank or the site makes a new one.
    """

    name = "native"

    def __init__(self, bank: Bank, site: Site | None, linear: LinearTopK | None, shortlist: bool | None = None):
        assert refusal(bank) is None
        experts, rank, width = bank.A.shape
        a, b = bank.A.contiguous(), bank.B.mT.contiguous()  # as they are stored
        scaling = bank.scaling.float().contiguous()
        self._open(experts, rank, width, bank.B.shape[1], (a, b, scaling), site, linear, shortlist)

    @classmethod
    def deciding(cls, width: int, site: Site, linear: LinearTopK, shortlist: bool | None = None) -> "NativeSite":
        """The router alone: `decide` is all it can."""
        decider = cls.__new__(cls)
        decider._open(len(site.absent), 1, width, 1, None, site, linear, shortlist)
        return decider

    def _open(
        self,
        experts: int,
        rank: int,
        width: int,
        out: int,
        factors: tuple[Tensor, Tensor, Tensor] | None,
        site: Site | None,
        linear: LinearTopK | None,
        shortlist: bool | None,
    ) -> None:
        native = extension()
        assert native is not None
        a, b, scaling = factors or (None, None, torch.ones(experts))
        scores = None if linear is None else linear.scores
        rows = None if scores is None or scores.rows is None else scores.rows.float().contiguous()
        absent = site.absent.contiguous() if site is not None and site.absent.any() else None
        self._held = (a, b, rows)
        self._width = width
        self.decides = linear is not None
        self.per_token = 1 if linear is None else min(linear.k, experts)
        self._site = native.site(
            experts=experts,
            rank=rank,
            width=width,
            out=out,
            bfloat16=a is not None and a.dtype == torch.bfloat16,
            a=_address(a),
            b=_address(b),
            scaling=_address(scaling),
            rows=_address(rows),
            absent=_address(absent),
            standardise=scores is not None and scores.standardise,
            absolute=scores is not None and scores.absolute,
            renormalise=linear is not None and linear.renormalise,
            divisor=1.0 if scores is None else scores.divisor,
            kept=1 if linear is None else linear.k,
            shortlist=rows is not None
            and linear is not None
            and linear.renormalise  # what the shortlist leaves out counts a millionth then, and in full otherwise
            and (experts >= SHORTLIST_FROM if shortlist is None else shortlist),
        )
        self._decide = native.decide
        self.group = NativeGroup((self._site,), width)

    def serves(self, x: Tensor, y: Tensor) -> bool:
        """Float32 or bfloat16 on the CPU, and nothing to differentiate."""
        return (
            x.dtype in DTYPES
            and y.dtype is x.dtype
            and x.is_cpu
            and y.is_cpu
            and not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad))
        )

    def route(
        self,
        y: Float[Tensor, "*N O"],
        x: Float[Tensor, "*M D"],
        term: Float[Tensor, "B E"] | None,
        query_of: Int[Tensor, " T"] | None,
        index: Int[Tensor, " T"] | None = None,
    ) -> None:
        """Decide for each token of x and add the experts' outputs to y, in place: see `NativeGroup.route`."""
        self.group.route((y,), x, term, query_of, index)

    def apply(
        self,
        y: Float[Tensor, "*N O"],
        x: Float[Tensor, "*M D"],
        decision: Decision,
        index: Int[Tensor, " T"] | None = None,
    ) -> None:
        """Add the outputs of a decision's experts to y, in place: see `NativeGroup.apply`."""
        self.group.apply((y,), x, decision, index)

    def decide(
        self,
        x: Float[Tensor, "T D"],
        per_token: int,
        term: Float[Tensor, "B E"] | None = None,
        query_of: Int[Tensor, " T"] | None = None,
    ) -> Decision:
        """The decision by itself, of `per_token` experts (K, or all experts if they are fewer)."""
        experts = torch.empty(x.shape[0], per_token, dtype=torch.long)
        weights = torch.empty(x.shape[0], per_token)
        self._decide(
            self._site,
            x.data_ptr(),
            x.shape[0],
            0 if term is None else term.data_ptr(),
            1 if term is None else term.shape[0],
            0 if query_of is None else query_of.data_ptr(),
            experts.data_ptr(),
            weights.data_ptr(),
            x.dtype is torch.bfloat16,
        )
        return Decision(experts, weights)


class NativeGroup:
    """Sites that see the same tokens, answered by one call.

    Outputs `ys`, one for each site, are of the dtype of x, float32 or bfloat16. Rows lie side by side, or x and all of
    `ys` are matrices whose rows are some distance apart, of `ys` the same. With `index` the tokens are these rows of x,
    of `ys` too.
    """

    def __init__(self, sites: tuple[object, ...], width: int):
        native = extension()
        assert native is not None
        self._sites, self._width = sites, width
        self._route, self._apply = native.route, native.apply

    @classmethod
    def of(cls, sites: Sequence[NativeSite]) -> "NativeGroup":
        """The sites together, in this order."""
        return cls(tuple(site._site for site in sites), sites[0]._width)

    def route(
        self,
        ys: Sequence[Float[Tensor, "*N _"]],
        x: Float[Tensor, "*M D"],
        term: Float[Tensor, "B E"] | None,
        query_of: Int[Tensor, " T"] | None,
        index: Int[Tensor, " T"] | None = None,
    ) -> None:
        """Decide for each token, at each site by its own gates, and add the experts' outputs to y, in place."""
        self._route(
            self._sites,
            x.data_ptr(),
            tuple([y.data_ptr() for y in ys]),
            x.numel() // self._width if index is None else len(index),
            0 if term is None else term.data_ptr(),
            1 if term is None else term.shape[0],
            0 if query_of is None else query_of.data_ptr(),
            0 if index is None else index.data_ptr(),
            _distance(x),
            _distance(ys[0]),
            x.dtype is torch.bfloat16,
        )

    def apply(
        self,
        ys: Sequence[Float[Tensor, "*N _"]],
        x: Float[Tensor, "*M D"],
        decision: Decision,
        index: Int[Tensor, " T"] | None = None,
    ) -> None:
        """Add the outputs of a decision's experts to y, in place; the decision is the same at each site."""
        experts, weights = decision.experts, decision.weights
        if experts.dtype is not torch.long or not experts.is_contiguous():  # in decoding each call of PyTorch counts
            experts = experts.long().contiguous()
        if weights.dtype is not torch.float32 or not weights.is_contiguous():
            weights = weights.float().contiguous()
        self._apply(
            self._sites,
            x.data_ptr(),
            tuple([y.data_ptr() for y in ys]),
            x.numel() // self._width if index is None else len(index),
            experts.data_ptr(),
            weights.data_ptr(),
            experts.shape[1],
            0 if index is None else index.data_ptr(),
            _distance(x),
            _distance(ys[0]),
            x.dtype is torch.bfloat16,
        )


def addressable(tensor: torch.Tensor) -> bool:
    """Whether the kernel can find the rows of a tensor: side by side, or those of a matrix some distance apart."""
    return tensor.is_contiguous() or (
        tensor.dim() == 2 and tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1]
    )


def _distance(tensor: torch.Tensor) -> int:
    """Of rows that do not lie side by side; else 0."""
    return 0 if tensor.is_contiguous() else tensor.stride(0)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
