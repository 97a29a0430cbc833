"""gamma and beta of alpha, chosen for a pool by the loss on rows of its experts' tasks."""

import random
from collections.abc import Callable, Mapping, Sequence
from math import log

import torch

from glider.data.rows import Row
from glider.experts.pool import Calibration

CONFIDENT = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # alphas tried for queries whose expert is in the pool
DOUBTFUL = (0.3, 1.0, 3.0, 10.0)  # and for those whose expert is taken out


AlphaLoss = Callable[[Row, float, int | None], float]
"""Loss of a row's answer for each of its tokens at one alpha, with the expert of that number taken out."""


def choose_constants(
    names: Sequence[str],
    loss_of: AlphaLoss,
    rows: Mapping[str, Sequence[Row]],
    calibration: Calibration,
    each: int = 4,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:
    """gamma + beta with the lowest mean loss of the right answers, and beta with the lowest one where each row's own
    expert is taken out; `each` rows of every expert, drawn by seed.

    Losses are per answer token, end token included. An alpha other than the stored one (the paper's 103 and 3) is taken
    only as far as the rows speak for it: of those within one standard error of the best, the nearest to it.
    """
    draw = random.Random(seed)
    known = [name for name in names if rows.get(name)]
    sample = [(name, row) for name in known for row in draw.sample(list(rows[name]), min(each, len(rows[name])))]
    steps = len(CONFIDENT) + len(DOUBTFUL)
    losses: dict[tuple[bool, float], list[float]] = {}
    for done, (name, row) in enumerate(sample):
        for i, (held_in, alpha) in enumerate([(True, a) for a in CONFIDENT] + [(False, a) for a in DOUBTFUL]):
            loss = loss_of(row, alpha, None if held_in else list(names).index(name))
            losses.setdefault((held_in, alpha), []).append(loss)
            report(done * steps + i + 1, len(sample) * steps)
    means = {key: sum(values) / len(values) for key, values in losses.items()}
    confident, beta = (
        _nearest_good({alpha: losses[held_in, alpha] for alpha in alphas}, stored)
        for held_in, alphas, stored in (
            (True, CONFIDENT, calibration.gamma + calibration.beta),
            (False, DOUBTFUL, calibration.beta),
        )
    )
    tried = {
        held_in: ", ".join(f"{a:g}: {loss:.3f}" for (known, a), loss in means.items() if known is held_in)
        for held_in in (True, False)
    }
    evidence = f"gamma and beta by the loss of {len(sample)} rows ({tried[True]}; own expert out {tried[False]})"
    source = f"{calibration.source}; {evidence}"
    return calibration.model_copy(update={"gamma": confident - beta, "beta": beta, "source": source})


def _nearest_good(losses: Mapping[float, Sequence[float]], stored: float) -> float:
    """Of the alphas whose losses, row by row, are within one standard error of the best's, the nearest to `stored`."""
    values = {alpha: torch.tensor(row_losses, dtype=torch.float64) for alpha, row_losses in losses.items()}
    best = min(values.values(), key=lambda row_losses: row_losses.mean().item())
    good = [a for a, row_losses in values.items() if (d := row_losses - best).mean() <= d.std() / len(d) ** 0.5]
    return min(good, key=lambda alpha: abs(log(alpha / stored)))
