"""Plain PyTorch for many tokens on the CPU: experts of about as many tokens are multiplied together, in few calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from glider.layers.bank import Bank
from glider.routing.base import Decision
from glider.shapes import Float, Int, Tensor

_PAIRS = 2048  # (token, expert) pairs at once: their outputs are memory that is used again before it leaves the cache
_VALUES = 1 << 21  # of the factors that are turned into the dtype of x at once
_PADDING = 256  # rows that experts which are multiplied together may have beyond their pairs


@dataclass(frozen=True, slots=True)
class Share:
    """Experts that are multiplied together, as places in the order of use, and the rows that they have."""

    first: int
    last: int
    tokens: int  # rows for each, of which those beyond its own tokens are padding
    row: int

    @property
    def end(self) -> int:
        return self.row + (self.last - self.first) * self.tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pairs of some tokens lie, expert beside expert. Rows that are no pair's are padding."""

    shares: tuple[Share, ...]
    by_use: Int[Tensor, " E"]  # experts, from the one with most tokens on
    row_of: Int[Tensor, " P"]  # of each pair, in the order of tokens

    @classmethod
    def of(cls, experts: Int[Tensor, " P"], count: int, most: int) -> "Layout":
        """Of pairs with these experts, of `count`, of which `most` are multiplied together."""
        counts, by_use = experts.bincount(minlength=count).sort(descending=True)
        shares = tuple(_shares(counts.tolist(), most))
        firsts = [row for share in shares for row in range(share.row, share.end, share.tokens)]
        shift = torch.tensor(firsts) - (counts.cumsum(0) - counts)[: len(firsts)]
        use = torch.empty_like(by_use)
        use[by_use] = torch.arange(count)
        order = use[experts].argsort(stable=True)
        row_of = torch.empty_like(order)
        row_of[order] = torch.arange(len(order)) + shift[use[experts[order]]]
        return cls(shares, by_use, row_of)

    @property
    def rows(self) -> int:
        return self.shares[-1].end


def add_padded(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], scaled: Decision, bank: Bank) -> None:
    """y += sum over k of weights_k B_k A_k x, in place; nothing is differentiated. Weights have the scaling in them."""
    experts, weights = scaled.experts, scaled.weights
    count, rank, width = bank.A.shape
    step = max(1, _PAIRS // experts.shape[1])
    most = max(1, _VALUES // (rank * (width + bank.B.shape[1])))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        layout = Layout.of(experts[part].flatten(), count, most)
        outputs = _outputs(x[part], weights[part], bank, layout)
        row_of = layout.row_of.view(experts[part].shape)
        y[part].add_(torch.nn.functional.embedding_bag(row_of, outputs, mode="sum"))  # rows found and added in one


def _outputs(
    x: Float[Tensor, "T D"], weights: Float[Tensor, "T K"], bank: Bank, layout: Layout
) -> Float[Tensor, "N O"]:
    """The weighed output of each pair, in its row."""
    tokens = torch.zeros(layout.rows, dtype=torch.long)
    tokens[layout.row_of] = torch.arange(weights.numel()) // weights.shape[1]
    scales = x.new_zeros(layout.rows, 1)
    scales[layout.row_of] = weights.reshape(-1, 1)
    outputs = x.new_empty(layout.rows, bank.B.shape[1])
    for share in layout.shares:
        ids, rows = layout.by_use[share.first : share.last], slice(share.row, share.end)
        shape = (len(ids), share.tokens, -1)
        z = x.index_select(0, tokens[rows]).view(shape) @ bank.A.index_select(0, ids).to(x.dtype).mT
        scale = scales[rows].view(shape)
        z = torch.where(scale == 0, 0.0, z * scale)  # what has no weight adds nothing, even where it is not finite
        torch.bmm(z, bank.B.index_select(0, ids).to(x.dtype).mT, out=outputs[rows].view(shape))
    return outputs


def _shares(sizes: Sequence[int], most: int) -> Iterator[Share]:
    """Experts with tokens, from the most used on: `most` together, or as many as need so little padding."""
    first = row = 0
    while first < len(sizes) and sizes[first]:
        last, padding = first + 1, 0
        while last < len(sizes) and last - first < most and sizes[last]:
            padding += sizes[first] - sizes[last]
            if padding > _PADDING:
                break
            last += 1
        share = Share(first, last, sizes[first], row)
        yield share
        first, row = last, share.end
