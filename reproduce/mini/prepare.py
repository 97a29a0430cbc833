"""Lay out the miniature: one pool of its twenty experts, GPT-4's descriptions, and the run files beside them.

    python reproduce/mini/prepare.py WORK --tasks TASKS --descriptions instructions.json
    python reproduce/mini/prepare.py WORK --tasks TASKS --mixture       # the multitask LoRA's rows alone

TASKS holds t0_heldin, t0_heldout, bbh and bbl. In WORK appear `pool` (the experts of the repository, described by
GPT-4's sentences where the file has one, calibrated for each signal), `pool-8` and `pool-14` (the first of them),
`queries.json` (GPT-4's sentences for the tasks), `sets` and `tasks` (links) and the run files:

    glider evaluate WORK/table1.yaml --out RESULTS

The multitask LoRA is not in the repository; WORK/multitask.sh trains it (some 20 minutes) on `mixture.jsonl`, as many
training rows of each task, shuffled, for the run that has it.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.functional import normalize

from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.cli.terminal import exit_code
from glider.contribute.adopt import add_description
from glider.demo.pool import DEMO_POOL
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.files.disk import copy_file, copy_tree, new_directory, write_file, write_json
from glider.files.replacing import work_beside
from glider.instructions.embedders import load_for

HERE = Path(__file__).parent
SIGNALS = ("ensemble", "instruction", "examples")  # the last is the pool's
KEYS = {
    "yelp_review_full": "p3yelp",
    "hellaswag": "p3hswag",
    "wsc": "p3wscfixed",
    "formal_fallacies_syllogisms_negation": "bbformalfallacies",
}
GROWING = (8, 14)  # experts of the smaller pools
MIXED = 100  # rows of each task


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--descriptions", type=Path)
    parser.add_argument("--mixture", action="store_true")
    arguments = parser.parse_args()
    return exit_code(lambda: lay_out(arguments))


def lay_out(arguments: argparse.Namespace) -> None:
    """What the arguments ask for, each file and each pool whole or as it was before."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.mixture:
        mix(arguments.tasks / "t0_heldin", arguments.work / "mixture.jsonl")
        return
    told = {} if arguments.descriptions is None else json.loads(arguments.descriptions.read_text("utf8"))
    pool, described = make_pool(arguments.work / "pool", homes(), told), queries(arguments.tasks, told)
    for count in GROWING:
        make_pool(arguments.work / f"pool-{count}", homes()[:count], told)
    write_json(arguments.work / "queries.json", described)
    p, accuracy = described_threshold(pool, described)
    print(f"p of the descriptions: {p:.2f}, balanced accuracy {accuracy:.3f} (in and out of the pool, its own tasks)")
    link(arguments.work / "tasks", arguments.tasks)
    for file in (arguments.tasks / "t0_heldin").glob("*.jsonl.gz"):
        own = file.name.removesuffix(".jsonl.gz") in pool.names
        link(arguments.work / "sets" / ("held-in" if own else "near") / file.name, file)
    for file in (*HERE.glob("*.yaml"), HERE / "multitask.sh"):
        if file.name != "pool.yaml":
            write_file(arguments.work / file.name, partial(copy_file, file))


def link(place: Path, target: Path) -> None:
    """A link at `place`, whatever was there before."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with work_beside(place) as work:
        (work / place.name).symlink_to(target.resolve())
        (work / place.name).replace(place)


def homes() -> list[Path]:
    """The directories of the twenty experts."""
    kept = sorted(path.parent for path in (HERE / "experts").glob("*/card.json"))
    return [expert.directory for expert in Pool.open(DEMO_POOL)] + kept


def make_pool(path: Path, homes: Sequence[Path], told: dict[str, Any]) -> Pool:
    """A calibrated pool of copies of experts."""
    with new_directory(path) as place:
        pool = None
        for home in track(homes, path.name):
            (place / home.name).mkdir()
            copy_tree(home, place / home.name)
            if sentence := told.get(key("p3", home.name), {}).get("expert"):
                expert = Expert.open(place / home.name)
                assert expert.card.embedder is not None
                add_description(expert.directory, sentence, expert.card.embedder.embedder, expert.card.embedder.prefix)
            pool = pool or Pool.create(place, Expert.open(place / home.name).card.base)
            pool = pool.add(home.name)
        assert pool is not None
        for signal in SIGNALS:
            pool = pool.calibrate(signal, calibrate(pool, signal))
        pool.set_verdicts(choose_thresholds(pool))
    return Pool.open(path)


def described_threshold(pool: Pool, described: dict[str, str]) -> tuple[float, float]:
    """p for GPT-4's descriptions: what best tells each task's sentence with its expert in the pool from without it."""
    identity = pool.index.embedder
    instructions = [expert.instruction for expert in pool if expert.instruction is not None]
    assert identity is not None and len(instructions) == len(pool)
    queries = load_for(identity).embed([described[name] for name in pool.names])
    scores = normalize(queries, dim=-1) @ normalize(torch.stack(instructions), dim=-1).T  # (E, E)
    inside, outside = scores.amax(dim=1), scores.fill_diagonal_(-1).amax(dim=1)
    places = torch.cat([inside, outside]).sort().values
    middles = (places[1:] + places[:-1]) / 2
    accuracies = [float(((inside > p).float().mean() + (outside <= p).float().mean()) / 2) for p in middles]
    best = max(range(len(middles)), key=accuracies.__getitem__)
    return float(middles[best]), accuracies[best]


def queries(tasks: Path, told: dict[str, Any]) -> dict[str, str]:
    """GPT-4's sentence for the queries of each task that it was asked about."""
    found = {}
    for folder, prefix in (("t0_heldin", "p3"), ("t0_heldout", "p3"), ("bbh", "bb"), ("bbl", "bb")):
        for file in sorted((tasks / folder).glob("*.jsonl.gz")):
            name = file.name.removesuffix(".jsonl.gz")
            entry = told.get(key(prefix, name), {})
            written = (entry.get("query"), entry.get("flan_query"), *entry.get("bigbench_queries", ()))
            if sentence := next(filter(None, written), None):
                found[name] = sentence
    return found


def key(prefix: str, task: str) -> str:
    """The name of a task in the file of descriptions, which knows the sizes of a BIG-bench Hard task as one."""
    whole = re.sub("_(three|five|seven)_objects$", "", task)
    return KEYS.get(task, prefix + whole.replace("_", ""))


def mix(tasks: Path, out: Path) -> None:
    """The same number of training rows of each expert's task, and a tenth as many held back, shuffled by a seed."""
    chance, kept = random.Random(0), []
    for home in homes():
        with gzip.open(tasks / f"{home.name}.jsonl.gz", "rt", encoding="utf8") as file:
            rows = [json.loads(line) for line in file]
        for split, count in (("train", MIXED), ("val", MIXED // 10)):
            own = [row for row in rows if row["split"] == split]
            kept += chance.sample(own, min(count, len(own)))
    chance.shuffle(kept)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    write_file(out, lambda place: place.write_text(text, "utf8"))


if __name__ == "__main__":
    raise SystemExit(main())
