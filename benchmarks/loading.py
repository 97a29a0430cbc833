"""How long does a pool take to load, how much memory does it hold, and what does limited expert memory cost?

    python benchmarks/loading.py [--cases 36 166 166:400MB 1000:2GB] [--pairs 3] [--steps 30] [--json out.json]

A case is a number of experts, and after a colon their memory (as `--expert-memory`). The experts have rank 16 on all
linear layers of SmolLM2-135M and lie in files of their own, each with other values, in bfloat16. Every case is a fresh
process: seconds to open, prepare, verify and attach the pool (the base model apart), resident memory beyond the base's
after loading and at its highest, then what `overhead.py` measures: ratios of interleaved pairs to the bare model, of a
prefill of 512 random tokens and of decoding steps with a random token each. Random tokens ask for random experts, which
is the worst case for limited memory.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file, save_file

from glider.cli.terminal import exit_code
from glider.experts.card import CARD_FILE, EmbedderIdentity, ExpertCard
from glider.experts.expert import EXPERT_FILES, write_expert
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from glider.experts.pool import POOL_FILE, ExpertRecord, Pool, PoolIndex
from glider.experts.prompt_format import PromptFormat
from glider.experts.sites import GLIDER_WEIGHTS_FILE
from glider.files.disk import write_json
from glider.inference.base_model import load_base
from glider.inference.spec import memory_limit
from glider.layers.attach import Storage, attach
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from large_pool import record, resident_megabytes
from overhead import clocked
from steps import filler, random_ids, stepper

RANK = 16
EMBEDDER = EmbedderIdentity(embedder="all-MiniLM-L6-v2", dimension=384, probe=(0.0,) * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["36", "166", "166:400MB", "1000:2GB"])
    parser.add_argument("--pairs", type=int, default=3, help="of prefill")
    parser.add_argument("--steps", type=int, default=30, help="pairs of decoding steps")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, help="where to make the experts (10 MB each); default: the system's")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in the fresh processes
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    most = max(int(case.partition(":")[0]) for case in arguments.cases)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "pool"
        make_pool(path, most, arguments.base)
        rows = []
        for case in arguments.cases:
            shorten(path, int(case.partition(":")[0]))
            rows.append({"case": case, **fresh_process(path, case, arguments)})
            Console(stderr=True, highlight=False).print(str(rows[-1]))
    table = Table(*(name.replace("_", " ") for name in rows[0]), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
    Console(highlight=False, width=200).print(table)
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(arguments.json, {"settings": settings, "machine": machine, "rows": rows})


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, megabytes and ratios of one case, in this process."""
    limit = memory_limit(arguments.case.partition(":")[2] or None)
    base, router = load_base(arguments.base), Glider(p=0.8)
    bare = copy.deepcopy(base.model, {id(t): t for t in (*base.model.parameters(), *base.model.buffers())})
    ids, step = random_ids(bare, 1, 512, seed=2), random_ids(bare, 1, 1, seed=2)
    chance = torch.Generator().manual_seed(1)
    for run in (filler(bare, ids, lambda rows: torch.no_grad()), stepper(bare, step, lambda rows: torch.no_grad())):
        run()
    before, began, found = resident_megabytes(), time.perf_counter(), {}

    def lap(name: str) -> None:
        found[f"{name}_s"] = time.perf_counter() - began - sum(found.values())

    pool = Pool.open(path)
    lap("open")
    prepared = router.prepare(pool)
    lap("prepare")
    pool.verify(adapters=limit is None)
    lap("verify")
    attached = attach(base.model, pool, router, Storage(expert_memory=limit), prepared)
    lap("attach")
    found["load_s"] = sum(found.values())
    found["resident_mb"] = resident_megabytes() - before
    scores = torch.rand(1, len(pool), generator=chance)

    def routing(rows: int) -> Any:
        return attached.routing(Condition.of(scores[:rows], torch.full((rows,), 3.0)))

    found["first_prefill_s"] = clocked(filler(base.model, ids, routing), cpu=False) if limit else 0.0
    runs = [filler(model, ids, routing) for model in (bare, base.model)]
    ratios = [pair(runs) for _ in range(arguments.pairs)]
    found["prefill_ratio"] = statistics.median(ratios)
    runs = [stepper(model, step, routing) for model in (bare, base.model)]
    for number in range(arguments.steps):
        step.copy_(random_ids(bare, 1, 1, seed=100 + number))  # another token, other experts
        ratios.append(pair(runs))
    found["decode_ratio"] = statistics.median(ratios[arguments.pairs :])
    found["used_mb"] = resident_megabytes() - before
    found["peak_mb"] = peak_megabytes() - before
    return found


