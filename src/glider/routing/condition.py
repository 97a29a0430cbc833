"""The condition of each query of a batch: its global term, its settled experts, its description."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from glider.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class Described:
    """The description of a task or query: its text and who made it, or the fault that left it without one."""

    text: str | None
    source: str  # "given", "query" (its own text), or the describer's name
    prompt: str | None = None  # name and version of the describer's prompt; None where none was asked
    fault: str | None = None
    unused: str | None = None  # the part of the fault that says what of the query nothing reads
    cached: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Settled:
    """Experts and weights that every token of a query uses, whatever its own scores. A row without weight settles
    nothing: its tokens are routed."""

    experts: Int[Tensor, "B K"]
    weights: Float[Tensor, "B K"]

    @property
    def rows(self) -> Bool[Tensor, " B"]:
        """The rows whose experts are settled."""
        return (self.weights != 0).any(dim=-1)

    def padded(self, width: int) -> "Settled":
        """The same with this many places per row."""
        missing = (0, width - self.experts.shape[1])
        return Settled(torch.nn.functional.pad(self.experts, missing), torch.nn.functional.pad(self.weights, missing))


@dataclass(frozen=True)
class Condition:
    """The condition of a batch of queries, a row each.

    `global_scores` and `alpha` make the global term; both are None for a router that has none. A router may add a
    `shift` to the term of a row, the same for every expert. `bare` rows use no expert at all, `settled` ones the same
    experts for every token; all others are routed by token.
    """

    count: int
    global_scores: Float[Tensor, "B E"] | None = None
    alpha: Float[Tensor, " B"] | None = None
    bare: Bool[Tensor, " B"] | None = None  # on the CPU, like what is settled; None: no row
    settled: Settled | None = None
    signals: tuple[str, ...] = ()  # of each row; none where there is no global term
    described: tuple[Described, ...] = ()  # of each row; none where nothing was described
    verdicts: tuple[str, ...] = ()  # of each row; none where nobody judged
    shift: Float[Tensor, " B"] | None = None  # None: zero

    @classmethod
    def of(cls, global_scores: Float[Tensor, "B E"], alpha: Float[Tensor, " B"], signal: str = "") -> "Condition":
        """Rows that are routed by token with this global term."""
        return cls(len(alpha), global_scores, alpha, signals=(signal,) * len(alpha))

    @classmethod
    def local(cls, rows: int) -> "Condition":
        """Rows without a global term, routed by local scores alone."""
        return cls(rows)

    @classmethod
    def nobody(cls, rows: int) -> "Condition":
        """Rows of the base model alone."""
        return cls(rows, bare=torch.ones(rows, dtype=torch.bool))

    def __len__(self) -> int:
        return self.count

    @property
    def term(self) -> Float[Tensor, "B E"] | None:
        """alpha * global scores, shifted; None without a global term."""
        if self.global_scores is None or self.alpha is None:
            return None
        term = self.alpha[:, None] * self.global_scores
        return term if self.shift is None else term + self.shift[:, None]

    @property
    def bare_rows(self) -> Bool[Tensor, " B"]:
        """Rows of the base model alone."""
        return torch.zeros(self.count, dtype=torch.bool) if self.bare is None else self.bare

    @property
    def all_routed(self) -> bool:
        """Whether the tokens of every row are routed one by one; known without looking at a device."""
        return (self.bare is None or not bool(self.bare.any())) and (
            self.settled is None or not bool(self.settled.rows.any())
        )

    @property
    def routed(self) -> Bool[Tensor, " B"]:
        """Rows whose tokens are routed one by one."""
        return ~self.bare_rows if self.settled is None else ~self.bare_rows & ~self.settled.rows

    @property
    def alike(self) -> bool:
        """Whether all rows are treated the same, so that they may share what they compute."""
        return all(bool((part == part[:1]).all()) for part in self._tensors())

    def rows(self, index: Int[Tensor, " N"] | Sequence[int] | slice) -> "Condition":
        """The condition of some of the queries, in the order of the index; a row may come several times."""
        if isinstance(index, slice):
            numbers = list(range(*index.indices(len(self))))
        else:
            numbers = index.tolist() if isinstance(index, Tensor) else list(index)
        at, settled = torch.tensor(numbers, dtype=torch.long), self.settled
        return Condition(
            len(numbers),
            None if self.global_scores is None else self.global_scores[at.to(self.global_scores.device)],
            None if self.alpha is None else self.alpha[at.to(self.alpha.device)],
            None if self.bare is None else self.bare[at],
            None if settled is None else Settled(settled.experts[at], settled.weights[at]),
            tuple(self.signals[i] for i in numbers) if self.signals else (),
            tuple(self.described[i] for i in numbers) if self.described else (),
            tuple(self.verdicts[i] for i in numbers) if self.verdicts else (),
            None if self.shift is None else self.shift[at.to(self.shift.device)],
        )

    @classmethod
    def cat(cls, parts: Sequence["Condition"]) -> "Condition":
        """The rows of several conditions of one pool one after another; a part without a global term has one of zero
        where another part has one."""
        if len(parts) == 1:
            return parts[0]
        like = next((part.global_scores for part in parts if part.global_scores is not None), None)
        scores = alpha = shift = None
        if like is not None:
            scores = torch.cat([p.global_scores if p.global_scores is not None else _zeros(p, like) for p in parts])
            alpha = torch.cat([p.alpha if p.alpha is not None else like.new_zeros(len(p)) for p in parts])
            if any(p.shift is not None for p in parts):
                shift = torch.cat([p.shift if p.shift is not None else like.new_zeros(len(p)) for p in parts])
        width = max((part.settled.experts.shape[1] for part in parts if part.settled is not None), default=0)
        settled = None
        if width:
            settlements = [(part.settled or _unsettled(part)).padded(width) for part in parts]
            settled = Settled(
                torch.cat([one.experts for one in settlements]), torch.cat([one.weights for one in settlements])
            )
        names = ("signals", "described", "verdicts")
        has_signals, has_described, has_verdicts = (any(getattr(p, name) for p in parts) for name in names)
        any_bare = any(part.bare is not None for part in parts)
        return cls(
            sum(part.count for part in parts),
            scores,
            alpha,
            torch.cat([part.bare_rows for part in parts]) if any_bare else None,
            settled,
            tuple(name for p in parts for name in (p.signals or ("",) * len(p))) if has_signals else (),
            tuple(one for p in parts for one in (p.described or (_NOT_DESCRIBED,) * len(p))) if has_described else (),
            tuple(name for p in parts for name in (p.verdicts or ("",) * len(p))) if has_verdicts else (),
            shift,
        )

    def without_term(self, rows: Bool[Tensor, " B"], beta: float) -> "Condition":
        """The condition with the global term taken out of some rows: their scores are zero, their alpha is beta."""
        if self.global_scores is None or self.alpha is None:
            return self
        rows = rows.to(self.alpha.device)
        scores, alpha = self.global_scores.masked_fill(rows[:, None], 0.0), self.alpha.masked_fill(rows, beta)
        return replace(self, global_scores=scores, alpha=alpha)

    def left_to_base(self, rows: Sequence[bool]) -> "Condition":
        """The condition with some rows left to the base model alone."""
        if not any(rows):
            return self
        return replace(self, bare=self.bare_rows | torch.tensor(rows, dtype=torch.bool))

    def digest(self, row: int) -> bytes:
        """16 bytes that two rows share only if they are treated the same, whatever batch they are in.

        What a row does not use is left out: scores of one whose experts are settled, and both of one that is bare.
        """
        if self.bare is not None and bool(self.bare[row]):
            return hashlib.sha256(b"bare").digest()[:16]
        if self.settled is not None and bool((used := self.settled.weights[row] != 0).any()):
            content = hashlib.sha256(b"settled")
            content.update(self.settled.experts[row][used].cpu().numpy().tobytes())
            content.update(self.settled.weights[row][used].float().cpu().numpy().tobytes())
            return content.digest()[:16]
        content, term = hashlib.sha256(b"routed"), self.term
        if term is not None:
            content.update(term[row].detach().float().cpu().numpy().tobytes())
        return content.digest()[:16]

    def _tensors(self) -> list[Tensor]:
        settled = () if self.settled is None else (self.settled.experts, self.settled.weights)
        return [part for part in (self.bare, self.global_scores, self.alpha, self.shift, *settled) if part is not None]


_NOT_DESCRIBED = Described(None, "none")


def _zeros(part: Condition, like: Float[Tensor, "B E"]) -> Float[Tensor, "C E"]:
    return like.new_zeros(len(part), like.shape[1])


def _unsettled(part: Condition) -> Settled:
    return Settled(torch.zeros(len(part), 1, dtype=torch.long), torch.zeros(len(part), 1))
