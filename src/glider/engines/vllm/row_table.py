"""The requests of a pass as kernels on a device read them: buffers that stay, so that CUDA graphs replay over them."""

from collections.abc import Sequence

import torch

from glider.engines.vllm.rows import Row
from glider.layers.kernels.gpu_site import QueryTable
from glider.shapes import Int, Tensor

NOBODY = 0  # the row of padding, and of requests that the base answers


class RowTable:
    """Rows of requests by their place in a pass, and the row of each token.

    It has room for `requests` at once, of `tokens` together, with `per_token` settled experts each.
    """

    def __init__(self, experts: int, per_token: int, requests: int, tokens: int, device: torch.device):
        rows = requests + 1
        self.queries = QueryTable(
            torch.zeros(rows, experts, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros(rows, per_token, dtype=torch.long, device=device),
            torch.zeros(rows, per_token, device=device),
        )
        self.row_of: Int[Tensor, " T"] = torch.zeros(tokens, dtype=torch.long, device=device)
        self._filled = 0

    def set_rows(self, rows: Sequence[Row | None]) -> None:
        """The requests of the passes that follow."""
        table, count = self.queries, len(rows)
        term = torch.zeros(count, table.term.shape[1])
        routed = torch.zeros(count, dtype=torch.long)
        experts, weights = (
            torch.zeros(count, table.experts.shape[1], dtype=torch.long),
            torch.zeros(count, table.experts.shape[1]),
        )
        for place, row in enumerate(rows):
            if row is None:
                continue
            if row.experts:
                experts[place, : len(row.experts)] = torch.tensor(row.experts)
                weights[place, : len(row.weights)] = torch.tensor(row.weights)
                continue
            routed[place] = 1
            if row.term:
                term[place] = torch.tensor(row.term)
        held = slice(1, count + 1)
        for buffer, values in (
            (table.term, term),
            (table.routed, routed),
            (table.experts, experts),
            (table.weights, weights),
        ):
            buffer[held] = values.to(buffer.device)

    def set_tokens(self, tokens: Sequence[int]) -> None:
        """The next pass has so many tokens of each request, one after the other; what follows them is padding."""
        total = sum(tokens)
        owner = torch.arange(1, len(tokens) + 1).repeat_interleave(torch.tensor(tokens, dtype=torch.long))
        rest = max(0, self._filled - total)
        self.row_of[: total + rest] = torch.nn.functional.pad(owner, (0, rest), value=NOBODY).to(self.row_of.device)
        self._filled = total
