"""What an unsure query gets, and how many have which verdict: the base below a margin t, else another router.

    glider evaluate WORK/validation-verdicts.yaml --out RESULTS
    python reproduce/mini/mixing.py WORK/pool RESULTS --tasks TASKS [--other loraretriever]

RESULTS holds a directory of `base` and one of the other router, with the same evaluated rows.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch

from glider.cli.terminal import exit_code
from glider.experts.pool import Pool
from glider.instructions.inputs import ngrams
from glider.routing.base import QueryFeatures
from glider.routing.signals.examples import Examples
from glider.shapes import Tensor
from glider.verdicts.background import shipped
from glider.verdicts.contest import Contest

THRESHOLDS = (0.0, 0.4, 0.45, 0.5, 0.6, 0.8, 99.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--other", default="loraretriever")
    arguments = parser.parse_args()
    pool = Pool.open(arguments.pool)
    contest, signal = Contest.of([expert.profile for expert in pool], shipped()), Examples().prepare(pool)
    thresholds, p = pool.index.verdicts, pool.index.calibrations["examples"].p
    assert thresholds is not None
    for folder in sorted((arguments.results / "base").iterdir()):
        tasks, verdicts = [], {"stranger": 0, "fits": 0, "unsure": 0}
        for file in sorted(folder.glob("*.json")):
            cells = [
                json.loads((arguments.results / name / folder.name / file.name).read_text("utf8"))
                for name in ("base", arguments.other)
            ]
            words = features(cells[0], arguments.tasks)
            margin, lead = contest.margins(words).amax(dim=-1), signal.of(words).amax(dim=-1)
            base, other = (torch.tensor([row["score"] for row in cell["results"]]) for cell in cells)
            tasks.append((base, other, margin))
            stranger = margin < thresholds.stranger
            verdicts["stranger"] += int(stranger.sum())
            verdicts["fits"] += int((~stranger & (lead > p)).sum())
            verdicts["unsure"] += int((~stranger & (lead <= p)).sum())
        count = sum(verdicts.values())
        print(f"{folder.name}: " + ", ".join(f"{name} {part / count:.1%}" for name, part in verdicts.items()))
        for t in THRESHOLDS:
            print(f"  base below {t:g}: {100 * mixed(tasks, t):.1f}")


def mixed(tasks: list[tuple[Tensor, Tensor, Tensor]], t: float) -> float:
    """Mean of task means, each row by the base where its margin is below t."""
    means = [torch.where(margin < t, base, other).mean() for base, other, margin in tasks]
    return float(torch.stack(means).mean())


def features(cell: dict, tasks: Path) -> QueryFeatures:
    """The words of a cell's rows."""
    (file,) = tasks.glob(f"*/{cell['task']}.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf8") as lines:
        inputs = {row["id"]: row["input"] for row in map(json.loads, lines)}
    append = cell["config"]["task"]["append"]
    texts = [inputs[row["id"]] + append for row in cell["results"]]
    return QueryFeatures(len(texts), grams=tuple((ngrams(text),) for text in texts))


if __name__ == "__main__":
    sys.exit(exit_code(main))
