"""The threshold p of alpha, chosen for a pool from its experts' own held-back queries."""

from collections.abc import Mapping

import torch

from glider.errors import PoolError
from glider.experts.pool import Calibration, Pool
from glider.routing.scores import cosine
from glider.shapes import Float, Tensor

MINIMUM_QUERIES = 16


def calibrate_threshold(pool: Pool, queries: Mapping[str, Float[Tensor, "B G"]], source: str) -> Calibration:
    """Choose p by leave-one-out: a query's best score counts as held-in, and its best score among the other experts
    (as if its own were not in the pool) as held-out; p is the threshold with the best balanced accuracy.

    `queries` holds embedded queries of each expert's own task. gamma and beta stay the paper's. Raises `PoolError`
    with fewer than two experts or 16 queries for one.
    """
    if len(pool) < 2:
        raise PoolError("at least two experts to calibrate", str(len(pool)), "Add experts first.")
    pool.require("calibration", instructions=True)
    experts = torch.nn.functional.normalize(
        torch.stack([expert.instruction for expert in pool if expert.instruction is not None]), dim=-1
    )
    held_in, held_out = [], []
    for column, name in enumerate(pool.names):
        count = len(queries.get(name, ()))
        if count < MINIMUM_QUERIES:
            raise PoolError(
                f"at least {MINIMUM_QUERIES} queries of expert {name}'s task", str(count), "Give more validation rows."
            )
        scores = cosine(queries[name], experts)
        held_in.append(scores.amax(dim=-1))
        others = torch.arange(len(pool)) != column
        held_out.append(scores[:, others].amax(dim=-1))
    return best_threshold(torch.cat(held_in), torch.cat(held_out), source)


def best_threshold(held_in: Float[Tensor, " N"], held_out: Float[Tensor, " M"], source: str) -> Calibration:
    """The threshold with the best balanced accuracy, with its quality in `source`."""
    values = torch.cat([held_in, held_out]).sort().values
    candidates = (values[1:] + values[:-1]) / 2
    accuracy = (
        (held_in[None] > candidates[:, None]).float().mean(1) + (held_out[None] <= candidates[:, None]).float().mean(1)
    ) / 2
    p = candidates[accuracy.argmax()].item()
    auc = (held_in[:, None] > held_out[None]).float().mean().item()
    told = f"balanced accuracy {accuracy.max().item():.3f}, AUC {auc:.3f}, {len(held_in)} queries"
    return Calibration(p=round(p, 4), source=f"{source}: {told}")
