"""The threshold p of alpha, chosen for a pool and a global signal from its experts' own held-back queries."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256

import torch

from glider.errors import GliderWarning, PoolError, RouterError
from glider.experts.pool import Calibration, Pool
from glider.routing.base import GlobalScores, QueryFeatures
from glider.routing.signals.base import profiles, signals
from glider.shapes import Float, Tensor

MINIMUM_QUERIES = 16  # of each expert
MOST_QUERIES = 2048  # of the pool: beyond, every expert gives fewer
MANY_EXPERTS, SAMPLED_EXPERTS = 128, 32  # beyond so many that have queries, so many of them are asked
LEAST_AUC = 0.6  # below, the others know an expert's queries as well as itself (twins), and nothing parts the two kinds
MISSED = 0.05  # share of the held-in queries that p may then leave out
LARGE_POOL, CHANGED = 256, 0.05  # in a larger one a choice stands until so great a share of the experts changed


def calibrate(
    pool: Pool,
    signal: str,
    queries: Mapping[str, QueryFeatures] | None = None,
    report: Callable[[int, int], None] = lambda done, experts: None,
) -> Calibration:
    """Choose p by leave-one-out: a query's best score counts as held-in, and its best score in the pool without its own
    expert as held-out; p is the threshold with the best balanced accuracy. Where nothing parts the two, as in a pool
    of twins, it is what one in twenty held-in queries lies below: the best might let everything fit, or nothing.

    `queries` holds queries of each expert's task, by default those the experts keep in their profiles, so that nothing
    is embedded or asked again when the pool grows. Experts with fewer than 16 are left out, which `source` records. In
    a pool of more than 128 the queries of 32 experts stand for all of them. gamma and beta stay as stored, or the
    paper's. Raises `PoolError` with fewer than two experts, or where all of them have fewer queries than that.
    """
    if len(pool) < 2:
        raise PoolError("at least two experts to calibrate", str(len(pool)), "Add experts first.")
    scores = signals.create(signal).prepare(pool)
    features = held_back(pool, scores) if queries is None else queries
    counts = {name: features[name].count if name in features else 0 for name in pool.names}
    few = {name: count for name, count in counts.items() if count < MINIMUM_QUERIES}
    if len(few) == len(pool):
        raise PoolError(
            f"at least {MINIMUM_QUERIES} held-back queries of an expert's task",
            ", ".join(f"{count} of {name}" for name, count in few.items()),
            "Make profiles of more rows (`glider expert profile`), or give more rows.",
        )
    known = [name for name in pool.names if name not in few]
    sampled = sample(known, MANY_EXPERTS, SAMPLED_EXPERTS)
    held_in, held_out = [], []
    for column, name in enumerate(pool.names):
        if name not in sampled:
            continue  # it can be chosen, but says nothing about p
        held_in.append(scores.of(features[name]).amax(dim=-1))
        held_out.append(scores.of(features[name], without=column).amax(dim=-1))
        report(column + 1, len(pool))
    stored = pool.index.calibrations.get(signal)
    constants = {} if stored is None else {"gamma": stored.gamma, "beta": stored.beta}
    inside, outside = torch.cat(held_in), torch.cat(held_out)
    p, accuracy, auc = best_threshold(inside, outside)
    if auc < LEAST_AUC:
        p = inside.quantile(MISSED).item()
        accuracy = ((inside > p).float().mean() + (outside <= p).float().mean()).item() / 2
    return Calibration(
        p=round(p, 4),
        auc=round(auc, 4),
        balanced_accuracy=round(accuracy, 4),
        queries=sum(map(len, held_in)),
        experts=tuple(pool.names),
        source=_source(queries is None, few, sampled, known),
        **constants,
    )


def _source(of_profiles: bool, few: Mapping[str, int], sampled: Collection[str], known: Sequence[str]) -> str:
    """What the calibration was made of."""
    without = f" (without {', '.join(few)}: fewer than {MINIMUM_QUERIES} queries)" if few else ""
    part = "" if len(sampled) == len(known) else f", the queries of {len(sampled)} experts for those of {len(known)}"
    return f"leave-one-out over {'the profiles' if of_profiles else 'given rows'}{without}{part}"


def sample(names: Sequence[str], many: int, count: int) -> Collection[str]:
    """All names, or `count` of more than `many`: by their hashes, so that it hardly changes as experts come and go."""
    if len(names) <= many:
        return names
    return set(sorted(names, key=lambda name: sha256(name.encode("utf8")).digest())[:count])


def still_stands(former_names: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a choice that was made for some experts serves these.

    It does for the same ones. Beyond 256 experts, where those that are asked stand for all, it also does until one in
    twenty has come or gone since.
    """
    if len(names) <= LARGE_POOL:
        return tuple(former_names) == tuple(names)
    return len(set(former_names) ^ set(names)) <= CHANGED * len(names)


def recalibrated(pool: Pool) -> Pool:
    """The pool, calibrated again where its experts changed since, as `still_stands` has it.

    One that can't be redone from the profiles stays as it is, with a warning that says why; so does one of a pool that
    has a single expert left, which uses none.
    """
    for signal, stored in pool.index.calibrations.items():
        if still_stands(stored.experts, pool.names) or len(pool) < 2:  # one expert is judged by its margin alone
            continue
        try:
            anew = calibrate(pool, signal)
        except (PoolError, RouterError) as fault:
            warnings.warn(f"the calibration of {signal} is that of other experts: {fault}", GliderWarning, stacklevel=2)
        else:
            pool = pool.calibrate(signal, anew, default=False)
    return pool


def held_back(pool: Pool, scores: GlobalScores) -> dict[str, QueryFeatures]:
    """The queries that the experts' profiles keep, by expert; raises `RouterError` naming those without a profile."""
    known = profiles(pool, inputs=bool(scores.needs - {"grams", "hidden"}))
    most = max(MINIMUM_QUERIES, MOST_QUERIES // len(known))
    features = {}
    for name, profile in zip(pool.names, known, strict=True):
        inputs = profile.held_back_inputs
        embedded = None if inputs is None else inputs[:most].float()
        states = None if profile.held_back_hidden is None else profile.held_back_hidden[:most].float()
        queries = tuple((query,) for query in profile.queries[:most])
        features[name] = QueryFeatures(len(queries), embedded, queries, embedded, states)
    return features


def best_threshold(held_in: Float[Tensor, " N"], held_out: Float[Tensor, " M"]) -> tuple[float, float, float]:
    """The threshold with the best balanced accuracy, that accuracy, and the area under the ROC curve."""
    values = torch.cat([held_in, held_out]).sort().values
    candidates = (values[1:] + values[:-1]) / 2
    ordered_in, ordered_out = held_in.sort().values, held_out.sort().values
    above = 1 - torch.searchsorted(ordered_in, candidates, right=True) / len(held_in)
    below = torch.searchsorted(ordered_out, candidates, right=True) / len(held_out)
    accuracy = (above + below) / 2
    best = accuracy.argmax()
    wins = torch.searchsorted(ordered_out, held_in).double() + torch.searchsorted(ordered_out, held_in, right=True)
    return candidates[best].item(), accuracy[best].item(), (wins.mean() / 2 / len(held_out)).item()
