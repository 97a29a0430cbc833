"""The sequences of a pass's tokens, for routers that decide a prompt's tokens together, like expert choice.

Hooks on the model (and on the encoder, where it has one) see what a pass brings: the mask of padding, and whether
it goes on from a cache. Of a prompt the tokens of a row stand together; what follows a prompt stands alone, token by
token, and so does everything in a decoder that has an encoder beside it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from glider.errors import QueryError
from glider.layers.caches import cache_among, has_tokens
from glider.layers.compiled import Untraced
from glider.shapes import Int, Tensor

PADDING = -1


@dataclass(frozen=True)
class Sequences:
    """The tokens (B, S) of a pass by the number of their sequence, -1 for padding."""

    number: Int[Tensor, "B S"]
    _on: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: int, length: int, mask: Tensor | None, together: bool) -> "Sequences":
        """Rows of tokens, those of one row together or each alone; `mask` (B, S) is 0 at padding."""
        number = torch.arange(rows)[:, None].repeat(1, length)
        if not together:
            number = torch.arange(rows * length).view(rows, length)
        if mask is not None:
            number = number.masked_fill(mask.cpu() == 0, PADDING)
        return cls(number)

    def of_tokens(self, tokens: int, device: torch.device) -> Int[Tensor, " T"]:
        """The numbers of a call's tokens; those of a call that sees others than the pass does stand alone."""
        if tokens != self.number.numel():
            return torch.arange(tokens, device=device)
        if device not in self._on:
            self._on[device] = self.number.flatten().to(device)
        return self._on[device]


@runtime_checkable
class Passes(Protocol):
    """Receives the passes of a model, in the thread that runs them."""

    def enter_pass(self, sequences: Sequences) -> None: ...

    def leave_pass(self) -> None: ...


def watch_passes(model: Any, passes: Passes, closing: ExitStack) -> None:
    """Report every pass of a transformers model until `closing` ends."""
    seq2seq = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    parts: list[tuple[nn.Module, bool]] = [(model, not seq2seq)]
    if seq2seq:
        parts.append((model.get_encoder(), True))
    for part, together in parts:
        enter, leave = _entering(passes, together), _leaving(passes)
        for hook in (
            part.register_forward_pre_hook(Untraced(enter), with_kwargs=True),
            part.register_forward_hook(Untraced(leave), with_kwargs=True, always_call=True),
        ):
            closing.callback(hook.remove)


def _entering(passes: Passes, together: bool) -> Callable[..., None]:
    def enter(_: Any, arguments: tuple, inputs: dict[str, Any]) -> None:
        candidates = (inputs.get("input_ids"), inputs.get("inputs_embeds"), *arguments[:1])
        ids = next((one for one in candidates if one is not None), None)
        if ids is None or not together:  # a decoder beside an encoder: all its tokens stand alone
            passes.enter_pass(Sequences(torch.zeros(0, 0, dtype=torch.long)))
            return
        rows, length = ids.shape[:2]
        mask = inputs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            got = "one of another form" if isinstance(mask, torch.Tensor) else type(mask).__name__
            remedy = "Give the mask of padding as (rows, tokens), or choose another router."
            raise QueryError("a mask of padding, for a router that decides prompts as a whole", got, remedy)
        first = not has_tokens(cache_among(inputs)) and (mask is None or mask.shape[1] == length)
        passes.enter_pass(Sequences.of(rows, length, None if mask is None else mask[:, -length:], first))

    return enter


def _leaving(passes: Passes) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        passes.leave_pass()

    return leave