def pair(runs: list[Callable[[], Any]]) -> float:
    """Routed over bare, once each."""
    bare, own = (clocked(run, cpu=False) for run in runs)
    return own / bare


def peak_megabytes() -> float:
    """The most memory of this process that was ever resident (Linux)."""
    lines = Path("/proc/self/status").read_text("utf8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def fresh_process(path: Path, case: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    told = {"--measure": path, "--case": case, "--base": arguments.base}
    told |= {"--pairs": arguments.pairs, "--steps": arguments.steps}
    command = [sys.executable, __file__, *(str(part) for item in told.items() for part in item)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def make_pool(path: Path, experts: int, base_name: str) -> None:
    """Experts e0000, ...: the values of the first, each tensor turned round by another number of places."""
    base = load_base(base_name)
    linears = {n: m for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    first = write_first(path / "e0000", base, linears)
    adapter, gates = (load_file(first / file) for file in (ADAPTER_WEIGHTS_FILE, GLIDER_WEIGHTS_FILE))
    records = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for number in bar.track(range(experts), description="experts"):
            home = path / f"e{number:04d}"
            home.mkdir(exist_ok=True)
            for tensors, file in ((adapter, ADAPTER_WEIGHTS_FILE), (gates, GLIDER_WEIGHTS_FILE)):
                save_file({name: value.roll(7919 * number) for name, value in tensors.items()}, home / file)
            for file in (ADAPTER_CONFIG_FILE, CARD_FILE):
                content = (first / file).read_text("utf8")
                (home / file).write_text(content.replace('"e0000"', f'"{home.name}"'), "utf8")
            files = {file: record(home / file) for file in EXPERT_FILES}
            records.append(ExpertRecord(name=home.name, directory=None, files=files))
    index = PoolIndex(base=base.identity, embedder=EMBEDDER, experts=tuple(records))
    write_json(path / "all.json", index.model_dump(mode="json", exclude_none=True))


def write_first(directory: Path, base: Any, linears: dict[str, torch.nn.Linear]) -> Path:
    """A whole expert with small random values, all in bfloat16."""
    from peft import LoraConfig

    chance = torch.Generator().manual_seed(0)
    lora, gates = {}, {}
    for site, module in linears.items():
        a, b = (RANK, module.in_features), (module.out_features, RANK)
        lora[f"base_model.model.{site}.lora_A.weight"] = 0.05 * torch.randn(*a, generator=chance)
        lora[f"base_model.model.{site}.lora_B.weight"] = 0.05 * torch.randn(*b, generator=chance)
        gates[site] = 0.05 * torch.randn(module.in_features, generator=chance)
    settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(gates), base_model_name_or_path="base")
    card = ExpertCard(
        name="e0000",
        task="e0000",
        base=base.identity,
        prompt=PromptFormat.of(base.model, base.tokenizer),
        embedder=EMBEDDER,
    )
    return write_expert(directory, card, settings, lora, gates, torch.randn(384, generator=chance)).directory


def shorten(path: Path, experts: int) -> None:
    """Leave so many experts in the pool's index."""
    index = json.loads((path / "all.json").read_text("utf8"))
    write_json(path / POOL_FILE, {**index, "experts": index["experts"][:experts]})


if __name__ == "__main__":
    sys.exit(exit_code(main))
