"""How long does a large pool take to open and to grow, and how much memory does it hold before its first use?

    python benchmarks/large_pool.py [--experts 1000] [--rank 4] [--layouts 1] [--repeats 3] [--json out.json]
                                    [--tasks TASKS] [--profile]

Makes a pool of experts in the shape of SmolLM2-135M (210 sites) in a temporary directory; the tensors are hard links
to one file, the cards differ. With --layouts K there are K such files, each without another one of the sites. With
--tasks, a folder of JSON Lines, every expert has a profile of inputs that stand together there, and what is calibrated
anew when an expert joins is timed as well. Every repeat is a fresh process, and the best of them counts.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glider.cli.terminal import exit_code
from glider.data.rows import read_rows
from glider.experts.base_identity import BaseIdentity
from glider.experts.card import CARD_FILE, EmbedderIdentity, ExpertCard
from glider.experts.expert import EXPERT_FILES, write_expert
from glider.experts.pool import POOL_FILE, ExpertRecord, FileRecord, Pool, PoolIndex
from glider.experts.profile import HELD_BACK, ROWS, Profile
from glider.experts.prompt_format import PromptFormat
from glider.experts.sites import GLIDER_WEIGHTS_FILE
from glider.files.disk import write_json
from glider.files.opening import sha256
from glider.instructions.inputs import ngrams

LAYERS, WIDTH, KEY_WIDTH, INNER = 30, 576, 192, 1536
EMBEDDER = EmbedderIdentity(embedder="all-MiniLM-L6-v2", dimension=384, probe=(0.0,) * 8)
BASE = BaseIdentity(
    model_id="HuggingFaceTB/SmolLM2-135M-Instruct", config_hash="0" * 16, weight_hashes={"model.norm.weight": "0" * 16}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--layouts", type=int, default=1, help="how many different sets of sites the experts have")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", type=Path, help="rows to make the experts' profiles of")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in the fresh processes
    parser.add_argument("--newcomer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.newcomer, arguments.profile)))
        return
    from rich.console import Console  # what the fresh processes do not need is not in their memory
    from rich.table import Table

    with tempfile.TemporaryDirectory() as directory:
        pool = Path(directory) / "pool"
        began = time.perf_counter()
        make_pool(pool, arguments.experts, arguments.repeats, arguments.rank, arguments.layouts)
        if arguments.tasks:
            add_profiles(pool, arguments.tasks)
        made = time.perf_counter() - began
        runs = [fresh_process(pool, f"new{i}", arguments.profile) for i in range(arguments.repeats)]
    best = {name: min(run[name] for run in runs) for name in runs[0]}
    table = Table(
        "", "best", f"all {len(runs)} runs", box=None, title=f"{arguments.experts} experts, made in {made:.1f} s"
    )
    for name, value in best.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}", "  ".join(f"{run[name]:.3f}" for run in runs))
    Console().print(table)
    if arguments.json:
        settings = {"experts": arguments.experts, "rank": arguments.rank, "layouts": arguments.layouts}
        write_json(arguments.json, {"settings": settings, "best": best, "runs": runs})


def measure(path: Path, newcomer: str, profile: bool) -> dict[str, float]:
    """Seconds and resident megabytes of opening a pool and of adding an expert to it, in this process."""
    profiler = cProfile.Profile()
    before, clock = resident_megabytes(), time.perf_counter()
    if profile:
        profiler.enable()
    pool = Pool.open(path)
    opened, held = time.perf_counter() - clock, resident_megabytes()
    clock = time.perf_counter()
    pool.add(newcomer)
    added = time.perf_counter() - clock
    calibrated = calibration(Pool.open(path)) if (path / "profiles").exists() else {}
    if profile:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(40)  # pyright: ignore
    return {
        "open_seconds": opened,
        "open_growth_megabytes": held - before,
        "open_resident_megabytes": held,
        "add_seconds": added,
        "add_growth_megabytes": resident_megabytes() - held,
        **calibrated,
    }


def calibration(pool: Pool) -> dict[str, float]:
    """Seconds of what joining makes anew, the threshold of `examples` and those of verdicts, reading profiles apart;
    and milliseconds of a query's verdict, its global scores included."""
    from glider.calibration.threshold import calibrate
    from glider.calibration.verdict import choose_thresholds

    clock = [time.perf_counter()]
    chosen: list[Any] = []
    for work in (
        lambda: [expert.profile for expert in pool],
        lambda: calibrate(pool, "examples"),
        lambda: choose_thresholds(pool),
    ):
        chosen.append(work())
        clock.append(time.perf_counter())
    names = ("profiles_seconds", "calibrate_seconds", "verdicts_seconds")
    seconds = {name: after - before for name, before, after in zip(names, clock[:-1], clock[1:], strict=True)}
    _, p, thresholds = chosen
    return seconds | {"verdict_milliseconds": verdict_time(pool.calibrate("examples", p).set_verdicts(thresholds))}


def verdict_time(pool: Pool) -> float:
    """Median milliseconds of a query's condition with its verdict, from the n-grams of its text."""
    from statistics import median

    from glider.inference.queries import Query, QueryReader
    from glider.routing.methods.glider import Glider
    from glider.routing.preparation import prepare

    router = Glider()
    prepared = prepare(router, pool)
    reader = QueryReader(EMBEDDER)
    clock = []
    for i in range(105):
        queries = [Query(f"Which word of these {i} is the opposite of warm, and which one of them rhymes with it?")]
        features, _ = reader.features(queries, {"grams"})
        began = time.perf_counter()
        condition = router.condition(prepared, features)
        if prepared.judge is None:
            raise SystemExit("the pool has no verdicts")
        prepared.judge.judged(condition, features, term=prepared.global_term)
        clock.append(1000 * (time.perf_counter() - began))
    return median(clock[5:])


