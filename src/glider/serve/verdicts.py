"""What the core says of a query: one place where the server asks for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from glider.inference.queries import Query
from glider.routing.base import Observer
from glider.routing.condition import Condition

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.layers.attach import Generation

Override = Literal["route", "base"] | None


def condition_of(
    model: "RoutedModel", generation: "Generation", query: Query, ids: Sequence[int], override: Override
) -> tuple[Condition, str | None]:
    """The condition of one query for this generation of the pool, and the verdict (None where none is given)."""
    if override == "base":
        return Condition.nobody(1), None
    if isinstance(generation.router, Observer):
        return model.condition_of([query], model.encoder.batch([list(ids)])), None
    return model.reader.condition([query], generation.router, generation.prepared), None


def asked_text(turns: Sequence[tuple[str, str]]) -> str:
    """What the user asks in a conversation of (role, text): the user's turns, without a word of the template."""
    return "\n\n".join(text for role, text in turns if role == "user")
