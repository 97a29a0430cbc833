"""A record of decisions, made only where the caller asks for one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from glider.routing.base import Condition, Decision
from glider.shapes import Bool, Float, Tensor


@dataclass(frozen=True)
class Call:
    """One call of one site: the decisions for all its tokens, row-major over the batch."""

    site: str
    index: int  # 0 for the first call of the site (the prompt), then one for each new token
    decision: Decision
    sequences: int  # rows of the call: queries times beams
    sees_prompt: bool  # the site's tokens begin with the prompt's
    kernel: str | None = None  # what computed the experts


@dataclass
class Trace:
    """Decisions of one or more forward passes of a batch, with the global scores and alpha of its queries."""

    experts: Sequence[str]
    condition: Condition | None
    prompt_mask: Bool[Tensor, "B S"]  # False at pad tokens
    calls: list[Call] = field(default_factory=list)
    generated: Sequence[int] | None = None  # tokens written for each row, where rows ended at different times
    _counts: dict[str, int] = field(default_factory=dict)
    _see_prompt: dict[str, bool] = field(default_factory=dict)

    def record(self, site: str, decision: Decision, sequences: int | None = None, kernel: str | None = None) -> None:
        """Take up one decision (detached, on the CPU)."""
        index = self._counts.get(site, 0)
        self._counts[site] = index + 1
        kept = Decision(decision.experts.detach().cpu(), decision.weights.detach().float().cpu(), None)
        if decision.scores is not None:
            kept = Decision(kept.experts, kept.weights, decision.scores.detach().float().cpu())
        sequences = sequences or len(self.prompt_mask)
        if index == 0:
            self._see_prompt[site] = len(kept.experts) // sequences == self.prompt_mask.shape[1]
        self.calls.append(Call(site, index, kept, sequences, self._see_prompt[site], kernel))

    @property
    def sites(self) -> list[str]:
        """Sites in the order they were called."""
        return list(dict.fromkeys(call.site for call in self.calls))

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
        if call.sees_prompt and counted.shape[1] >= width:  # with a cache, only the first call does
            counted[:, :width] = self.prompt_mask
        if call.index > 0 and self.generated is not None:
            counted &= torch.tensor([call.index < written for written in self.generated])[:, None]
        return counted.repeat(1, call.sequences // rows)  # the beams of a row stand together

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

    def usage(self, row: int | None = None) -> dict[str, float]:
        """Mean weight of each expert over all sites and tokens of one row or of all."""
        shares = self.heatmap(row).mean(dim=0) if self.calls else torch.zeros(len(self.experts))
        return dict(zip(self.experts, shares.tolist(), strict=True))
