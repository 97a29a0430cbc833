"""Which tiles suit the GPU kernel? One site with every choice of tiles, and the router beside it.

    python benchmarks/gpu_tiles.py [--experts 36] [--tokens 1 8 32 512 4096] [--width 4096] [--out 4096]

Random experts of rank 16 in bfloat16, K = 2, tokens in bfloat16. Printed are medians in microseconds: the bare linear
layer, the router's decision in PyTorch, and the experts' outputs by the torch kernel and by the Triton kernel with the
best tiles, and with those that are in use.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from triton.testing import do_bench

from glider.cli.terminal import exit_code
from glider.layers.bank import Bank
from glider.layers.kernels import gpu
from glider.layers.kernels.grouped import add_experts
from glider.routing.base import Decision, Site
from glider.routing.methods.glider import Glider
from glider.routing.scores import standardise

RANK = 16
TILES = {
    "_PAIRS": (16, 32, 64),
    "_WIDTHS": (64, 128),
    "OUTS": (64, 128),
    "_PAIR_RANKS": (1, 2, 4),
    "_PAIR_WIDTHS": (512, 1024, 2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=36)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 512, 4096])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--out", type=int, default=4096)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda")
    count, width, out = arguments.experts, arguments.width, arguments.out
    a = torch.randn(count, RANK, width, dtype=torch.bfloat16, device=device) / width**0.5
    b = torch.randn(count, out, RANK, dtype=torch.bfloat16, device=device) / 10
    bank = Bank(a, b, torch.ones(count, device=device))
    absent = torch.zeros(count, dtype=torch.bool, device=device)
    site = Site("s", absent, {"gates": standardise(torch.randn(count, width, device=device))})
    base = torch.nn.Linear(width, out, bias=False, dtype=torch.bfloat16, device=device)
    router = Glider(p=0.8)
    heads = ("tokens", "linear", "decision", "torch", "triton now", "triton best", "tiles")
    table = Table(*heads, box=None, pad_edge=False)
    with torch.inference_mode():
        for tokens in arguments.tokens:
            x = torch.randn(tokens, width, dtype=torch.bfloat16, device=device)
            term = torch.randn(tokens, count, device=device)
            decision, y = router.route(site, x, term), base(x)
            times = [
                median(lambda x=x: base(x)),
                median(lambda x=x, term=term: router.route(site, x, term)),
                median(lambda x=x, y=y, d=decision: add_experts(y, x, d, bank)),
                median(lambda x=x, y=y, d=decision: gpu.add_experts(y, x, d, bank)),
            ]
            best, tiles = min(tried(x, y, decision, bank))
            table.add_row(str(tokens), *(f"{1e3 * t:.0f}" for t in (*times, best)), str(tiles))
    Console(highlight=False).print(table)


def tried(x: torch.Tensor, y: torch.Tensor, decision: Decision, bank: Bank) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Time and tiles of every choice."""
    before = {name: getattr(gpu, name) for name in TILES}
    for sizes in product(*TILES.values()):
        for name, size in zip(TILES, sizes, strict=True):
            setattr(gpu, name, size)
        yield median(lambda: gpu.add_experts(y, x, decision, bank), 20), sizes
    for name, size in before.items():
        setattr(gpu, name, size)


def median(run: Callable[[], Any], rep: int = 50) -> float:
    """Milliseconds on the device, the host's launches included where they are slower."""
    milliseconds: Any = do_bench(run, warmup=10, rep=rep, return_mode="median")
    return milliseconds


if __name__ == "__main__":
    sys.exit(exit_code(main))
