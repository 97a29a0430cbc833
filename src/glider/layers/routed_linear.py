"""A site's module with its experts beside it."""

import torch
from torch import nn

from glider.layers.bank import Bank
from glider.layers.context import RoutingContext
from glider.layers.kernels.reference import apply_experts
from glider.routing.base import Router, Site


class RoutedLinear(nn.Module):
    """y = base(x) + sum over kept e of w_e * s_e * B_e A_e x, the experts decided per token.

    `base` is anything that maps (..., D) to (..., O); it is called, never read, so it may be quantised.
    """

    def __init__(self, base: nn.Module, site: Site, bank: Bank, router: Router, context: RoutingContext, global_: bool):
        super().__init__()
        self.base, self.bank = base, bank
        self.site, self.router, self.context, self.uses_global = site, router, context, global_
        self.in_features, self.out_features = bank.A.shape[-1], bank.B.shape[1]

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: T5 asks its output layer for its dtype."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        tokens = x.reshape(-1, self.in_features)  # (T, D)
        site = self.site
        if site.absent.device != x.device:  # the model was moved after attaching
            self.site = site = site.to(x.device)
        decision = self.router.route(site, tokens, self._term(x, tokens))
        if self.context.batch is not None and self.context.batch.trace is not None:
            self.context.batch.trace.record(site.name, decision, x.shape[0] if x.ndim > 2 else None)
        return y + apply_experts(tokens, decision, self.bank).view(y.shape).to(y.dtype)

    def _term(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor | None:
        term = self.context.term(len(tokens), self.uses_global, x.shape[0] if x.ndim > 2 else None)
        return term if term is None else term.to(tokens.device)
