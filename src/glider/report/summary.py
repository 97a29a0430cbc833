"""The scale of the picture above a table: every number with its interval, in one frame for all columns."""

from dataclasses import dataclass
from math import ceil, floor

from glider.report.tables import Table

_MARGIN = 4.0  # percent of a panel's width, so that points at the ends are whole


@dataclass(frozen=True)
class Scale:
    """Shares from `low` to `high`, in tenths, along the width of a panel."""

    low: int
    high: int

    @property
    def ticks(self) -> list[float]:
        """At most six shares to label."""
        step = 1 if self.high - self.low <= 5 else 2
        return [tenth / 10 for tenth in range(self.low, self.high + 1) if tenth % step == 0]

    def at(self, share: float) -> str:
        """Where a share lies."""
        part = (10 * share - self.low) / (self.high - self.low)
        return f"{_MARGIN + (100 - 2 * _MARGIN) * part:.2f}%"


def scale(table: Table) -> Scale | None:
    """The narrowest that holds every interval of the table; none without any number."""
    intervals = [value.interval for line in table.lines for value in line.values if value.interval is not None]
    if not intervals:
        return None
    low, high = floor(10 * min(low for low, _ in intervals)), ceil(10 * max(high for _, high in intervals))
    return Scale(low, max(high, low + 1))
