"""What the signal `examples` costs for one query, in processor time, n-grams being made: a large pool of real inputs.

    python benchmarks/examples.py TASKS [--experts 36 1000] [--queries 200]

TASKS is a folder of JSON Lines, one file a task. An expert knows 64 inputs that stand together, drawn with replacement.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import quantiles

import torch

from glider.cli.terminal import exit_code
from glider.data.rows import read_rows
from glider.experts.profile import ROWS
from glider.instructions.inputs import ngrams
from glider.routing.base import QueryFeatures
from glider.routing.signals.examples import Likelihoods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--experts", type=int, nargs="+", default=[36, 1000])
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(arguments.tasks.glob("*.jsonl.gz"))
    texts = [ngrams(row.input) for file in files for row in read_rows(file)[:400]]
    chance = random.Random(0)
    for experts in arguments.experts:
        starts = [chance.randrange(len(texts) - ROWS) for _ in range(experts)]
        pool = Likelihoods.of_counts([torch.cat(texts[i : i + ROWS]).unique(return_counts=True) for i in starts])
        pool.of(QueryFeatures(1, grams=((texts[0],),)))
        clock = []
        for text in chance.sample(texts, arguments.queries):
            start = time.process_time()
            pool.of(QueryFeatures(1, grams=((text,),)))
            clock.append(1000 * (time.process_time() - start))
        low, middle, high = quantiles(clock, n=4)
        print(f"{experts} experts: {middle:.2f} [{low:.2f}, {high:.2f}] ms, 95 %: {quantiles(clock, n=20)[-1]:.2f}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
