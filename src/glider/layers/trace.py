"""A record of decisions, made only where the caller asks for one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from glider.routing.base import Decision, SlotDecision
from glider.routing.condition import Condition
from glider.shapes import Bool, Float, Int, Tensor


@runtime_checkable
class Recorder(Protocol):
    """Receives the decisions of a pass's sites."""

    def record(self, record: "SiteRecord") -> None: ...


class SiteRecord:
    """The decisions of one call of one site, put together from those for parts of its tokens."""

    def __init__(self, site: str, tokens: int, rows: int | None):
        self.site, self.tokens, self.rows = site, tokens, rows
        self._parts: list[tuple[Tensor | None, Decision, str]] = []

    def watch(self, index: Int[Tensor, " N"] | None) -> "Watcher":
        """The callback for the tokens of an index (None: all)."""
        return Watcher(self._parts, index)

    @property
    def kernel(self) -> str | None:
        """The kernel that computed the experts; None without experts."""
        return "+".join(dict.fromkeys(kernel for _, _, kernel in self._parts)) or None

    @property
    def decision(self) -> Decision:
        """The decision for every token, on the CPU; one that uses no expert has only weights of 0."""
        if len(self._parts) == 1 and self._parts[0][0] is None:
            return self._parts[0][1]
        per_token = max((decision.experts.shape[1] for _, decision, _ in self._parts), default=1)
        experts, weights = torch.zeros(self.tokens, per_token, dtype=torch.long), torch.zeros(self.tokens, per_token)
        count = max((d.scores.shape[1] for _, d, _ in self._parts if d.scores is not None), default=0)
        scores = torch.full((self.tokens, count), -torch.inf) if count else None
        for index, decision, _ in self._parts:
            at = torch.arange(self.tokens) if index is None else index
            experts[at, : decision.experts.shape[1]] = decision.experts
            weights[at, : decision.experts.shape[1]] = decision.weights
            if scores is not None and decision.scores is not None:
                scores[at] = decision.scores
        return Decision(experts, weights, scores)


@dataclass(frozen=True)
class Watcher:
    """Notes the decision for some tokens of a call, detached and on the CPU."""

    parts: list[tuple[Tensor | None, Decision, str]]
    index: Int[Tensor, " N"] | None

    def __call__(self, decision: Decision | SlotDecision, kernel: str) -> None:
        if isinstance(decision, SlotDecision):
            dense = decision.token_weights(int(decision.experts.max()) + 1)
            decision = Decision(torch.arange(dense.shape[1]).expand(len(dense), -1), dense, decision.scores)
        scores = None if decision.scores is None else decision.scores.detach().float().cpu()
        noted = Decision(decision.experts.detach().cpu(), decision.weights.detach().float().cpu(), scores)
        self.parts.append((None if self.index is None else self.index.cpu(), noted, kernel))


@dataclass(frozen=True)
class Call:
    """One call of one site: the decisions for all its tokens, row-major over the batch."""

    site: str
    index: int  # 0 for the first call of the site (the prompt), then one for each new token
    decision: Decision
    sequences: int  # rows of the call: queries times beams
    sees_prompt: bool  # the site's tokens begin with the prompt's
    kernel: str | None = None  # what computed the experts
    first: int = 0  # tokens of a row that the site was given in the calls before


