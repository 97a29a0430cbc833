"""The effect of a router on its base model: the paired difference of rows, and the share of rows made worse."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glider.evaluation.statistics import task_mean, two_level_interval


@dataclass(frozen=True)
class Harm:
    """A router compared with the base on the same rows: `difference` of the means of task means, with its 95 % interval
    (other rows of these tasks), and `worse`, the share of rows that the base answered better (mean over tasks)."""

    difference: float
    low: float
    high: float
    worse: float

    @classmethod
    def of(cls, base: Sequence[Sequence[float]], router: Sequence[Sequence[float]]) -> "Harm":
        """From the scores of the same rows, by task."""
        differences = [
            [after - before for before, after in zip(first, second, strict=True)]
            for first, second in zip(base, router, strict=True)
        ]
        low, high = two_level_interval(differences, resample_tasks=False)
        worse = task_mean([[float(value < 0) for value in rows] for rows in differences])
        return cls(task_mean(differences), low, high, worse)

    @property
    def text(self) -> str:
        """For a table: the difference with its interval, and the share made worse."""
        return f"{100 * self.difference:+.1f} ({100 * self.low:+.1f} {100 * self.high:+.1f}), {self.worse:.0%} worse"


def verdict_shares(verdicts: Sequence[str | None]) -> dict[str, float]:
    """The share of rows of each verdict; empty without verdicts."""
    counted: Mapping[str, int] = Counter(verdict for verdict in verdicts if verdict)
    return {name: counted[name] / len(verdicts) for name in ("fits", "unsure", "stranger") if name in counted}


def shares_text(shares: Mapping[str, float]) -> str:
    """For a table."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
