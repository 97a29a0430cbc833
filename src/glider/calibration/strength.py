"""gamma and beta of alpha, chosen for a pool by the loss on rows of its experts' tasks."""

import random
from collections.abc import Callable, Mapping, Sequence
from math import log

import torch

from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Calibration
from glider.inference.likelihood import likelihoods
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.routing.condition import Condition

CONFIDENT = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # alphas tried for queries whose expert is in the pool
DOUBTFUL = (0.3, 1.0, 3.0, 10.0)  # and for those whose expert is taken out
_TAKEN_OUT = -1e6  # global score of an expert that may not be chosen


def choose_constants(
    model: RoutedModel,
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
    if model.attached.prepared.global_term is None:
        raise RouterError("a router with a global term", "one without", "Use glider.")
    draw = random.Random(seed)
    names = [name for name in model.experts if rows.get(name)]
    chosen = [(name, row) for name in names for row in draw.sample(list(rows[name]), min(each, len(rows[name])))]
    steps = len(CONFIDENT) + len(DOUBTFUL)
    losses: dict[tuple[bool, float], list[float]] = {}
    for done, (name, row) in enumerate(chosen):
        for i, (own, alpha) in enumerate([(True, a) for a in CONFIDENT] + [(False, a) for a in DOUBTFUL]):
            loss = _loss(model, row, alpha, None if own else model.experts.index(name))
            losses.setdefault((own, alpha), []).append(loss)
            report(done * steps + i + 1, len(chosen) * steps)
    means = {key: sum(values) / len(values) for key, values in losses.items()}
    confident, beta = (
        _nearest_good({alpha: losses[own, alpha] for alpha in alphas}, stored)
        for own, alphas, stored in (
            (True, CONFIDENT, calibration.gamma + calibration.beta),
            (False, DOUBTFUL, calibration.beta),
        )
    )
    tried = {
        own: ", ".join(f"{a:g}: {loss:.3f}" for (o, a), loss in means.items() if o is own) for own in (True, False)
    }
    told = f"gamma and beta by the loss of {len(chosen)} rows ({tried[True]}; own expert out {tried[False]})"
    source = f"{calibration.source}; {told}"
    return calibration.model_copy(update={"gamma": confident - beta, "beta": beta, "source": source})


def _loss(model: RoutedModel, row: Row, alpha: float, without: int | None) -> float:
    """Negative log-likelihood of the row's answer for each of its tokens, at one alpha."""
    term = model.attached.prepared.global_term
    assert term is not None
    features, _ = model.reader.features([Query(row.input)], term.scores.needs)
    scores = term.scores.of(features, without).clamp(min=_TAKEN_OUT)
    inputs = model.encoder.batch([model.prompt.prompt_ids(model.tokenizer, row.input)])
    target = model.prompt.target_ids(model.tokenizer, row.output)
    condition = Condition.of(scores, torch.tensor([alpha]), term.signal)
    ((found,),) = likelihoods(model.model, model.attached, inputs, [[target]], condition)
    return -found.total / found.tokens


def _nearest_good(losses: Mapping[float, Sequence[float]], stored: float) -> float:
    """Of the alphas whose losses, row by row, are within one standard error of the best's, the nearest to `stored`."""
    values = {alpha: torch.tensor(found, dtype=torch.float64) for alpha, found in losses.items()}
    best = min(values.values(), key=lambda found: found.mean().item())
    good = [a for a, found in values.items() if (d := found - best).mean() <= d.std() / len(d) ** 0.5]
    return min(good, key=lambda alpha: abs(log(alpha / stored)))
