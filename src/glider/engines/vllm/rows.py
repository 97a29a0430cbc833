"""What a request brings to the worker: how its tokens are treated, in plain numbers. Without a row it is bare."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glider.inference.engine import require_finite
from glider.routing.base import Prepared
from glider.routing.condition import Condition, Settled

ARGUMENT = "glider"  # of `SamplingParams.extra_args`
_ROOM = 3  # for experts of a request, on a device


@dataclass(frozen=True)
class Row:
    """One row of a condition: `experts` by `weights` for every token, or routed by token with `term` (empty: none)."""

    term: tuple[float, ...] = ()
    experts: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, condition: Condition) -> "Row | None":
        """The row of a condition of one query; None for one that the base alone answers.

        Raises `QueryError` for a term that is not finite.
        """
        if bool(condition.bare_rows[0]):
            return None
        settled = condition.settled
        if settled is not None and bool(settled.rows[0]):
            used = settled.weights[0] != 0
            return cls((), tuple(settled.experts[0][used].tolist()), tuple(settled.weights[0][used].tolist()))
        require_finite(condition)
        term = condition.term
        return cls(() if term is None else tuple(term[0].detach().float().tolist()))

    @property
    def encoded(self) -> dict[str, list[Any]]:
        """What goes between processes."""
        if self.experts:
            return {"experts": list(self.experts), "weights": list(self.weights)}
        return {"term": list(self.term)}

    @classmethod
    def decoded(cls, value: Any, count: int) -> "Row | None":
        """The row that `encoded` gave, for so many experts; None for what is none: its tokens are left to the base."""
        if not isinstance(value, dict):
            return None
        term, experts, weights = (value.get(name, ()) for name in ("term", "experts", "weights"))
        right = (
            all(isinstance(part, list | tuple) for part in (term, experts, weights))
            and len(term) in (0, count)
            and len(experts) == len(weights)
            and all(isinstance(one, int) and 0 <= one < count for one in experts)
            and all(isinstance(one, float) and not math.isnan(one) and one != math.inf for one in (*term, *weights))
        )
        return cls(tuple(term), tuple(experts), tuple(weights)) if right else None

    @property
    def condition(self) -> Condition:
        """The condition of one query."""
        if self.experts:
            return Condition(1, settled=Settled(torch.tensor([self.experts]), torch.tensor([self.weights])))
        if self.term:
            return Condition.of(torch.tensor([self.term]), torch.ones(1))
        return Condition.local(1)


def most_settled(prepared: Prepared) -> int:
    """How many experts a request can bring with weights of its own on a device, where all have the same room."""
    return max(_ROOM, 0 if prepared.judge is None else prepared.judge.thresholds.most_mixed)


def salt(row: Row | None, parts: Sequence[str], client: str | None) -> str | None:
    """What keys and values of a request's prompt are cached under: equal only for prompts that are treated alike.

    `parts` tell pool and router apart. A client's own salt separates its requests further and can never be that of a
    condition; a bare request without one shares the base's own cache.
    """
    if row is None and client is None:
        return None
    content = hashlib.sha256()
    condition = () if row is None else (*parts, repr(row.term), repr(row.experts), repr(row.weights))
    for part in ("bare" if row is None else "row", *condition, "" if client is None else f"client {client}"):
        content.update(f"{len(part.encode())}:".encode() + part.encode())
    return content.hexdigest()
