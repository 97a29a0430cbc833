"""A site as one generation of the pool serves it: experts, router, and the kernel that computes them."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from glider.errors import KernelError
from glider.layers.bank import Bank
from glider.layers.context import Segment
from glider.layers.hot_bank import HotBank
from glider.layers.kernels import gpu, native
from glider.layers.kernels.choice import requested_kernel, require_native
from glider.layers.kernels.gpu_site import TritonSite
from glider.layers.kernels.grouped import add_experts, add_slots
from glider.layers.kernels.native import NativeSite
from glider.layers.kernels.reference import apply_experts, apply_slots
from glider.routing.base import Decision, Router, SequenceRouter, Site, SlotDecision, support_of
from glider.routing.linear import LinearRouter, LinearTopK

Bound = NativeSite | TritonSite
"""A site as a kernel knows it that decides by itself where it can."""


@runtime_checkable
class Watch(Protocol):
    """Receives the decision for some tokens, and the kernel that computed the experts."""

    def __call__(self, decision: Decision | SlotDecision, kernel: str) -> None: ...


class RoutedSite(nn.Module):
    """y += sum over kept e of w_e * s_e * B_e A_e x, the experts decided per token.

    `kernel` names the one that must run; by default each call takes the best that can.
    """

    def __init__(self, site: Site, bank: Bank | HotBank, router: Router, kernel: str | None = None):
        super().__init__()
        self.bank, self.site, self.router = bank, site, router
        self.in_features, self.out_features = bank.A.shape[-1], bank.B.shape[1]
        self.by_sequence = support_of(router).sequences
        self.whole = bank.whole
        self.kernel = requested_kernel(kernel)
        if self.kernel == "native":
            require_native(bank.stack, site.name)
        self._bound: Bound | bool | None = None  # at the first call; False: no kernel but PyTorch's can run here
        self._decider: Bound | None = None  # decides for a bank that has to be asked for the experts then

    def add(self, y: torch.Tensor, x: torch.Tensor, segment: Segment, watch: Watch | None = None) -> torch.Tensor:
        """y (..., O) with the experts' outputs for the tokens x (..., D) of a segment added.

        In place where y is contiguous, or a matrix that is part of a wider one, and can be; both belong to the caller.
        """
        bound = self._bound
        if bound is None:
            bound = self._bind()
        if isinstance(bound, bool) or not bound.serves(x, y):
            return self._added(y, x.reshape(-1, self.in_features), segment, None, watch)
        if not (x.is_contiguous() or (isinstance(bound, NativeSite) and native.addressable(x))):
            x = x.contiguous()
        if watch is None and segment.settled is not None and self.whole:
            bound.apply(y, x, segment.settled)
        elif watch is None and segment.settled is None and bound.decides:
            bound.route(y, x, segment.term, segment.query_of)
        else:
            return self._added(y, x.reshape(-1, self.in_features).contiguous(), segment, bound, watch)
        return y

    def add_at(self, y: torch.Tensor, x: torch.Tensor, segment: Segment, watch: Watch | None = None) -> torch.Tensor:
        """As `add` for tokens at the segment's index among those of x; the others' outputs stay, to the bit."""
        index = segment.index
        if index is None:
            return self.add(y, x, segment, watch)
        bound = self.kernel_for(segment) if watch is None else None
        if bound is not None and x.is_contiguous() and y.is_contiguous() and bound.serves(x, y):
            if segment.settled is not None:
                bound.apply(y, x, segment.settled, index)
            else:
                bound.route(y, x, segment.term, segment.query_of, index)
            return y
        rows = y.view(-1, self.out_features)
        tokens = x.reshape(-1, self.in_features).index_select(0, index)
        changed = self.add(rows.index_select(0, index), tokens, segment, watch)
        if torch.is_grad_enabled() and (y.requires_grad or changed.requires_grad):
            return rows.index_copy(0, index, changed).view(y.shape)
        rows.index_copy_(0, index, changed)
        return y

    def kernel_for(self, segment: Segment) -> NativeSite | None:
        """The native kernel if it can answer for a segment by itself, whatever else a call is; else None."""
        bound = self._bound
        if bound is None:
            bound = self._bind()
        if isinstance(bound, NativeSite) and (bound.decides if segment.settled is None else self.whole):
            return bound
        return None

    def _added(
        self, y: torch.Tensor, tokens: torch.Tensor, segment: Segment, bound: Bound | None, watch: Watch | None
    ) -> torch.Tensor:
        """y with the experts of a decision added that was made before, or is made here."""
        if self.site.absent.device != tokens.device:  # the model was moved after attaching
            self.site = self.site.to(tokens.device)
        decision = self._decision(tokens, segment, bound if watch is None else None)
        kernel = self._choose(tokens, y, decision, bound)
        if watch is not None:
            watch(decision, kernel)
        if isinstance(decision, SlotDecision):
            return self._mixed(y, tokens, decision, kernel)
        with self.bank.lock:
            for part in self.bank.parts(decision):
                y = self._apply_part(y, tokens, part, kernel, bound)
        return y

    def _decision(self, tokens: torch.Tensor, segment: Segment, bound: Bound | None) -> Decision | SlotDecision:
        if segment.settled is not None:
            return segment.settled
        if segment.sequence_of is not None and isinstance(self.router, SequenceRouter):
            return self.router.route_sequences(self.site, tokens, segment.term_of(len(tokens)), segment.sequence_of)
        if bound is not None and self._decider is not None:
            return self._decider.decide(tokens, self._decider.per_token, segment.term, segment.query_of)
        return self.router.route(self.site, tokens, segment.term_of(len(tokens)))

    def _apply_part(
        self, y: torch.Tensor, tokens: torch.Tensor, decision: Decision, kernel: str, bound: Bound | None
    ) -> torch.Tensor:
        """y with the experts of a decision, by place in the bank's stack, added; in place where that can be."""
        stack = self.bank.stack
        if kernel in ("native", "triton") and bound is not None:
            bound.apply(y, tokens, decision)
            return y
        if kernel == "reference":
            return y + apply_experts(tokens, decision, stack).view(y.shape).to(y.dtype)
        change = y if y.dtype == tokens.dtype else tokens.new_zeros(y.shape)
        add = gpu.add_experts if kernel == "triton" else add_experts
        add(change.view(-1, self.out_features), tokens, decision, stack)
        return y if change is y else y + change.to(y.dtype)

    def _mixed(self, y: torch.Tensor, tokens: torch.Tensor, decision: SlotDecision, kernel: str) -> torch.Tensor:
        """y with the outputs of slots added, which mix tokens."""
        if not self.bank.whole:
            got = f"experts in limited memory at {self.site.name}"
            raise KernelError("all experts in memory, for a router that mixes tokens", got, "Leave the limit out.")
        apply = apply_slots if kernel == "reference" else add_slots
        return y + apply(tokens, decision, self.bank.stack).view(y.shape).to(y.dtype)

    def _choose(self, x: torch.Tensor, y: torch.Tensor, decision: Decision | SlotDecision, bound: Bound | None) -> str:
        """The kernel of a call whose decision is made."""
        weights = decision.combine if isinstance(decision, SlotDecision) else decision.weights
        learns = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (x, y, weights, self.bank.A, self.bank.B)
        )
        mixes = isinstance(decision, SlotDecision)
        if bound is not None and not learns and not mixes:
            return bound.name
        if self.kernel in ("native", "triton"):
            if self.kernel == "triton" and not learns and not mixes and gpu.refusal(x, self.bank.stack) is None:
                return "triton"  # for an output of another dtype
            expected = f"a call that the {self.kernel} kernel can run at {self.site.name}"
            got = "a router that mixes tokens" if mixes else self._refusal(x, learns)
            raise KernelError(expected, got, "Choose kernel torch.")
        if self.kernel == "reference" or x.device.type == "meta":
            return "reference"
        return "torch"

    def _refusal(self, x: torch.Tensor, learns: bool) -> str:
        """Why the requested kernel cannot run a call."""
        stack = self.bank.stack
        if self.kernel == "native" and self._bound is False:
            return native.refusal(stack) or "it cannot"
        if learns:
            return "a call that needs gradients"
        refused = gpu.refusal(x, stack) if self.kernel == "triton" else None
        return refused or f"tokens in {x.dtype} on {x.device}"

    def _bind(self) -> Bound | bool:
        """The site in a kernel that decides by itself; False where no kernel can serve it."""
        bound: Bound | bool = False
        stack = self.bank.stack
        if self.site.absent.device != stack.A.device:  # the model was moved after attaching
            self.site = self.site.to(stack.A.device)
        linear = self._linear()
        if self.kernel in (None, "native") and native.extension() is not None and native.refusal(stack) is None:
            if self.bank.whole:
                bound = NativeSite(stack, self.site, linear)
            else:
                bound = NativeSite(stack, None, None)
                self._decider = linear and NativeSite.deciding(self.in_features, self.site, linear)
        elif gpu.why_absent() is None and (self.kernel == "triton" or (self.kernel is None and stack.A.is_cuda)):
            decides = (self.site, linear) if self.bank.whole else (None, None)
            bound = TritonSite(stack, *decides, whole=self.bank.whole)
        self._bound = bound
        return bound

    def _linear(self) -> LinearTopK | None:
        return self.router.linear(self.site) if isinstance(self.router, LinearRouter) else None

    def _apply(self, fn: Any, recurse: bool = True) -> "RoutedSite":
        self._bound = self._decider = None  # tensors move
        return super()._apply(fn, recurse)
