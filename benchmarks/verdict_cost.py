"""What a verdict costs: passes of strangers, fitting and unsure queries beside the bare base, in interleaved pairs.

    python benchmarks/verdict_cost.py POOL [--pairs 15] [--json]

A second copy of the base without a pool is the reference. Prints the median ratio of each kind with its quartiles, for
a prompt of 512 tokens and for a new token on its cache; and the milliseconds that the judge takes for a query.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

from glider.cli.terminal import exit_code
from glider.inference.queries import Query
from glider.inference.spec import ModelSpec, base_of, open_pool
from glider.layers.caches import cache_after, with_cache
from glider.routing.condition import Condition, Settled

TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", nargs="?", default="demo")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pool = open_pool(arguments.pool)
    bare = ModelSpec().load_base(base_of(pool)).model
    model = ModelSpec(pool=arguments.pool).load()
    torch.manual_seed(0)
    ids = torch.randint(1000, 20000, (1, TOKENS))
    three = Settled(torch.tensor([[0, 1, 2]]), torch.full((1, 3), 1 / 3))
    scores = torch.zeros(1, len(pool))
    conditions = {
        "stranger": Condition.nobody(1),
        "fits": Condition(1, settled=Settled(torch.tensor([[0]]), torch.ones(1, 1))),
        "unsure": Condition(1, settled=three),
        "routed by token": Condition.of(scores, torch.full((1,), 3.0)),
    }
    results: dict[str, Any] = {"pool": str(pool.path), "experts": len(pool)}
    with torch.inference_mode():
        for name, length in (("prompt", TOKENS), ("token", 1)):
            for kind, condition in conditions.items():
                routed = pass_of(model.model, ids, length, partial(model.attached.routing, condition))
                alone = pass_of(bare, ids, length, nullcontext)
                ratios = [timed(routed) / timed(alone) for _ in range(arguments.pairs + 2)][2:]
                low, _, high = quantiles(ratios, n=4)
                results[f"{name}, {kind}"] = [round(median(ratios), 3), round(low, 3), round(high, 3)]
    query = [Query("What is the capital of Egypt, and how many people live there?")]
    features, _ = model.reader.features(query, {"grams"})
    judge, router, prepared = model.attached.prepared.judge, model.router, model.attached.prepared
    if judge is None:
        raise SystemExit("a calibrated pool is needed: glider pool calibrate")
    condition, judged = router.condition(prepared, features), judge.judged
    milliseconds = [1000 * timed(lambda: judged(condition, features, term=prepared.global_term)) for _ in range(100)]
    results["judge, ms"] = round(median(milliseconds), 3)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{name:>24}  {value}")


def pass_of(model: Any, ids: torch.Tensor, length: int, routing: Callable[[], Any]) -> Callable[[], object]:
    """A forward pass of so many tokens; of one, with the others in a cache that is cut back after it."""
    cache = None
    if length < TOKENS:
        with routing():
            cache = cache_after(model(input_ids=ids, use_cache=True))
        ids = ids[:, :length]
    given = with_cache(model, cache)

    def run() -> object:
        with routing():
            result = model(input_ids=ids, **given, use_cache=cache is not None)
        if cache is not None:
            cache.crop(-length)
        return result

    return run


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(exit_code(main))
