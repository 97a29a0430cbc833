"""What a routed pool costs inside vLLM: a bare engine and others with the pool, each in a process of its own, in turn.

    make vllm-test            # makes .venv-vllm
    VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/vllm_overhead.py demo --pairs 9

One thread, greedy, no prefix cache. For each kind of request the ratio of its time to the bare engine's, measured right
before it: median and quartiles of the pairs. `bare again` is a second engine without a pool: what the machine's noise
comes to. `--compile` lets torch.compile and, on a GPU, CUDA graphs take part (the default is eager). `--experts 36`
takes so many random experts, of `--rank`, at the sites of the pool's first one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from glider.cli.terminal import exit_code

ENGINES = {"bare": "bare", "bare again": "bare", "routed": "route", "stranger": "route", "one adapter": "lora"}
PROMPT, LONG, NEW = 32, 480, 32
MOST = 32  # requests at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", nargs="?", default="demo")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--experts", type=int, help="random experts in place of the pool's")
    parser.add_argument("--rank", type=int, default=16, help="of random experts")
    parser.add_argument("--base", help="directory of the base, where the pool's own name is not one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", help="vLLM's --attention-backend")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=[name for name in ENGINES if name != "bare"], action="append")
    parser.add_argument("--engine", choices=["bare", "route", "lora"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        answer_commands(options)
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.experts:
            options.pool = random_pool(Path(directory) / "pool", options.pool, options.experts, options.rank)
        results = measured(options)
    print(json.dumps(results) if options.json else table(results))


def measured(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Starts the engines, measures, and ends them."""
    kinds = options.only or [name for name in ENGINES if name != "bare"]
    processes = {name: start(ENGINES[name], options) for name in ("bare", *kinds)}
    try:
        return measure(processes, options.pairs)
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait(60)


def random_pool(path: Path, like: str, count: int, rank: int) -> str:
    """A pool of random experts at the sites of another pool's first expert, for the same base."""
    import torch
    from peft import LoraConfig

    from glider.experts.expert import write_expert
    from glider.experts.pool import Pool
    from glider.inference.spec import open_pool

    first = next(iter(open_pool(like)))
    pool = Pool.create(path, first.card.base)
    chance = torch.Generator().manual_seed(0)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(first.sites))
    for name in (f"random{number}" for number in range(count)):
        lora, gates = {}, {}
        for site, shape in first.sites.items():
            down = torch.randn(rank, shape.in_features, generator=chance) / shape.in_features**0.5
            up = 0.1 * torch.randn(shape.out_features, rank, generator=chance)
            lora |= {f"base_model.model.{site}.lora_{part}.weight": matrix for part, matrix in (("A", down), ("B", up))}
            gates[site] = torch.randn(shape.in_features, generator=chance)
        card = first.card.model_copy(update={"name": name, "task": name, "description": None, "embedder": None})
        write_expert(path / name, card, settings, lora, gates, None)
        pool = pool.add(name)
    return str(path)


def start(engine: str, options: argparse.Namespace) -> Any:
    """A process with an engine, ready."""
    command = [sys.executable, __file__, str(options.pool), "--engine", engine, "--dtype", options.dtype]
    command += ["--compile"] if options.compile else []
    command += ["--base", options.base] if options.base else []
    command += ["--attention", options.attention] if options.attention else []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ready(process)
    return process


def ready(process: Any) -> float:
    """The next number that a process tells; what vLLM prints is passed over."""
    for line in process.stdout:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit("an engine ended")


def ask(process: Any, kind: str, rows: int, tokens: int, new: int) -> float:
    """Seconds that so many prompts of so many tokens take, each with so many new tokens."""
    process.stdin.write(json.dumps({"kind": kind, "rows": rows, "tokens": tokens, "new": new}) + "\n")
    process.stdin.flush()
    return ready(process)


def cost(process: Any, kind: str, work: str) -> float:
    """Seconds of a prompt, or of one step of new tokens of so many requests at once."""
    if work == "prompt":
        return ask(process, kind, 1, LONG, 1)
    rows = int(work)
    return (ask(process, kind, rows, PROMPT, NEW + 1) - ask(process, kind, rows, PROMPT, 1)) / NEW