def add_profiles(path: Path, tasks: Path) -> None:
    """Give every expert, of the pool or beside it, a profile of inputs that stand together in the tasks' files."""
    inputs = [ngrams(row.input) for file in sorted(tasks.glob("*.jsonl.gz")) for row in read_rows(file)[:400]]
    chance = random.Random(0)
    index = PoolIndex.model_validate_json((path / POOL_FILE).read_text("utf8"))
    known = {record.name: record for record in index.experts}
    for home in sorted(place.parent for place in path.glob(f"*/{GLIDER_WEIGHTS_FILE}")):
        start = chance.randrange(len(inputs) - ROWS - HELD_BACK)
        profile = Profile.of(inputs[start : start + ROWS], inputs[start + ROWS : start + ROWS + HELD_BACK])
        file = home / GLIDER_WEIGHTS_FILE
        tensors = load_file(file) | profile.tensors()
        file.unlink()
        save_file(tensors, file)
        if home.name in known:
            files = {**known[home.name].files, GLIDER_WEIGHTS_FILE: record(file)}
            known[home.name] = known[home.name].model_copy(update={"files": files})
    index = index.model_copy(update={"experts": tuple(known[entry.name] for entry in index.experts)})
    write_json(path / POOL_FILE, index.model_dump(mode="json", exclude_none=True))
    (path / "profiles").touch()  # tells the fresh processes


def fresh_process(path: Path, newcomer: str, profile: bool) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path), "--newcomer", newcomer, *["--profile"] * profile]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout)


def resident_megabytes() -> float:
    """Memory of this process that is resident now, mapped files included (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_pool(path: Path, experts: int, newcomers: int, rank: int, layouts: int) -> None:
    """Write a pool of `experts` members, with directories of `newcomers` more beside them."""
    templates = [write_template(path / f"template{i}", rank, i if layouts > 1 else None) for i in range(layouts)]
    known = [{file: record(template / file) for file in EXPERT_FILES} for template in templates]
    records = []
    for i in range(experts):
        home = link_expert(templates[i % layouts], path / f"expert{i:04d}")
        files = {**known[i % layouts], CARD_FILE: record(home / CARD_FILE)}
        records.append(ExpertRecord(name=home.name, directory=None, files=files))
    for i in range(newcomers):
        link_expert(templates[i % layouts], path / f"new{i}")
    index = PoolIndex(base=BASE, embedder=EMBEDDER, experts=tuple(records))
    write_json(path / POOL_FILE, index.model_dump(mode="json", exclude_none=True))


def write_template(directory: Path, rank: int, left_out: int | None) -> Path:
    """A whole expert with random weights in bfloat16, perhaps without one of the sites."""
    from peft import LoraConfig

    chance = torch.Generator().manual_seed(0)
    lora, gates = {}, {}
    for number, (site, width, out) in enumerate(sites()):
        if number != left_out:
            lora[f"base_model.model.{site}.lora_A.weight"] = torch.randn(rank, width, generator=chance)
            lora[f"base_model.model.{site}.lora_B.weight"] = torch.randn(out, rank, generator=chance)
            gates[site] = torch.randn(width, generator=chance)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(gates), base_model_name_or_path=BASE.model_id)
    instruction = torch.randn(384, generator=chance)
    return write_expert(directory, card(directory.name), settings, lora, gates, instruction).directory


def link_expert(template: Path, directory: Path) -> Path:
    """An expert of the template's tensors with a card of its own."""
    directory.mkdir()
    for file in EXPERT_FILES:
        if file != CARD_FILE:
            (directory / file).hardlink_to(template / file)
    (directory / CARD_FILE).write_text(json.dumps(card(directory.name).model_dump(mode="json"), indent=2), "utf8")
    return directory


def card(name: str) -> ExpertCard:
    """A card as training writes it, with a description and a training record."""
    stage = {"step": 100, "validation": [[20 * i, 1.0 / i] for i in range(1, 6)]}
    return ExpertCard(
        name=name,
        task=name,
        description=f"Decide whether the statement about {name} follows from the text before it.",
        licence="Apache-2.0",
        base=BASE,
        prompt=PromptFormat(kind="chat"),
        embedder=EMBEDDER,
        training={"lora": stage, "gates": stage},
        metrics={"accuracy": 0.5},
    )


def sites() -> Iterator[tuple[str, int, int]]:
    """Name, input and output width of every linear layer of SmolLM2-135M."""
    attention = {"q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, KEY_WIDTH), "v_proj": (WIDTH, KEY_WIDTH)}
    inner = {"gate_proj": (WIDTH, INNER), "up_proj": (WIDTH, INNER), "down_proj": (INNER, WIDTH)}
    for layer in range(LAYERS):
        for name, widths in {**attention, "o_proj": (WIDTH, WIDTH)}.items():
            yield f"model.layers.{layer}.self_attn.{name}", *widths
        for name, widths in inner.items():
            yield f"model.layers.{layer}.mlp.{name}", *widths


def record(file: Path) -> FileRecord:
    """A file's entry in `pool.json`."""
    return FileRecord(sha256=sha256(file), size=file.stat().st_size)


if __name__ == "__main__":
    sys.exit(exit_code(main))
