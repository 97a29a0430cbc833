"""What does routing cost under transformers' continuous batching, and what does that cost beside plain generate?

    python benchmarks/continuous_batching.py [--requests 16] [--prompts 16 256] [--new-tokens 32] [--ends 0.0]
                                             [--at-once 16] [--pass-tokens 512] [--experts 36] [--pairs 3]
                                             [--processor] [--json out.json]

SmolLM2-135M in float32 with random experts as in overhead.py, a global term of its own for each request. The prompts'
lengths are spread evenly between the two of --prompts. Four ways to answer the same requests, greedily, run in turn in
one process over the same base weights: `generate_batch` and `generate`, each of the bare base and of the routed model.
`generate` takes --at-once requests as a padded batch, `generate_batch` as many in flight. With --ends that share of the
vocabulary ends an answer, so that answers differ in length. Printed are new tokens a second by the clock (median,
quartiles) and, of the pairs' ratios to each other way, median, least and most: seconds a new token, by the clock, or
with --processor by the processor's time, which other work on the machine disturbs less.
"""

import argparse
import copy
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import ContinuousBatchingConfig

from glider.cli.terminal import exit_code
from glider.files.disk import write_json
from glider.inference.base_model import load_base
from glider.inference.engine import Ended, Failed, events
from glider.inference.packed_engine import PackedEngine
from glider.inference.sampler import RequestSettings
from glider.layers.attach import Attached, Storage
from glider.routing.base import Prepared
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from overhead import random_experts

ROUTER = Glider(p=0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompts", type=int, nargs=2, default=[16, 256], help="least and most tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--ends", type=float, default=0.0, help="share of the vocabulary that ends an answer")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--pass-tokens", type=int, default=512)
    parser.add_argument("--experts", type=int, default=36)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--processor", action="store_true", help="ratios of the processor's time")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_base(arguments.base).model
    bare = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    plain, routed = Attached(bare), Attached(model)
    plain.replace(ROUTER, Prepared((), {}), Storage())
    routed.replace(ROUTER, random_experts(model, arguments.experts, share=False), Storage(torch.bfloat16))
    ways = {
        "base, generate_batch": packed(plain, arguments),
        "routed, generate_batch": packed(routed, arguments),
        "base, generate": padded(plain, arguments),
        "routed, generate": padded(routed, arguments),
    }
    for name, run in ways.items():
        report(f"{name}, first call", clocked(run, 1))
    rounds = []
    for _ in range(arguments.pairs):
        rounds.append({name: clocked(run, arguments.requests) for name, run in ways.items()})
        for name, one in rounds[-1].items():
            report(name, one)
    rows = [summary(name, rounds, "processor_seconds" if arguments.processor else "seconds") for name in ways]
    print_table(rows, list(ways))
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "peak_resident_megabytes": peak}
        write_json(arguments.json, {"settings": settings, "machine": machine, "rows": rows, "rounds": rounds})


def requests(attached: Attached, arguments: argparse.Namespace) -> tuple[list[list[int]], Condition | None, set[int]]:
    """Prompts of random tokens in a random order of length, their global terms, and the tokens that end an answer."""
    chance = torch.Generator().manual_seed(1)
    model: Any = attached.model
    vocabulary, count = model.config.vocab_size, arguments.requests
    least, most = arguments.prompts
    lengths = torch.linspace(least, most, count).round().long()[torch.randperm(count, generator=chance)]
    prompts = [torch.randint(3, vocabulary, (int(length),), generator=chance).tolist() for length in lengths]
    ends = torch.randperm(vocabulary, generator=chance)[: round(arguments.ends * vocabulary) or 1].tolist()
    experts = len(attached.prepared.experts)
    scores = torch.rand(count, experts, generator=chance)
    condition = Condition.of(scores, torch.full((count,), 3.0)) if experts else None
    return prompts, condition, set(ends)


