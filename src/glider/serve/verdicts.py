"""The condition and verdict of a query: the one place where the server computes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from glider.inference.conversation import Turn, question_text
from glider.inference.queries import Query
from glider.routing.base import Observer
from glider.routing.condition import Condition

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.layers.attach import Generation

Override = Literal["route", "base"] | None


def condition_of(
    model: "RoutedModel",
    generation: "Generation",
    query: Query,
    ids: Sequence[int],
    override: Override,
    turns: Sequence[Turn] = (),
) -> tuple[Condition, str | None]:
    """The condition of one query for this generation of the pool, and the verdict (None where nobody judged).

    Of a conversation the text that is asked is that of `glider.inference.conversation`.
    """

    observes = isinstance(generation.router, Observer)  # then the verdict alone is that of a text

    def of(query: Query) -> Condition:
        if observes:
            return model.reader.judged([query], Condition.local(1), generation.prepared)
        return model.reader.condition([query], generation.router, generation.prepared)

    if len(turns) > 1:
        judged = generation.prepared.judge is not None
        knows = (lambda text: of(replace(query, text=text)).verdicts == ("fits",)) if judged else None
        query = replace(query, text=question_text(turns, knows))
    query = replace(query, verdict=override)
    condition = model.condition_of([query], model.encoder.batch([list(ids)]), generation) if observes else of(query)
    return condition, condition.verdicts[0] if condition.verdicts else None
