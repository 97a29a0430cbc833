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
from glider.layers.kernels.grouped import add_experts
from glider.layers.kernels.native import NativeSite
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Decision, Router, Site
from glider.routing.linear import LinearRouter, LinearTopK


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
        self._native: NativeSite | bool | None = None  # bound at the first call; False: it cannot run here
        self._decider: NativeSite | None = None  # decides for a bank that has to be asked for the experts then

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
        bound = self._native
        if bound is None:
            bound = self._bind()
        if bound is False or not _plain(x, y):
            return self._routed(x, _own(y, base), None)
        assert isinstance(bound, NativeSite)
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
        bound.route(y, x, batch.host_term, batch.host_queries)
        return y

    def _routed(self, x: torch.Tensor, y: torch.Tensor, bound: NativeSite | None) -> torch.Tensor:
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
        self, y: torch.Tensor, tokens: torch.Tensor, decision: Decision, kernel: str, bound: NativeSite | None
    ) -> torch.Tensor:
        """y with the experts of a decision, by place in the bank's stack, added; in place where that can be."""
        stack = self.bank.stack
        if kernel == "native":
            assert bound is not None
            bound.apply(y, tokens, decision)
            return y
        if kernel == "reference":
            return y + apply_experts(tokens, decision, stack).view(y.shape).to(y.dtype)
        change = y if y.dtype == tokens.dtype else tokens.new_zeros(y.shape)
        add = gpu.add_experts if kernel == "triton" else add_experts
        add(change.view(-1, self.out_features), tokens, decision, stack)
        return y if change is y else y + change.to(y.dtype)

    def _decide(self, decider: NativeSite, x: torch.Tensor, tokens: torch.Tensor, batch: Batch | None) -> Decision:
        """The native router's decision for plain tokens."""
        if batch is None or batch.condition is None:
            self._term(x, tokens)  # warns where there should be one
            return decider.decide(tokens, decider.kept)
        batch.check(len(tokens), x.shape[0] if x.ndim > 2 else None)
        return decider.decide(tokens, decider.kept, batch.host_term, batch.host_queries)

    def _choose(self, x: torch.Tensor, y: torch.Tensor, decision: Decision, bound: NativeSite | None) -> str:
        """The kernel of a call whose decision is made."""
        if bound is not None and not (torch.is_grad_enabled() and decision.weights.requires_grad):
            return "native"
        if self.kernel == "native":
            if self._native is False:
                got = native.refusal(self.bank.stack) or "it cannot"
            else:
                got = "a call that needs gradients" if torch.is_grad_enabled() else f"tokens in {x.dtype} on {x.device}"
            raise KernelError(f"a call that the native kernel can run at {self.site.name}", got, "Choose kernel torch.")
        if self.kernel == "triton":  # by wish alone, until it has run on a GPU
            learns = torch.is_grad_enabled() and any(
                t.requires_grad for t in (x, y, decision.weights, self.bank.A, self.bank.B)
            )
            reason = "a call that needs gradients" if learns else gpu.refusal(x, self.bank.stack)
            if reason is not None:
                wanted = f"a call that the triton kernel can run at {self.site.name}"
                raise KernelError(wanted, reason, "Choose kernel torch.")
            return "triton"
        if self.kernel == "reference" or x.device.type == "meta":
            return "reference"
        return "torch"

    def _bind(self) -> NativeSite | bool:
        """The site as the native kernel knows it; False where it cannot serve it."""
        bound: NativeSite | bool = False
        stack = self.bank.stack
        if self.kernel in (None, "native") and native.extension() is not None and native.refusal(stack) is None:
            linear = self._linear()
            if self.bank.whole:
                bound = NativeSite(stack, self.site, linear)
            else:
                bound = NativeSite(stack, None, None)
                self._decider = linear and NativeSite.deciding(self.in_features, self.site, linear)
        self._native = bound
        return bound

    def _linear(self) -> LinearTopK | None:
        return self.router.linear(self.site) if isinstance(self.router, LinearRouter) else None

    def _apply(self, fn: Any, recurse: bool = True) -> "RoutedLinear":
        self._native = self._decider = None  # tensors move
        return super()._apply(fn, recurse)

    def _term(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor | None:
        count = tokens.numel() // self.in_features
        return self.context.term(count, self.uses_global, x.shape[0] if x.ndim > 2 else None, tokens.device)


def _plain(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Float32 on the CPU, and nothing to differentiate."""
    return (
        x.dtype is torch.float32
        and y.dtype is torch.float32
        and x.is_cpu
        and y.is_cpu
        and not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad))
    )


def _own(y: torch.Tensor, base: nn.Module) -> torch.Tensor:
    """An output that may be written to: a layer of another kind may give what belongs to somebody else."""
    fresh = type(base) is nn.Linear and not base._forward_hooks and y.is_contiguous()
    return y if fresh else y.clone(memory_format=torch.contiguous_format)
