"""How well a query's words tell whether a pool knows its task: areas under ROC curves, for the lead and for the margin.

    python reproduce/mini/strangers.py WORK/pool --tasks TASKS --everyday everyday.jsonl

Rows are validation rows of T0's tasks (40 of each), BIG-bench's own (15) and everyday prompts. The lead is the signal
`examples`; the margin is that of the contest, with backgrounds of so many everyday requests.
"""

import argparse
import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from glider.calibration.threshold import best_threshold
from glider.cli.terminal import exit_code
from glider.experts.pool import Pool
from glider.instructions.inputs import ngrams
from glider.routing.base import QueryFeatures
from glider.routing.signals.examples import Examples
from glider.shapes import Tensor
from glider.verdicts.background import Background, shipped
from glider.verdicts.contest import Contest

sys.path.insert(0, str(Path(__file__).parents[1] / "background"))
from everyday_requests import everyday_requests

PAIRS = (("held-in", "everyday"), ("near", "everyday"), ("near", "bbh"), ("near", "held-out"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--everyday", type=Path, required=True)
    arguments = parser.parse_args()
    pool = Pool.open(arguments.pool)
    queries = {name: features(texts) for name, texts in rows(pool, arguments.tasks, arguments.everyday).items()}
    signal = Examples().prepare(pool)
    show("lead over the other experts", {name: signal.of(one).amax(dim=-1) for name, one in queries.items()})
    english, foreign = everyday_requests()
    every = [text for texts in (*english.values(), foreign) for text in texts]
    random.Random(0).shuffle(every)
    for count in (64, 256, 1024):
        show(f"margin over {count}", margins(pool, Background.of([every[:count]], judged=0), queries))
    show("margin over the background that is shipped", margins(pool, shipped(), queries))


def rows(pool: Pool, tasks: Path, everyday: Path) -> dict[str, list[str]]:
    """Texts by kind."""
    kinds: dict[str, list[str]] = {"held-in": [], "near": [], "held-out": [], "bbh": []}
    for folder, split, count in (("t0_heldin", "val", 40), ("t0_heldout", "val", 40), ("bbh", "test", 15)):
        for file in sorted((tasks / folder).glob("*.jsonl.gz")):
            with gzip.open(file, "rt", encoding="utf8") as lines:
                texts = [row["input"] for row in map(json.loads, lines) if row["split"] == split]
            own = file.name.removesuffix(".jsonl.gz") in pool.names
            kind = {"t0_heldin": "held-in" if own else "near", "t0_heldout": "held-out", "bbh": "bbh"}[folder]
            kinds[kind] += random.Random(0).sample(texts, min(count, len(texts)))
    kinds["everyday"] = [json.loads(line)["input"] for line in everyday.read_text("utf8").splitlines()]
    return kinds


def features(texts: Sequence[str]) -> QueryFeatures:
    """What is read of queries."""
    return QueryFeatures(len(texts), grams=tuple((ngrams(text),) for text in texts))


def margins(pool: Pool, background: Background, queries: dict[str, QueryFeatures]) -> dict[str, Tensor]:
    """The best expert's margin of every query."""
    contest = Contest.of([expert.profile for expert in pool], background)
    return {name: contest.margins(one).amax(dim=-1) for name, one in queries.items()}


def show(name: str, values: dict[str, Tensor]) -> None:
    """One line: areas, and the quantiles that thresholds lie between."""
    areas = "  ".join(f"{one}/{other} {best_threshold(values[one], values[other])[2]:.3f}" for one, other in PAIRS)
    low, high = torch.quantile(values["held-in"], 0.02), torch.quantile(values["everyday"], 0.97)
    print(f"{name:>44}  {areas}  held-in 2 % {low:.2f}, everyday 97 % {high:.2f}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
