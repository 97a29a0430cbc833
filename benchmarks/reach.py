"""How many experts can be among a token's k largest, once the global term of its query is known?

    python benchmarks/reach.py instructions.json [--tasks TASKS] [--alpha 3 103] [--kept 2]

A local score lies within sqrt(D) of zero. "before" counts the experts that this bound alone leaves: term + sqrt(D) at
least the k-th term - sqrt(D). "after" counts what is left once the experts with the largest terms are scored, as the
native kernel does, their local scores taken for zero. Global scores are cosines of task descriptions
(all-MiniLM-L6-v2): every text of the file is an expert, `flan_query` the queries. With --tasks (folders of JSON Lines)
also the signals `examples` and `ensemble`, an expert of 64 inputs for each task. Then the local scores of the embedded
pool on the demo's prompts, by kind of site: their deviation among experts, and how near the largest comes to the bound.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from math import sqrt
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

import glider
from glider.cli.terminal import exit_code
from glider.config import EMBEDDED_BASE
from glider.data.rows import read_rows
from glider.demo.pool import DEMO_POOL
from glider.demo.prompts import PROMPTS
from glider.experts.profile import ROWS, Profile
from glider.instructions.embedders import load_embedder
from glider.instructions.inputs import edges, ngrams
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import QueryFeatures
from glider.routing.scores import local_scores
from glider.routing.signals.ensemble import Mixture
from glider.routing.signals.examples import Likelihoods

WIDTHS = (576, 1536)
EMBEDDED = 8  # of an expert's inputs: the embedder is slow, and the mean of a few is near that of all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions", type=Path)
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--alpha", type=float, nargs="+", default=[3.0, 103.0])
    parser.add_argument("--kept", type=int, default=2)
    arguments = parser.parse_args()
    signals = {"instruction": embedded_descriptions(arguments.instructions)}
    if arguments.tasks:
        signals |= profiled(arguments.tasks)
    table = Table(*("signal", "experts", "best", "k-th", "alpha", "width", "before", "after", "after, 90 %"), box=None)
    for name, scores in signals.items():
        best = scores.topk(arguments.kept).values  # (B, K)
        for alpha in arguments.alpha:
            for width in WIDTHS:
                before, after = (in_reach(alpha * scores, n * sqrt(width), arguments.kept) for n in (2, 1))
                table.add_row(
                    *(name, str(scores.shape[1]), f"{best[:, 0].median():.2f}", f"{best[:, -1].median():.2f}"),
                    *(f"{alpha:g}", str(width), f"{before.mean():.2f}", f"{after.mean():.2f}"),
                    f"{after.quantile(0.9):.2f}",
                )
    Console(highlight=False).print(table)
    Console(highlight=False).print(pool_table())


def in_reach(term: torch.Tensor, slack: float, kept: int) -> torch.Tensor:
    """Share of the experts (B, E) -> (B,) whose term is at most `slack` below the k-th."""
    return (term >= term.topk(kept).values[:, -1:] - slack).float().mean(dim=1)


def embedded_descriptions(file: Path) -> torch.Tensor:
    """Cosines (B, E) of queries' descriptions with all others."""
    tasks = json.loads(file.read_text("utf8")).values()
    queries = [task["flan_query"] for task in tasks if isinstance(task.get("flan_query"), str)]
    texts = {
        text for task in tasks for value in task.values() for text in ([value] if isinstance(value, str) else value)
    }
    known = sorted(texts)
    embedder = load_embedder()
    cosines = embedder.embed(queries) @ embedder.embed(known).T
    itself = torch.tensor([[one == other for other in known] for one in queries])
    return cosines.masked_fill(itself, -1.0)  # a query is not its own expert


def profiled(root: Path) -> dict[str, torch.Tensor]:
    """Scores (B, E) of two queries of each task by the signals that read training inputs."""
    chance, embedder = random.Random(0), load_embedder()
    profiles, means, asked = [], [], []
    for file in sorted(root.glob("*/*.jsonl.gz")):
        inputs = [row.input for row in read_rows(file)]
        chance.shuffle(inputs)
        asked += inputs[:2]
        known = inputs[2 : 2 + ROWS]
        vectors = embedder.embed([edges(text) for text in known[:EMBEDDED]])
        profiles.append(Profile.of([ngrams(text) for text in known], [], vectors, None, None, None))
        means.append(vectors.mean(dim=0))
    words = Likelihoods.of_profiles(profiles)
    mixture = Mixture(words, torch.nn.functional.normalize(torch.stack(means), dim=-1))
    embedded = embedder.embed([edges(text) for text in asked])
    query = QueryFeatures(len(asked), inputs=embedded, grams=tuple((ngrams(text),) for text in asked))
    return {"examples": words.of(query), "ensemble": mixture.of(query)}


def pool_table() -> Table:
    """Local scores of the embedded pool, in units of the bound where it says so."""
    model = glider.load(EMBEDDED_BASE, DEMO_POOL, router="glider")
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)

    def look(module: RoutedLinear, inputs: tuple[torch.Tensor]) -> None:
        tokens = inputs[0].reshape(-1, module.in_features)
        site = module.current.site
        scores = local_scores(tokens, site, "width")[:, ~site.absent]  # (T, E)
        largest = scores.abs().amax(dim=1) / sqrt(module.in_features)
        spread = scores.std(dim=1).mean().item()
        found[module.name.rsplit(".", 1)[-1]].append((spread, largest.mean().item(), largest.max().item()))

    for module in model.model.modules():
        if isinstance(module, RoutedLinear):
            module.register_forward_pre_hook(look)
    for prompt in PROMPTS:
        model.trace(prompt.text)
    table = Table("site", "deviation", "largest / sqrt(D), mean", "most", box=None)
    for name, rows in found.items():
        spreads, means, most = zip(*rows, strict=True)
        table.add_row(name, f"{mean(spreads):.1f}", f"{mean(means):.2f}", f"{max(most):.2f}")
    return table


if __name__ == "__main__":
    sys.exit(exit_code(main))
