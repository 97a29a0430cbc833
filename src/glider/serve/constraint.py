"""Keeps one answer to a grammar, token by token."""

from typing import Any

import numpy
import torch

from glider.errors import QueryError


class Constraint:
    """Two processors around the others of a request, over one matcher of its own.

    `before` leaves the tokens that the grammar allows, so that what the others keep of the likeliest is kept of these.
    `after` takes back what others allowed all the same, such as a token that the base's settings force; where they
    leave no allowed one, theirs is not followed.
    """

    def __init__(self, matcher: Any, start: int):
        """`start` counts the tokens before the answer."""
        self._matcher, self._read = matcher, start
        self._refused = torch.empty(0, dtype=torch.bool)
        self._masked = torch.empty(0)

    def before(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Raises `QueryError` where the grammar has outgrown its limits, or no token can go on."""
        written = ids[0, self._read :].tolist()
        self._read += len(written)
        self._matcher.consume_tokens(written)
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _broken(self._matcher.get_error().split("\n<non-verbose/>")[0])
        bits = numpy.unpackbits(numpy.frombuffer(mask, numpy.uint8), bitorder="little")[: logits.shape[-1]]
        refused = torch.from_numpy(bits == 0)
        if bool(refused.all()):
            raise _broken("no token of the base that goes on")
        self._refused = refused.to(logits.device)
        self._masked = logits.masked_fill(self._refused, -torch.inf)
        return self._masked

    def after(self, _: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The processed logits, of allowed tokens alone."""
        processed = logits.masked_fill(self._refused, -torch.inf)
        return processed if bool(processed.isfinite().any()) else self._masked


def _broken(got: str) -> QueryError:
    return QueryError("an answer in the form that was asked for", got, "Ask for a simpler form.")
