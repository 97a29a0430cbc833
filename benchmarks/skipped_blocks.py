"""What skipping attention blocks saves: a prompt and tokens after it, with so many of the base's blocks skipped.

    python benchmarks/skipped_blocks.py [--pool DIRECTORY] [--tokens 128] [--steps 16] [--turns 3]

The embedded base and pool by default, under `mindskip-attention` with gates that are set by hand: of L layers the last
0, L / 4, L / 2, 3 L / 4 or all skip. The settings are measured in turn, several times; seconds are processor time, of a
process with one thread (OMP_NUM_THREADS=1), and the medians of the turns. `phatgoose` is the same without gates.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from glider.cli.terminal import exit_code
from glider.demo.pool import DEMO_POOL
from glider.experts.pool import Pool
from glider.inference.spec import BaseSpec, base_of
from glider.layers.attach import Attached, Storage, attach
from glider.layers.caches import cache_after, with_cache
from glider.routing.methods.mindskip_attention import MindSkipAttention, blocks_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=DEMO_POOL)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    pool = Pool.open(arguments.pool)
    base = BaseSpec(base=base_of(pool)).load_base(base_of(pool))
    ids = torch.randint(100, 1000, (1, arguments.tokens), generator=torch.Generator().manual_seed(0))
    names = list(blocks_of(pool))
    gates = {}
    for name, width in blocks_of(pool).items():
        gates |= {f"{name}.gate": torch.zeros(width), f"{name}.bias": torch.ones(1)}
    shares = [round(len(names) * part / 4) for part in range(5)]
    seconds: dict[str, list[tuple[float, float]]] = {}
    router = MindSkipAttention()
    for _ in range(arguments.turns):
        attached = attach(base.model, pool, "phatgoose")
        note("phatgoose", timed(attached, ids, arguments.steps), seconds)
        attached.detach()
        attached = attach(base.model, pool, router, Storage(), router.prepared_with(pool, gates))
        for skipped in shares:
            for number, name in enumerate(names):
                gates[f"{name}.bias"].fill_(-1.0 if number >= len(names) - skipped else 1.0)
            note(f"{skipped} of {len(names)} skipped", timed(attached, ids, arguments.steps), seconds)
        attached.detach()
    print("medians")
    for label, turns in seconds.items():
        show(label, (median(turn[0] for turn in turns), median(turn[1] for turn in turns)))


def note(label: str, measured: tuple[float, float], seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Keep a measurement, and show it at once: a run that is broken off has told what it knows."""
    seconds.setdefault(label, []).append(measured)
    show(label, measured)


def show(label: str, measured: tuple[float, float]) -> None:
    """Print seconds of a prompt and of a token, in milliseconds."""
    prompt, token = (1000 * one for one in measured)
    print(json.dumps({"router": label, "prompt_ms": round(prompt, 1), "token_ms": round(token, 2)}), flush=True)


@torch.inference_mode()
def timed(attached: Attached, ids: torch.Tensor, steps: int) -> tuple[float, float]:
    """Processor seconds of a prompt, and of one token after it, in the mean; the first of both warms up."""
    model: Any = attached.model
    with attached.routing(None):
        model(ids[:, :8], use_cache=True)
        began = time.process_time()
        given = model(ids, use_cache=True)
        prompt = time.process_time() - began
        token = ids[:, -1:]
        given = model(token, **with_cache(model, cache_after(given)), use_cache=True)
        began = time.process_time()
        for _ in range(steps):
            given = model(token, **with_cache(model, cache_after(given)), use_cache=True)
        return prompt, (time.process_time() - began) / steps


if __name__ == "__main__":
    sys.exit(exit_code(main))
