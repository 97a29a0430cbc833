"""What a routed pool costs inside vLLM: a bare engine and others with the pool, each in a process of its own, in turn.

    make vllm-test            # makes .venv-vllm
    VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/vllm_overhead.py demo --pairs 9

One thread, greedy, no prefix cache. For each kind of request the ratio of its time to the bare engine's, measured right
before it: median and quartiles of the pairs. `bare again` is a second engine without a pool: what the machine's noise
comes to. `--compile` lets torch.compile take part (the default is eager).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

ENGINES = {"bare": "bare", "bare again": "bare", "routed": "route", "stranger": "route", "one adapter": "select"}
PROMPT, LONG, NEW = 32, 480, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", nargs="?", default="demo")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=[name for name in ENGINES if name != "bare"], action="append")
    parser.add_argument("--engine", choices=["bare", "route", "select"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        answer_commands(options.engine, options.pool, options.compile)
        return
    kinds = options.only or [name for name in ENGINES if name != "bare"]
    processes = {name: start(ENGINES[name], options) for name in ("bare", *kinds)}
    try:
        results = measure(processes, options.pairs)
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait(60)
    print(json.dumps(results) if options.json else table(results))


def start(engine: str, options: argparse.Namespace) -> Any:
    """A process with an engine, ready."""
    command = [sys.executable, __file__, options.pool, "--engine", engine, *(["--compile"] if options.compile else [])]
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
    for work in ("prompt", "1", "8", "16"):
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
    names = {"prompt": f"a prompt of {LONG}", "1": "1 at a time", "8": "8 at once", "16": "16 at once"}
    lines = ["| | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, by_work in results.items():
        cells = [
            f"{by_work[work]['ratio']:.2f} ({by_work[work]['low']:.2f} {by_work[work]['high']:.2f})" for work in names
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    first = next(iter(results.values()))
    lines.append("| bare, ms | " + " | ".join(f"{first[work]['bare_ms']:.1f}" for work in names) + " |")
    return "\n".join(lines)


def answer_commands(engine: str, pool: str, compiled: bool) -> None:
    """One engine: reads commands, tells seconds."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from glider.engines.vllm.arguments import engine_arguments, plugin_settings
    from glider.inference.base_model import located
    from glider.inference.spec import ModelSpec, base_of, open_pool

    arguments: dict[str, Any] = {}
    if engine != "bare":
        spec = ModelSpec(pool=pool, router="phatgoose" if engine == "route" else "glider")
        arguments = engine_arguments(plugin_settings(spec, "route" if engine == "route" else "select"))
    llm = LLM(
        located(base_of(open_pool(pool))), dtype="float32", enforce_eager=not compiled, enable_prefix_caching=False,
        max_model_len=1024, max_num_seqs=16, kv_cache_memory_bytes=1 << 29, **arguments,
    )  # fmt: skip
    experts = [] if engine == "bare" else llm.llm_engine.input_processor.glider_front.names
    print("seconds 0", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in tokens_of(told["rows"], told["tokens"])]
        params = [
            SamplingParams(
                temperature=0, max_tokens=told["new"], ignore_eos=True, extra_args=extra(told["kind"], experts, row)
            )
            for row in range(told["rows"])
        ]
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        print(f"seconds {time.perf_counter() - began}", flush=True)


def extra(kind: str, experts: Sequence[str], row: int) -> dict[str, Any] | None:
    """What a request of this kind brings: a term of its own, nothing, or one adapter, another for each request."""
    if not experts:
        return None
    from glider.engines.vllm.requests import Given
    from glider.engines.vllm.rows import Row

    if kind == "routed":
        return {"glider": Given(Row(tuple(0.1 * ((row + i) % 7) for i in range(len(experts)))), None)}
    expert = experts[row % len(experts)] if kind == "one adapter" else None
    return {"glider": Given(None, None, expert=expert)}


def tokens_of(rows: int, length: int) -> list[list[int]]:
    """Prompts that differ from the first token on."""
    return [[(7919 * (row + 1) + 104729 * place) % 40000 + 100 for place in range(length)] for row in range(rows)]


if __name__ == "__main__":
    main()