def packed(attached: Attached, arguments: argparse.Namespace) -> Callable[[int], int]:
    """Answers the first so many requests by continuous batching; returns the number of new tokens."""
    prompts, condition, ends = requests(attached, arguments)
    page = ContinuousBatchingConfig(
        page_size=32, max_requests_per_batch=arguments.at_once, max_batch_tokens=arguments.pass_tokens
    )

    settings = RequestSettings(arguments.new_tokens, frozenset(ends))

    def run(count: int) -> int:
        new, names = 0, [str(i) for i in range(count)]
        engine = PackedEngine(attached, page, [len(ids) + arguments.new_tokens for ids in prompts[:count]])
        try:
            for i, name in enumerate(names):
                engine.add(name, prompts[i], rows(condition, slice(i, i + 1)), settings)
            for event in events(engine, names):
                if isinstance(event, Failed):
                    raise event.fault
                new += len(event.tokens) if isinstance(event, Ended) else 0
        finally:
            engine.close()
        return new

    return run


def padded(attached: Attached, arguments: argparse.Namespace) -> Callable[[int], int]:
    """Answers the first so many requests by padded batches; returns the number of new tokens."""
    prompts, condition, ends = requests(attached, arguments)

    def run(count: int) -> int:
        new = 0
        for start in range(0, count, arguments.at_once):
            part = slice(start, min(start + arguments.at_once, count))
            new += batch(attached, prompts[part], rows(condition, part), ends, arguments.new_tokens)
        return new

    return run


def batch(
    attached: Attached, prompts: Sequence[list[int]], condition: Condition | None, ends: set[int], limit: int
) -> int:
    """New tokens of one padded batch, up to each row's end."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": limit, "eos_token_id": sorted(ends)}
    model: Any = attached.model
    with torch.inference_mode(), attached.routing(condition):
        output = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, width:].tolist()
    return sum(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in output)


def rows(condition: Condition | None, part: slice) -> Condition | None:
    """The condition of some of the requests."""
    return None if condition is None else condition.rows(part)


def clocked(run: Callable[[int], int], count: int) -> dict[str, float]:
    """Seconds by the clock and by the processor, and new tokens, of one run."""
    began, spent = time.perf_counter(), time.process_time()
    tokens = run(count)
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - spent,
        "tokens": tokens,
    }


def report(name: str, one: dict[str, float]) -> None:
    Console(stderr=True, highlight=False).print(
        f"{name}: {one['tokens']:.0f} new tokens in {one['seconds']:.1f} s"
        f" ({one['processor_seconds']:.1f} s of the processor)",
        soft_wrap=True,
    )


def summary(name: str, rounds: Sequence[dict[str, dict[str, float]]], by: str) -> dict[str, Any]:
    """Tokens a second of one way, and the ratios of its seconds a token, by either measure, to the others'."""
    cost = [{way: one[by] / one["tokens"] for way, one in round_.items()} for round_ in rounds]
    rates = [one[name]["tokens"] / one[name]["seconds"] for one in rounds]
    quarters = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
    return {
        "way": name,
        "tokens": rounds[0][name]["tokens"],
        "tokens_a_second": statistics.median(rates),
        "low": quarters[0],
        "high": quarters[2],
        "ratios": {way: statistics.median(one[name] / one[way] for one in cost) for way in rounds[0]},
        "least": {way: min(one[name] / one[way] for one in cost) for way in rounds[0]},
        "most": {way: max(one[name] / one[way] for one in cost) for way in rounds[0]},
    }


def print_table(rows: Sequence[dict[str, Any]], ways: Sequence[str]) -> None:
    table = Table("way", "new tokens", "tokens/s", "quartiles", *(f"x {way}" for way in ways), box=None, pad_edge=False)
    for row in rows:
        ratios = [f"{row['ratios'][way]:.2f} ({row['least'][way]:.2f}-{row['most'][way]:.2f})" for way in ways]
        rates = (f"{row['tokens_a_second']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}")
        table.add_row(row["way"], f"{row['tokens']:.0f}", *rates, *ratios)
    Console(highlight=False, width=170).print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
