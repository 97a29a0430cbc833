"""What do settled experts cost a linear layer, beside the layer itself? No model is needed.

    OMP_NUM_THREADS=1 python benchmarks/settled_layer.py [--tokens 512] [--experts 36] [--runs 12]
                                                         [--dtype bfloat16]

For each shape of SmolLM2-135M's layers: processor time of the bare layer, and over it that of one expert for every
token (a query that fits), of three alike (an unsure one) and of routing by token, least of the runs, which take turns.
The last line adds up the layers of a block. Experts of rank 16 in bfloat16; they and all else stay in the caches as far
as these reach, so that for few tokens this is no decoding. `--dtype` is that of the layer, its inputs and outputs.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

from glider.cli.terminal import exit_code
from glider.layers.bank import Bank
from glider.layers.kernels.native import NativeSite
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearScores, LinearTopK
from glider.routing.scores import standardise

SHAPES = {(576, 576): 2, (576, 192): 2, (576, 1536): 2, (1536, 576): 1}  # and how many of a block's layers have them
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--experts", type=int, default=36)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    totals: dict[str, float] = {}
    with torch.inference_mode():
        for (width, out), layers in SHAPES.items():
            least = measure(calls(width, out, arguments.tokens, arguments.experts, dtype), arguments.runs)
            print_row(f"{width} -> {out}", least)
            for name, seconds in least.items():
                totals[name] = totals.get(name, 0) + layers * seconds
    print_row("a block", totals)


def calls(width: int, out: int, tokens: int, experts: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A bare layer, and what adds experts to its output."""
    layer = torch.nn.Linear(width, out, bias=False, dtype=dtype)
    a = torch.randn(experts, RANK, width).bfloat16() / width**0.5
    bank = Bank(a, 0.1 * torch.randn(experts, out, RANK).bfloat16(), torch.ones(experts))
    gates, absent = standardise(torch.randn(experts, width)), torch.zeros(experts, dtype=torch.bool)
    linear = LinearTopK(LinearScores(gates, width**0.5, True, False), 2, True)
    site = NativeSite(bank, Site("site", absent, {"gates": gates}), linear)
    x, term = torch.randn(tokens, width).to(dtype), 0.4 * torch.randn(1, experts)
    y = layer(x)
    one = Decision(torch.full((tokens, 1), 5), torch.ones(tokens, 1))
    three = Decision(torch.tensor([[5, 7, 2]]).repeat(tokens, 1), torch.full((tokens, 3), 1 / 3))
    return {
        "bare": lambda: layer(x),
        "one expert": lambda: site.apply(y, x, one),
        "three alike": lambda: site.apply(y, x, three),
        "routed": lambda: site.route(y, x, term, None),
    }


def measure(work: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Least processor time of each, in seconds."""
    least = dict.fromkeys(work, float("inf"))
    for _ in range(runs):
        for name, call in work.items():
            began = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - began)
    return least


def print_row(name: str, least: dict[str, float]) -> None:
    bare = least["bare"]
    ratios = ", ".join(f"{what} {1 + seconds / bare:.3f}" for what, seconds in least.items() if what != "bare")
    print(f"{name}: bare {1e6 * bare:.0f} us; {ratios}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