@dataclass
class Trace:
    """Decisions of one or more forward passes of a batch, with the global scores and alpha of its queries.

    Arguments:
        experts: Names, in the order of the pool.
        condition: Global scores, alpha and verdicts by query; None without.
        prompt_mask: Which tokens (B, S) of the prompts are not padding.
        calls: The decisions of each site, in the order of the passes.
        generated: How many tokens each row wrote; None for prompts alone.
        pieces: How many tokens of a prompt a pass takes; None where the first takes them all.
    """

    experts: Sequence[str]
    condition: Condition | None
    prompt_mask: Bool[Tensor, "B S"]  # False at pad tokens
    calls: list[Call] = field(default_factory=list)
    generated: Sequence[int] | None = None  # tokens written for each row, where rows ended at different times
    pieces: int | None = None
    _counts: dict[str, int] = field(default_factory=dict)
    _tokens: dict[str, int] = field(default_factory=dict)  # of a row that each site was given
    _see_prompt: dict[str, bool] = field(default_factory=dict)

    def record(self, record: SiteRecord) -> None:
        """Add a site's decision for the whole batch."""
        self.add(record.site, record.decision, record.rows, record.kernel)

    def add(self, site: str, decision: Decision, sequences: int | None = None, kernel: str | None = None) -> None:
        """Add one decision (detached, on the CPU)."""
        index = self._counts.get(site, 0)
        self._counts[site] = index + 1
        sequences = sequences or len(self.prompt_mask)
        width, prompt, first = len(decision.experts) // sequences, self.prompt_mask.shape[1], self._tokens.get(site, 0)
        self._tokens[site] = first + width
        if index == 0:
            self._see_prompt[site] = width == min(prompt, self.pieces or prompt)
        self.calls.append(Call(site, index, decision, sequences, self._see_prompt[site], kernel, first))

    @property
    def sites(self) -> list[str]:
        """Sites in the order they were called."""
        return list(dict.fromkeys(call.site for call in self.calls))

    @property
    def passes(self) -> int:
        """The number of calls of the most frequently called site."""
        return max(self._counts.values(), default=0)

    @property
    def kernels(self) -> dict[str, int]:
        """How many calls each kernel computed."""
        return dict(Counter(call.kernel for call in self.calls if call.kernel is not None))

    def weights(self, call: Call) -> Float[Tensor, "B S E"]:
        """Each expert's weight for each token of a call, by row."""
        rows = len(self.prompt_mask)
        decision = call.decision
        dense = torch.zeros(len(decision.experts), len(self.experts))
        dense.scatter_add_(1, decision.experts, decision.weights)
        return dense.view(rows, -1, len(self.experts))

    def counts(self, call: Call) -> Bool[Tensor, "B S"]:
        """Which tokens of a call count: no pads, nothing after a row has ended."""
        rows, width = self.prompt_mask.shape
        counted = torch.ones(rows, len(call.decision.experts) // call.sequences, dtype=torch.bool)
        if self.pieces is not None and call.sees_prompt:
            counted = self._counts_by_place(call.first, counted.shape[1])
        else:
            if call.sees_prompt and counted.shape[1] >= width:  # with a cache, only the first call does
                counted[:, :width] = self.prompt_mask
            if call.index > 0 and self.generated is not None:
                counted &= torch.tensor([call.index < written for written in self.generated])[:, None]
        return counted.repeat(1, call.sequences // rows)  # the beams of a row stand together

    def _counts_by_place(self, first: int, tokens: int) -> Bool[Tensor, "B S"]:
        """Which of so many tokens from a place on count; the last token of an answer is given to no pass."""
        rows, width = self.prompt_mask.shape
        written = torch.full((rows,), tokens + first) if self.generated is None else torch.tensor(self.generated)
        answers = torch.arange(max(0, first + tokens - width)) < (written - 1)[:, None]  # (B, A)
        return torch.cat([self.prompt_mask, answers], dim=1)[:, first : first + tokens]

    def heatmap(self, row: int | None = None) -> Float[Tensor, "S E"]:
        """Mean weight of each expert at each site (in the order of `sites`), over the tokens of one row or of all."""
        if not self.calls:
            return torch.zeros(0, len(self.experts))
        rows = slice(None) if row is None else slice(row, row + 1)
        sums = {site: torch.zeros(len(self.experts)) for site in self.sites}
        tokens = dict.fromkeys(self.sites, 0)
        for call in self.calls:
            counted = self.counts(call)[rows]
            sums[call.site] += self.weights(call)[rows][counted].sum(dim=0)
            tokens[call.site] += int(counted.sum())
        return torch.stack([sums[site] / max(1, tokens[site]) for site in self.sites])

    def mean_scores(self) -> Float[Tensor, "B E"]:
        """Mean score of each expert over the sites that have it and the tokens that count, a row for each query."""
        rows = len(self.prompt_mask)
        sums, counts = torch.zeros(rows, len(self.experts)), torch.zeros(rows, len(self.experts))
        for call in self.calls:
            if call.decision.scores is None:
                continue
            counted = self.counts(call)[..., None]  # (B, S, 1)
            scores = call.decision.scores.view(rows, -1, len(self.experts))
            there = counted & torch.isfinite(scores)
            sums += torch.where(there, scores, 0.0).sum(dim=1)
            counts += there.sum(dim=1)
        return sums / counts.clamp(min=1)

    def last_scores(self) -> Float[Tensor, "B E"]:
        """Score of each expert at the prompt's last token, mean over the sites that have one, a row for each query.

        A site of a decoder beside an encoder has its own last token.
        """
        rows, width = self.prompt_mask.shape
        last = (self.prompt_mask * torch.arange(1, width + 1)).argmax(dim=1)  # (B,)
        sums, counts = torch.zeros(rows, len(self.experts)), torch.zeros(rows, len(self.experts))
        for call in self.calls:
            scores = call.decision.scores
            if scores is None:
                continue
            at = last if call.sees_prompt else torch.full((rows,), -1)
            latest = scores.view(rows, -1, len(self.experts))[torch.arange(rows), at]  # (B, E)
            sums += torch.where(latest.isfinite(), latest, 0.0)
            counts += latest.isfinite()
        return sums / counts.clamp(min=1)

    def usage(self, row: int | None = None) -> dict[str, float]:
        """Mean weight of each expert over all sites and tokens of one row or of all."""
        shares = self.heatmap(row).mean(dim=0) if self.calls else torch.zeros(len(self.experts))
        return dict(zip(self.experts, shares.tolist(), strict=True))


@dataclass(frozen=True)
class PackedRecorder:
    """Hands each query's part of a packed pass to the trace of that query; queries without one are left out."""

    traces: Sequence[Trace | None]  # by query
    token_to_query: Int[Tensor, " T"]

    def record(self, record: SiteRecord) -> None:
        whole = record.decision
        for query, trace in enumerate(self.traces):
            if trace is not None:
                mine = self.token_to_query == query
                scores = None if whole.scores is None else whole.scores[mine]
                trace.add(record.site, Decision(whole.experts[mine], whole.weights[mine], scores), 1, record.kernel)
