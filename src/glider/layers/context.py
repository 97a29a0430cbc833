"""What the routed layers of one model need to know about the batch in flight: a value the caller owns."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from glider.errors import QueryError
from glider.layers.trace import Trace
from glider.routing.base import Condition
from glider.shapes import Float, Int, Tensor

_MEND = "Mend the map."


@dataclass(frozen=True)
class Batch:
    """The global term of the batch, which query each token belongs to, and where to record decisions."""

    condition: Condition | None
    token_to_query: Int[Tensor, " T"] | None = None
    trace: Trace | None = None
    bare: bool = False  # the base model alone
    _moved: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)
    _for_kernel: dict[torch.device, tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def for_kernel(self, device: torch.device) -> tuple[Float[Tensor, "B E"] | None, Int[Tensor, " T"] | None]:
        """alpha * global and the token-to-query map as a kernel reads them; copied to its device once.

        A map on the CPU is checked; one on a GPU cannot be without waiting for it, and the kernel makes NaN of a token
        whose query does not exist.
        """
        if device not in self._for_kernel:
            with torch.inference_mode(False), torch.no_grad():  # whoever comes next may be in another mode
                self._for_kernel[device] = (self._term_for(device), self._queries_for(device))
        return self._for_kernel[device]

    def _term_for(self, device: torch.device) -> Float[Tensor, "B E"] | None:
        return None if self.condition is None else self.condition.term.detach().float().to(device).contiguous()

    def _queries_for(self, device: torch.device) -> Int[Tensor, " T"] | None:
        if self.token_to_query is None or self.condition is None:
            return None
        queries, count = self.token_to_query.detach().long().contiguous(), len(self.condition.global_scores)
        if queries.is_cpu and len(queries):
            least, most = int(queries.min()), int(queries.max())
            if least < 0 or most >= count:
                raise QueryError(f"a token-to-query map to {count} queries", f"one to {least} to {most}", _MEND)
        return queries.to(device)

    def term_on(self, device: torch.device) -> Float[Tensor, "B E"]:
        """alpha * global on a device, for batches that have it. What lies elsewhere is copied there once."""
        assert self.condition is not None
        condition = self.condition
        learns = condition.global_scores.requires_grad or condition.alpha.requires_grad
        if learns or condition.global_scores.device == device:
            return condition.term.to(device)
        return self._once("term", condition.term, device)

    def queries_on(self, device: torch.device) -> Int[Tensor, " T"]:
        """The token-to-query map on a device, for batches that have one. Copied there once."""
        assert self.token_to_query is not None
        return self._once("queries", self.token_to_query, device)

    def _once(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.device == device:
            return tensor
        if (name, device) not in self._moved:
            with torch.inference_mode(False):  # whoever comes next may want gradients
                self._moved[name, device] = tensor.to(device)
        return self._moved[name, device]

    def check(self, tokens: int, rows: int | None) -> None:
        """Raise `QueryError` where the condition does not fit so many tokens, in so many rows."""
        if self.condition is None:
            return
        if self.token_to_query is not None:
            if len(self.token_to_query) != tokens:
                raise QueryError(f"a token-to-query map of {tokens} tokens", f"{len(self.token_to_query)}", _MEND)
            return
        queries = self.condition.global_scores.shape[0]
        if tokens % queries or (rows is not None and rows % queries):
            raise QueryError(
                f"rows for {queries} queries",
                f"{tokens} tokens{'' if rows is None else f' in {rows} rows'}, which do not divide among them",
                "Give a condition for this batch, or a token-to-query map.",
            )


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

    def term(
        self, tokens: int, wanted: bool, rows: int | None = None, device: torch.device | None = None
    ) -> Float[Tensor, "T E"] | None:
        """The global term of each of `tokens` flattened tokens, or None where there is none; by default on the CPU.

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
        self.batch.check(tokens, rows)
        device = device or torch.device("cpu")
        term = self.batch.term_on(device)
        if self.batch.token_to_query is not None:
            return term[self.batch.queries_on(device)]
        return term if tokens == len(term) else term.repeat_interleave(tokens // len(term), dim=0)
