"""What the routed layers of one model need to know about the batch in flight: a value the caller owns."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from glider.errors import QueryError
from glider.layers.trace import Trace
from glider.routing.base import Condition
from glider.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class Batch:
    """The global term of the batch, which query each token belongs to, and where to record decisions."""

    condition: Condition | None
    token_to_query: Int[Tensor, " T"] | None = None
    trace: Trace | None = None


class RoutingContext(threading.local):
    """The batch in flight in this thread; two threads may use one model with different queries."""

    batch: Batch | None = None

    @contextmanager
    def use(self, batch: Batch) -> Iterator[None]:
        """Make `batch` the one in flight inside the block."""
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before

    def term(self, tokens: int, wanted: bool, rows: int | None = None) -> Float[Tensor, "T E"] | None:
        """The global term of each of `tokens` flattened tokens, or None where there is none.

        Without an explicit map, tokens are row-major and rows of one query stand together: so they do in a batch, in
        its beams and in several sequences returned for one prompt.
        """
        if self.batch is None:
            if wanted:
                warnings.warn(
                    "no query is set: routing by the local term alone. Use RoutedModel's methods, or wrap the call in "
                    "`with attached.routing(condition)`.",
                    stacklevel=4,
                )
            return None
        if self.batch.condition is None:
            return None
        term = self.batch.condition.term
        if self.batch.token_to_query is not None:
            if len(self.batch.token_to_query) != tokens:
                raise QueryError(
                    f"a token-to-query map of {tokens} tokens", f"{len(self.batch.token_to_query)}", "Mend the map."
                )
            return term[self.batch.token_to_query]
        if tokens % len(term) or (rows is not None and rows % len(term)):
            raise QueryError(
                f"rows for {len(term)} queries",
                f"{tokens} tokens{'' if rows is None else f' in {rows} rows'}, which do not divide among them",
                "Give a condition for this batch, or a token-to-query map.",
            )
        return term if tokens == len(term) else term.repeat_interleave(tokens // len(term), dim=0)