def measure(processes: dict[str, Any], pairs: int) -> dict[str, dict[str, Any]]:
    """For each kind of request and work its ratios to the bare engine."""
    results: dict[str, dict[str, Any]] = {}
    for work in ("prompt", "1", "8", "16", "32"):
        for kind in (name for name in processes if name != "bare"):
            ratios, bare = [], []
            for _ in range(pairs):
                bare.append(cost(processes["bare"], "bare", work))
                ratios.append(cost(processes[kind], kind, work) / bare[-1])
            low, _, high = quantiles(ratios, n=4)
            entry = {"ratio": median(ratios), "low": low, "high": high, "bare_ms": 1000 * median(bare)}
            results.setdefault(kind, {})[work] = entry
            print(f"{kind}, {work}: {entry}", file=sys.stderr)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The same for a page."""
    names = {"prompt": f"a prompt of {LONG}", "1": "1 at a time"} | {n: f"{n} at once" for n in ("8", "16", "32")}
    lines = ["| | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, by_work in results.items():
        cells = [
            f"{by_work[work]['ratio']:.2f} ({by_work[work]['low']:.2f} {by_work[work]['high']:.2f})" for work in names
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    first = next(iter(results.values()))
    lines.append("| bare, ms | " + " | ".join(f"{first[work]['bare_ms']:.1f}" for work in names) + " |")
    return "\n".join(lines)


def answer_commands(options: argparse.Namespace) -> None:
    """One engine: reads commands, tells seconds."""
    engine, pool = options.engine, options.pool
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from glider.engines.vllm.arguments import engine_arguments, plugin_settings
    from glider.inference.base_model import located
    from glider.inference.spec import ModelSpec, base_of, open_pool

    opened = open_pool(pool)
    arguments: dict[str, Any] = {"attention_backend": options.attention} if options.attention else {}
    if engine == "route":
        arguments |= engine_arguments(plugin_settings(ModelSpec(pool=pool, router="phatgoose"), "route"))
    elif engine == "lora":
        rank = max(expert.sites[site].rank for expert in opened for site in expert.sites)
        arguments |= {"enable_lora": True, "max_lora_rank": max(8, rank), "max_loras": min(len(opened), MOST)}
    llm = LLM(
        options.base or located(base_of(opened)), dtype=options.dtype, enforce_eager=not options.compile,
        enable_prefix_caching=False, max_model_len=1024, max_num_seqs=MOST, kv_cache_memory_bytes=1 << 29, **arguments,
    )  # fmt: skip
    print("seconds 0", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in tokens_of(told["rows"], told["tokens"])]
        params = [
            SamplingParams(
                temperature=0, max_tokens=told["new"], ignore_eos=True, extra_args=extra(told["kind"], len(opened), row)
            )
            for row in range(told["rows"])
        ]
        adapters = [adapter(opened, row) for row in range(told["rows"])] if engine == "lora" else None
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)
        print(f"seconds {time.perf_counter() - began}", flush=True)


def extra(kind: str, experts: int, row: int) -> dict[str, Any] | None:
    """What a request of this kind brings: a term of its own, or nothing."""
    if kind not in ("routed", "stranger"):
        return None
    from glider.engines.vllm.requests import Preset
    from glider.engines.vllm.rows import Row

    term = Row(tuple(0.1 * ((row + i) % 7) for i in range(experts)))
    return {"glider": Preset(term if kind == "routed" else None, None)}


def adapter(pool: Any, row: int) -> Any:
    """One expert for each request, as an ordinary adapter of vLLM's."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    number = row % len(pool)
    expert = list(pool)[number]
    return LoRARequest(expert.name, number + 1, str(expert.directory))


def tokens_of(rows: int, length: int) -> list[list[int]]:
    """Prompts that differ from the first token on."""
    return [[(7919 * (row + 1) + 104729 * place) % 40000 + 100 for place in range(length)] for row in range(rows)]


if __name__ == "__main__":
    sys.exit(exit_code(main))
