"""A site's module with its experts beside it."""

from typing import Any

import torch
from torch import nn

from glider.errors import KernelError
from glider.layers.bank import Bank
from glider.layers.context import Batch, RoutingContext
from glider.layers.hot_bank import HotBank
from glider.layers.kernels import gpu, native
from glider.layers.kernels.choice import require_native, wanted_kernel
from glider.layers.kernels.gpu_site import TritonSite
from glider.layers.kernels.grouped import add_experts
from glider.layers.kernels.native import NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision, Router, Site
from glider.routing.linear import LinearRouter, LinearTopK

Bound = NativeSite | TritonSite
"""A site as a kernel knows it that decides by itself where it can."""


class RoutedLinear(nn.Module):
    """y = base(x) + sum over kept e of w_e * s_e * B_e A_e x, the experts decided per token.

    `base` is anything that maps (..., D) to (..., O); it is called, never read, so it may be quantised. `kernel` names
    the one that must run; by default each call takes the best that can.
    """

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        bank: Bank | HotBank,
        router: Router,
        context: RoutingContext,
        global_: bool,
        kernel: str | None = None,
    ):
        super().__init__()
        self.base, self.bank = base, bank
        self.site, self.router, self.context, self.uses_global = site, router, context, global_
        self.in_features, self.out_features = bank.A.shape[-1], bank.B.shape[1]
        self.kernel = wanted_kernel(kernel)
        if self.kernel == "native":
            require_native(bank.stack, site.name)
        self._bound: Bound | bool | None = None  # at the first call; False: no kernel but PyTorch's can run here
        self._decider: Bound | None = None  # decides for a bank that has to be asked for the experts then

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: T5 asks its output layer for its dtype."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base: Any = self._modules["base"]  # every attribute that is a module costs a search
        y = base(x)
        batch = self.context.batch
        if batch is not None and batch.bare:
            return y
        bound = self._bound
        if bound is None:
            bound = self._bind()
        if isinstance(bound, bool) or not bound.serves(x, y):
            return self._routed(x, _own(y, base), None)
        if type(base) is not nn.Linear or base._forward_hooks or not y.is_contiguous():
            y = _own(y, base)
        if not x.is_contiguous():
            x = x.contiguous()
        if not bound.decides or (batch is not None and batch.trace is not None):
            return self._routed(x, y, bound)
        if batch is None or batch.condition is None:
            if batch is None and self.uses_global:
                self._term(x, x)  # warns
            bound.route(y, x, None, None)
            return y
        rows = x.shape[0] if x.ndim > 2 else None
        batch.check(x.numel() // self.in_features, rows)
        bound.route(y, x, *batch.for_kernel(x.device))
        return y

    def _routed(self, x: torch.Tensor, y: torch.Tensor, bound: Bound | None) -> torch.Tensor:
        """Let the router decide, record it where that is asked, and add the experts to y."""
        tokens = x.reshape(-1, self.in_features)  # (T, D)
        site = self.site
        if site.absent.device != x.device:  # the model was moved after attaching
            self.site = site = site.to(x.device)
        batch = self.context.batch
        tracing = batch is not None and batch.trace is not None
        if bound is not None and self._decider is not None and not tracing:
            decision = self._decide(self._decider, x, tokens, batch)
        else:
            decision = self.router.route(site, tokens, self._term(x, tokens))
        kernel = self._choose(tokens, y, decision, bound)
        if batch is not None and batch.trace is not None:
            batch.trace.record(site.name, decision, x.shape[0] if x.ndim > 2 else None, kernel)
        with self.bank.lock:
            for part in self.bank.parts(decision):
                y = self._add(y, tokens, part, kernel, bound)
        return y

    def _add(
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

    def _decide(self, decider: Bound, x: torch.Tensor, tokens: torch.Tensor, batch: Batch | None) -> Decision:
        """The native router's decision for plain tokens."""
        if batch is None or batch.condition is None:
            self._term(x, tokens)  # warns where there should be one
            return decider.decide(tokens, decider.kept)
        batch.check(len(tokens), x.shape[0] if x.ndim > 2 else None)
        return decider.decide(tokens, decider.kept, *batch.for_kernel(tokens.device))

    def _choose(self, x: torch.Tensor, y: torch.Tensor, decision: Decision, bound: Bound | None) -> str:
        """The kernel of a call whose decision is made."""
        learns = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (x, y, decision.weights, self.bank.A, self.bank.B)
        )
        if bound is not None and not learns:
            return bound.name
        if self.kernel in ("native", "triton"):
            if self.kernel == "triton" and not learns and gpu.refusal(x, self.bank.stack) is None:
                return "triton"  # for an output of another dtype
            wanted = f"a call that the {self.kernel} kernel can run at {self.site.name}"
            raise KernelError(wanted, self._refusal(x, learns), "Choose kernel torch.")
        if self.kernel == "reference" or x.device.type == "meta":
            return "reference"
        return "torch"

    def _refusal(self, x: torch.Tensor, learns: bool) -> str:
        """Why the kernel that was asked for cannot run a call."""
        stack = self.bank.stack
        if self.kernel == "native" and self._bound is False:
            return native.refusal(stack) or "it cannot"
        if learns:
            return "a call that needs gradients"
        refused = gpu.refusal(x, stack) if self.kernel == "triton" else None
        return refused or f"tokens in {x.dtype} on {x.device}"

    def _bind(self) -> Bound | bool:
        """The site as a kernel that decides by itself knows it; False where none can serve it."""
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

    def _apply(self, fn: Any, recurse: bool = True) -> "RoutedLinear":
        self._bound = self._decider = None  # tensors move
        return super()._apply(fn, recurse)

    def _term(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor | None:
        count = tokens.numel() // self.in_features
        return self.context.term(count, self.uses_global, x.shape[0] if x.ndim > 2 else None, tokens.device)


def _own(y: torch.Tensor, base: nn.Module) -> torch.Tensor:
    """An output that may be written to: a layer of another kind may give what belongs to somebody else."""
    fresh = type(base) is nn.Linear and not base._forward_hooks and y.is_contiguous()
    return y if fresh else y.clone(memory_format=torch.contiguous_format)
