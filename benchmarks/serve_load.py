"""What does routing cost a server's clients, beside the bare base through the same server?

    python benchmarks/serve_load.py [--experts 36] [--pool DIRECTORY] [--signal examples] [--verdict route]
                                    [--requests 32] [--repeats 3] [--in-flight 16] [--new-tokens 32]
                                    [--pairs 3] [--first 20] [--beside-transformers] [--json out.json]

Starts `glider serve` over a pool, the demo's by default; with --experts over as many random experts (rank 16, all
linear layers of the base, with words and embeddings of their own), none of whose tasks the prompts are of. Then asks it
for streamed chat answers of --new-tokens tokens, --in-flight at a time: of the pool and of the base in turn, the same
prompts in both runs of a pair, others in every pair, so that nothing comes from the cache of an earlier one. Printed
are tokens a second, the time to the first token (median, 95 %) and between tokens, and of the pairs' ratios routed to
base the median, least and most: of tokens a second, and of the time of the server's processor a token, which other
work on the machine disturbs less.

Then the first token alone: one request at a time with an idle server, pool and base in turn, and the median of the
differences of pairs, with quartiles; what the server itself says of making a condition (`glider:routing_seconds`); and
the time of its processor.
--signal takes another global signal, such as `ensemble`. --verdict route has every token routed, where a calibrated
pool's verdict would settle it; as a pool without verdicts does. --beside-transformers asks `transformers serve
--continuous-batching` for the same answers of the same base, in turn with the others.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from rich.console import Console
from rich.table import Table

from glider.cli.terminal import exit_code
from glider.demo.prompts import PROMPTS
from glider.files.disk import write_json
from glider.progress import Bars
from served import Server, metric_sum, serving, transformers_serving

TIMEOUT = 3600.0  # seconds of a request, on a machine that others use


@dataclass(frozen=True)
class Way:
    """A server and a model's name there."""

    name: str
    server: Server
    model: str
    more: dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """One streamed answer."""

    first: float  # seconds to its first token
    between: list[float]
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="the demo's by default")
    parser.add_argument("--pool", default="demo")
    parser.add_argument("--experts", type=int, help="random ones, in place of --pool")
    parser.add_argument("--signal", default="examples")
    parser.add_argument("--verdict", choices=("route",))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="a prompt has its task's text up to so many times")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--first", type=int, default=20, help="pairs of single requests for a first token")
    parser.add_argument("--beside-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        ways = opened(arguments, stack)
        result = asyncio.run(measured(ways, arguments))
    print_tables(result, arguments)
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        write_json(arguments.json, {"settings": settings, **result})


def opened(arguments: argparse.Namespace, stack: ExitStack) -> list[Way]:
    """The servers, and what is asked of them: the base, the pool, and the base of transformers' own server."""
    pool: Any = arguments.pool
    if arguments.experts:
        pool = stack.enter_context(random_pool(arguments.base, arguments.experts))
    options: list[object] = ["--pool", f"routed={pool}", "--router", f"glider(global={arguments.signal})"]
    options += ["--base", arguments.base] if arguments.base else []
    options += ["--max-requests", arguments.in_flight]
    server = stack.enter_context(serving(options))
    models = httpx.get(f"{server.url}/v1/models", timeout=TIMEOUT).raise_for_status().json()["data"]
    base = next(one["id"] for one in models if one["kind"] == "base")
    steering = {"glider": {"verdict": arguments.verdict}} if arguments.verdict else {}
    # ignore_eos: answers of equal length
    ways = [Way("base", server, base, {"ignore_eos": True})]
    ways.append(Way("routed", server, "routed", {"ignore_eos": True, **steering}))
    if arguments.beside_transformers:
        from glider.demo.base import converted_base

        directory = arguments.base or str(converted_base())
        other = stack.enter_context(transformers_serving(directory))
        config = json.dumps({"eos_token_id": -1, "do_sample": False, "max_new_tokens": arguments.new_tokens})
        ways.append(Way("transformers serve", other, directory, {"generation_config": config}))
    return ways


@contextmanager
def random_pool(base_name: str | None, count: int) -> Iterator[Path]:
    """A pool of random experts on disk, with gates, words and embeddings of their own."""
    import torch
    from peft import LoraConfig

    from glider.experts.card import ExpertCard
    from glider.experts.expert import write_expert
    from glider.experts.pool import Pool
    from glider.experts.profile import Profile
    from glider.experts.prompt_format import PromptFormat
    from glider.inference.base_model import load_base
    from glider.instructions.embedders import load_embedder
    from glider.instructions.inputs import ngrams

    base, identity = load_base(base_name or "smollm2-135m"), load_embedder().identity
    linears = {
        name: module
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    chance = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, Bars() as bars:
        pool = Pool.create(Path(folder) / "random", base.identity)
        for number in range(count):
            bars.update("Random experts", number / count, f"{number} of {count}")
            lora, gates = {}, {}
            for site, module in linears.items():
                a = torch.randn(16, module.in_features, generator=chance) / module.in_features**0.5
                lora[f"base_model.model.{site}.lora_A.weight"] = a
                lora[f"base_model.model.{site}.lora_B.weight"] = 0.1 * torch.randn(
                    module.out_features, 16, generator=chance
                )
                gates[site] = torch.randn(module.in_features, generator=chance)
            name = f"r{number}"
            prompt = PromptFormat.of(base.model, base.tokenizer)
            card = ExpertCard(name=name, task=name, base=base.identity, prompt=prompt, embedder=identity)
            config = LoraConfig(
                r=16, lora_alpha=16, target_modules=list(linears), task_type="CAUSAL_LM",
                base_model_name_or_path=base.identity.model_id,
            )  # fmt: skip
            texts = [ngrams(f"{name} has {word} words of its own, {name}{word}") for word in range(88)]
            vectors = torch.nn.functional.normalize(torch.randn(88, identity.dimension, generator=chance), dim=-1)
            profile = Profile.of(texts[:64], texts[64:], vectors[:64], vectors[64:])
            write_expert(pool.path / name, card, config, lora, gates, vectors[0], torch.bfloat16, profile)
            pool = pool.add(name)
        yield pool.path


def texts(count: int, start: int, repeats: int) -> list[str]:
    """Prompts of the demo's tasks and of none, some of them several times over, each the only one of its words."""
    prompts = []
    for number in range(start, start + count):
        task = PROMPTS[number % len(PROMPTS)].text
        prompts.append(f"No. {number}. " + " ".join([task] * (1 + number % repeats)))
    return prompts


async def measured(ways: Sequence[Way], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs in turn, and single requests in turn."""
    runs: list[dict[str, Any]] = []
    limits = httpx.Limits(max_connections=arguments.in_flight + 1)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT) as client:
        for way in ways:
            await timed(client, way, "Hello", 4)  # what is loaded at the first question
        for pair in range(arguments.pairs):
            prompts = texts(arguments.requests, pair * arguments.requests, arguments.repeats)
            for way in ways if pair % 2 == 0 else ways[::-1]:
                runs.append({"way": way.name, "pair": pair, **await run(client, way, prompts, arguments)})
                report(runs[-1])
        routing = [metric_sum((await client.get(f"{ways[0].server.url}/metrics")).text, name) for name in ROUTING]
        first: dict[str, list[float]] = {way.name: [] for way in ways}
        processor = dict.fromkeys(first, 0.0)
        for number, text in enumerate(texts(arguments.first, 10_000, arguments.repeats)):
            for way in ways if number % 2 == 0 else ways[::-1]:
                spent = way.server.processor_seconds
                first[way.name].append((await timed(client, way, text, 1)).first)
                processor[way.name] += way.server.processor_seconds - spent
        after = [metric_sum((await client.get(f"{ways[0].server.url}/metrics")).text, name) for name in ROUTING]
    return {"runs": runs, "first": first, "first_processor": processor, "routing_ms": mean_routing(routing, after)}


ROUTING = ("glider:routing_seconds_sum", "glider:routing_seconds_count")


def mean_routing(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Milliseconds that a condition took on average, of the base's requests (which take next to none) and the pool's.

    Half of the requests are the base's.
    """
    count = (after[1] - before[1]) / 2
    return 1e3 * (after[0] - before[0]) / count if count else None


async def run(
    client: httpx.AsyncClient, way: Way, prompts: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All prompts, so many in flight."""
    places, spent = asyncio.Semaphore(arguments.in_flight), way.server.processor_seconds

    async def one(text: str) -> Timed:
        async with places:
            return await timed(client, way, text, arguments.new_tokens)

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(text) for text in prompts))
    seconds = time.perf_counter() - began
    tokens = sum(answer.tokens for answer in answers)
    between = [gap for answer in answers for gap in answer.between]
    return {
        "tokens": tokens,
        "seconds": seconds,
        "processor_seconds": way.server.processor_seconds - spent,
        "first": [answer.first for answer in answers],
        "between": statistics.median(between) if between else 0.0,
    }


async def timed(client: httpx.AsyncClient, way: Way, text: str, tokens: int) -> Timed:
    """One streamed answer, by the clock."""
    body = {
        "model": way.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **way.more,
    }
    began, times, written = time.perf_counter(), [], 0
    async with client.stream("POST", f"{way.server.url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{way.name}: {answer.status_code} {(await answer.aread())[:500]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(f"{way.name}: {event['error']}")
            if any(choice["delta"].get("content") or choice.get("finish_reason") for choice in event["choices"]):
                times.append(time.perf_counter() - began)
            written = (event.get("usage") or {}).get("completion_tokens", written)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return Timed(times[0], gaps, written)


def report(one: dict[str, Any]) -> None:
    Console(stderr=True, highlight=False).print(
        f"pair {one['pair']}, {one['way']}: {one['tokens']} tokens in {one['seconds']:.1f} s"
        f" ({one['processor_seconds']:.1f} s of the server's processor)",
        soft_wrap=True,
    )


def ratios(runs: Sequence[dict[str, Any]], way: str, other: str, value: Any) -> str:
    """Median, least and most of the pairs' ratios."""
    of = {(one["way"], one["pair"]): value(one) for one in runs}
    values = sorted(of[way, pair] / of[other, pair] for name, pair in of if name == way)
    return f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"


def print_tables(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    runs, first = result["runs"], result["first"]
    names = list(dict.fromkeys(one["way"] for one in runs))
    table = Table("", "tokens/s", "first token s", "95 %", "between ms", "x base, tokens/s", "x base, processor",
                  box=None, pad_edge=False)  # fmt: skip
    for name in names:
        own = [one for one in runs if one["way"] == name]
        firsts = sorted(seconds for one in own for seconds in one["first"])
        table.add_row(
            name,
            f"{statistics.median(one['tokens'] / one['seconds'] for one in own):.1f}",
            f"{statistics.median(firsts):.2f}",
            f"{firsts[int(0.95 * (len(firsts) - 1))]:.2f}",
            f"{1e3 * statistics.median(one['between'] for one in own):.0f}",
            ratios(runs, name, "base", lambda one: one["tokens"] / one["seconds"]),
            ratios(runs, name, "base", lambda one: one["processor_seconds"] / one["tokens"]),
        )
    shown = Console(highlight=False, width=140)
    shown.print(table)
    if len(first["routed"]) > 1:
        more = [1e3 * (own - base) for own, base in zip(first["routed"], first["base"], strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        shown.print(
            f"first token of one request: base {1e3 * statistics.median(first['base']):.0f} ms, routed by"
            f" {arguments.signal} {middle:+.1f} ms (quartiles {low:+.1f} to {high:+.1f}); the condition itself"
            f" {result['routing_ms']:.2f} ms; of the server's processor"
            f" {1e3 * result['first_processor']['base'] / arguments.first:.0f} and"
            f" {1e3 * result['first_processor']['routed'] / arguments.first:.0f} ms a request"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
