"""How do the time and the memory of a routed layer grow with experts, tokens, rank and width?

    python benchmarks/scaling.py [--sweeps experts tokens rank width] [--kernel native] [--pairs 7] [--steps 60]
                                 [--layers 28] [--json out.json]
    python benchmarks/scaling.py --read out.json [more.json ...] --plot scaling.svg

One value at a time is varied around 36 experts of rank 16 on a linear layer 576 -> 1536 (width D -> 8/3 D in multiples
of 64), at 1 and 512 tokens of one query: router `glider` with a global term as in overhead.py, K = 2, experts in
bfloat16, the layer in float32. What is timed is a stack of such layers, each with weights, gates and experts of its
own, one after another on the same input: as many as hold 96 MB of weights, more than the caches, so that a token
finds them in memory as in a model (or --layers). Bare and routed stack run in turn; printed are the median of the
ratios of the pairs, their quartiles, the limit, and for one layer the bytes of gates and experts as computed and as
the process grew; then the process's peak (Linux with glibc).

The limit is what base, router and K experts need over what the base needs: up to 16 tokens bytes read (the experts that
many tokens name on average), above them FLOPs. It bounds the ratio as far as the experts run at the base's rate.
--read prints and draws what earlier runs wrote, those of t5_loop.py included.
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from glider.cli.terminal import exit_code
from glider.files.disk import write_json
from glider.layers.bank import Bank
from glider.layers.context import Batch, RoutingContext
from glider.layers.kernels.native import SHORTLIST_FROM
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.routing.base import Site
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from glider.routing.scores import standardise
from overhead import COSINES, clocked
from scaling_plot import draw

SWEEPS = {
    "experts": (8, 36, 100, 166, 300, 1000),
    "tokens": (1, 8, 64, 512, 1024),
    "rank": (4, 8, 16, 32, 64),
    "width": (576, 1024, 2048, 4096),
}
ROUTER, KEPT, ALPHA = Glider(p=0.8), 2, 3.0
SPAN = 96e6  # bytes of weights in a stack: three times the last cache of the machine it was made on
FEW = 16  # tokens; up to these a linear layer waits for its weights, above for its products


@dataclass(frozen=True)
class Point:
    """A layer, its experts, and how many tokens it is given."""

    experts: int = 36
    tokens: int = 1
    rank: int = 16
    width: int = 576

    @property
    def out(self) -> int:
        """Output width."""
        return round(self.width / 24) * 64

    @property
    def base_bytes(self) -> int:
        """The layer's float32 weights."""
        return 4 * self.width * self.out

    @property
    def expert_bytes(self) -> int:
        """One expert's bfloat16 factors."""
        return 2 * self.rank * (self.width + self.out)

    @property
    def held_bytes(self) -> int:
        """Gates in float32, their 8-bit copy where shortlists are made, and all experts."""
        gate = 5 if self.experts >= SHORTLIST_FROM else 4
        return self.experts * (gate * self.width + self.expert_bytes)

    @property
    def limit(self) -> float:
        """The ratio to the bare layer of bytes read, for a few tokens, else of FLOPs."""
        kept = min(KEPT, self.experts)
        if self.tokens > FEW:
            pair = self.rank * (self.width + self.out)
            return 1 + (self.experts * self.width + kept * pair) / (self.width * self.out)
        gates = self.experts * self.width * (1 if self.experts >= SHORTLIST_FROM else 4)
        used = self.experts * (1 - (1 - kept / self.experts) ** self.tokens)  # different experts, on average
        return 1 + (gates + used * self.expert_bytes) / self.base_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--kernel", choices=("native", "triton", "torch", "reference"))
    parser.add_argument("--pairs", type=int, default=7, help="above 16 tokens")
    parser.add_argument("--steps", type=int, default=60, help="pairs at 16 tokens or fewer")
    parser.add_argument("--layers", type=int, help="in a stack (default: 96 MB of weights)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, nargs="+", help="print and draw earlier runs, measure nothing")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.read:
        rows = [row for path in arguments.read for row in json.loads(path.read_text("utf8"))["rows"]]
    else:
        rows = [row for name in arguments.sweeps for row in sweep(name, arguments)]
    print_table([row for row in rows if "sweep" in row])
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(arguments.json, {"settings": settings, "machine": machine, "rows": rows})
    if arguments.plot:
        draw(rows, arguments.plot)


def sweep(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one sweep, its points in order."""
    for value in SWEEPS[name]:
        point = replace(Point(), **{name: value})
        points = [point] if name == "tokens" else [replace(point, tokens=tokens) for tokens in (1, 512)]
        for row in measure(points, arguments):
            row = {"sweep": name, **row}
            Console(stderr=True, highlight=False).print(
                f"{name} {value}, {row['tokens']} tokens: {row['ratio']:.2f} (limit {row['limit']:.2f})"
            )
            yield row


def measure(points: Sequence[Point], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times and memory of points that differ in their tokens only, over one stack."""
    first = points[0]
    torch.manual_seed(0)
    count = arguments.layers or max(1, round(SPAN / first.base_bytes))
    bare = [nn.Linear(first.width, first.out, bias=False) for _ in range(count)]
    with torch.inference_mode():
        runner(bare, torch.zeros(1, 1, first.width))()  # what a first call loads is not the experts'
    before = settled()
    routed, context = stack(bare, first, arguments.kernel)
    scores = torch.normal(*COSINES, (1, first.experts))
    batch = Batch.of(Condition.of(scores, torch.tensor([ALPHA])))
    settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    for point in points:
        inputs = torch.randn(4, point.tokens, point.width)
        runs = [runner(layers, inputs) for layers in (bare, routed)]
        with torch.inference_mode(), context.use(batch):
            for run in runs:
                run()
            few = point.tokens <= FEW
            pairs = [[clocked(run, False) for run in runs] for _ in range(arguments.steps if few else arguments.pairs)]
        ratios = [own / base for base, own in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        yield {
            **asdict(point),
            "out": point.out,
            "layers": count,
            "ratio": middle,
            "low": low,
            "high": high,
            "limit": point.limit,
            "bare_us": 1e6 * statistics.median(base for base, _ in pairs) / count,
            "held_megabytes": point.held_bytes / 1e6,
            "grown_megabytes": (settled() - before) / count / 1e6,
            "peak_resident_megabytes": resident("VmHWM") / 1e6,
            "pairs": pairs,
        }


def stack(bare: Sequence[nn.Module], point: Point, kernel: str | None) -> tuple[list[RoutedLinear], RoutingContext]:
    """The layers with experts: gates of each layer's own, factors that are equal in value and copied for each layer."""
    context = RoutingContext()
    a = torch.randn(point.experts, point.rank, point.width, dtype=torch.bfloat16) / point.width**0.5
    b = 0.1 * torch.randn(point.experts, point.rank, point.out, dtype=torch.bfloat16)
    absent = torch.zeros(point.experts, dtype=torch.bool)
    routed = []
    for i, base in enumerate(bare):
        site = Site(f"layer{i}", absent, {"gates": standardise(torch.randn(point.experts, point.width))})
        bank = Bank(a.clone(), b.clone().mT, torch.ones(point.experts))
        routed.append(RoutedLinear.over(base, RoutedSite(site, bank, ROUTER, kernel), context))
    return routed, context


def runner(layers: Sequence[nn.Module], inputs: torch.Tensor) -> Callable[[], None]:
    """Runs all layers on the next of the inputs (N, T, D)."""
    turn = 0

    def run() -> None:
        nonlocal turn
        x = inputs[turn % len(inputs)][None]  # (1, T, D)
        turn += 1
        for layer in layers:
            layer(x)

    return run


def settled() -> int:
    """Bytes of this process in memory, once what was freed is given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text("utf8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    measured = ("ratio", "quartiles", "limit", "bare us", "held MB", "grown MB", "peak MB")
    table = Table("sweep", *SWEEPS, *measured, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(row["sweep"], *(str(row[name]) for name in SWEEPS), f"{row['ratio']:.2f}"),
            *(f"{row['low']:.2f} to {row['high']:.2f}", f"{row['limit']:.2f}", f"{row['bare_us']:.0f}"),
            *(f"{row['held_megabytes']:.2f}", f"{row['grown_megabytes']:.2f}"),
            f"{row['peak_resident_megabytes']:.0f}",
        )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
