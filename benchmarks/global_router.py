"""How well the global signals find a query's expert, and tell queries that have none: held-in tasks against the rest.

    python benchmarks/global_router.py TASKS --instructions instructions.json --json FILE

TASKS holds t0_heldin, t0_heldout, bbh and bbl (JSON Lines, rows with input, template, split). An expert knows 64
training rows of two thirds of its task's templates; queries are test rows, of those templates (seen) and of the others
(held out). Methods were chosen on every other task (`choose`); the rest judges (`judge`). commonsense_qa and cos_e draw
on one pool of questions: taking one for the other counts as right, and is counted beside. `--signals` measures some
only; `ariadne-4` is `ariadne` with four centroids an expert, `ensemble-4` is `ensemble` with four in place of the mean
input.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from glider.calibration.threshold import best_threshold
from glider.cli.terminal import exit_code
from glider.config import EMBEDDED_BASE
from glider.contribute.router_statistics import k_means
from glider.data.rows import Row, read_rows
from glider.experts.profile import HELD_BACK, ROWS, Profile
from glider.inference.base_model import BaseModel, load_base
from glider.inference.descriptions import embed_texts
from glider.inference.prompt_states import prompt_states
from glider.instructions.cache import cache
from glider.instructions.embedders import load_embedder
from glider.instructions.inputs import edges, ngrams
from glider.routing.base import GlobalScores, QueryFeatures
from glider.routing.signals.ariadne import Centroids
from glider.routing.signals.ensemble import MEANING, Mixture
from glider.routing.signals.examples import Likelihoods
from glider.routing.signals.hidden import States
from glider.routing.signals.instruction import Cosines

TWINS = frozenset({"commonsense_qa", "cos_e"})
SIGNALS = ("mean embedding", "examples", "ensemble", "hidden")
KEYS = {"yelp_review_full": "p3yelp"}  # where a task has another name in the file of descriptions
SIDES = ("choose", "judge", "all")
FREE_FORM = ("query", "prompt_authors", "flan_query", "flan_expert")


@dataclass(frozen=True)
class Queries:
    """Rows of one kind, with the column of each one's expert (-1: it has none)."""

    texts: list[str]
    tasks: list[str]
    columns: torch.Tensor

    def of(self, tasks: set[str]) -> torch.Tensor:
        """Positions of the rows whose task is one of these."""
        return torch.tensor([i for i, task in enumerate(self.tasks) if task in tasks], dtype=torch.long)


@dataclass(frozen=True)
class Corpus:
    """Experts' profiles and descriptions by task, and queries by kind: seen, held_out (templates), t0, bigbench."""

    names: list[str]
    profiles: list[Profile]
    inputs: list[torch.Tensor]  # of each expert (N, G): its training inputs, embedded one by one
    definitions: torch.Tensor  # (E, G): the corpus' own sentence on each task, embedded
    states: dict[str, torch.Tensor]  # early hidden state of the base model on each text
    queries: dict[str, Queries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--instructions", type=Path, help="descriptions by task: the free-form queries")
    parser.add_argument("--rows", type=int, default=16, help="queries of each task and kind (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", default=",".join(SIGNALS), help="by comma; ariadne-N and ensemble-N beside these")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    with console.status("Embedding texts (remembered for the next time)"):
        names = arguments.signals.split(",")
        corpus = read_corpus(arguments.tasks, arguments.rows, arguments.seed, "hidden" in names)
        signals = make_signals(corpus, names, arguments.seed)
        results = [measure(name, scores, corpus, arguments.seed) for name, scores in signals.items()]
        free = free_form(arguments.instructions, corpus, signals) if arguments.instructions else []
        clock = {name: seconds_a_query(scores, corpus) for name, scores in signals.items()}
    show(console, results, free, clock)
    if arguments.json:
        told = {"settings": vars(arguments) | {"json": None}, "signals": results, "free_form": free, "ms": clock}
        arguments.json.write_text(json.dumps(told, indent=2, default=str))


def read_corpus(root: Path, rows: int, seed: int, hidden: bool = True) -> Corpus:
    """Draw everything by seed; hidden states of the base only where they are asked for."""
    chance = random.Random(seed)
    names, profiles, embedded, definitions = [], [], [], []
    base, states = load_base(EMBEDDED_BASE) if hidden else None, {}
    kinds: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for column, file in enumerate(sorted((root / "t0_heldin").glob("*.jsonl.gz"))):
        name, all_rows = file.name.removesuffix(".jsonl.gz"), read_rows(file)
        templates = sorted({row.template or "" for row in all_rows})
        held_out = set(chance.sample(templates, max(1, len(templates) // 3))) if len(templates) > 1 else set()
        training = [row for row in all_rows if row.split == "train" and row.template not in held_out]
        inputs = [row.input for row in chance.sample(training, min(ROWS, len(training)))]
        names.append(name)
        definitions.append(next(row.definition for row in all_rows if row.definition))
        kept = [row.input for row in chance.sample(training, min(ROWS + HELD_BACK, len(training)))[ROWS:]]
        states |= read_states(base, [*inputs, *kept])
        read = [torch.stack([states[t] for t in texts]) if texts and hidden else None for texts in (inputs, kept)]
        embedded.append(vectors(inputs))
        profiles.append(Profile.of(list(map(ngrams, inputs)), list(map(ngrams, kept)), embedded[-1], None, *read))
        test = [row for row in all_rows if row.split == "test"]
        for kind, chosen in (("seen", False), ("held_out", True)):
            part = [row for row in test if (row.template in held_out) is chosen]
            kinds[kind] += [(row.input, name, column) for row in chance.sample(part, min(rows, len(part)))]
    for kind, folders in (("t0", ["t0_heldout"]), ("bigbench", ["bbh", "bbl"])):
        for file in (file for folder in folders for file in sorted((root / folder).glob("*.jsonl.gz"))):
            part: Sequence[Row] = [row for row in read_rows(file) if row.split == "test"]
            evaluated_rows = chance.sample(part, min(rows, len(part)))
            kinds[kind] += [(row.input, file.name.removesuffix(".jsonl.gz"), -1) for row in evaluated_rows]
    queries = {
        kind: Queries([text for text, _, _ in part], [task for _, task, _ in part], torch.tensor([c for *_, c in part]))
        for kind, part in kinds.items()
    }
    for kind in queries.values():
        states |= read_states(base, kind.texts)
    return Corpus(names, profiles, embedded, vectors(definitions), states, queries)


def read_states(base: BaseModel | None, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The state of each text; none without a base."""
    if base is None:
        return {}
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, prompt_states(base, list(map(edges, distinct))), strict=True)) if distinct else {}


def vectors(texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of the ends of texts, by the embedded embedder, remembered."""
    short = list(map(edges, texts))
    found, fault = embed_texts(list(dict.fromkeys(short)), load_embedder().identity, cache())
    if fault is not None:
        raise fault
    return torch.stack([found[text] for text in short])


def make_signals(corpus: Corpus, names: Sequence[str], seed: int) -> dict[str, GlobalScores]:
    """The signals of the library that are asked for, and beside them the mean embedding alone."""
    means = torch.stack([profile.inputs for profile in corpus.profiles if profile.inputs is not None])
    words = Likelihoods.of_profiles(corpus.profiles)
    made: dict[str, GlobalScores] = {}
    for name in names:
        kind, _, count = name.partition("-")
        if kind == "hidden":
            made[name] = States.of_profiles(corpus.profiles)
        elif kind == "mean embedding":
            made[name] = Cosines(means)
        elif kind == "ariadne":
            made[name] = centroids_of(corpus, int(count), seed)
        elif count:
            made[name] = ManyMeans(Mixture(words, means, corpus.definitions), centroids_of(corpus, int(count), seed))
        else:
            made[name] = words if kind == "examples" else Mixture(words, means, corpus.definitions)
    return made


def centroids_of(corpus: Corpus, count: int, seed: int) -> Centroids:
    """ARIADNE's centroids, found as `glider pool train-router` does."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.stack([k_means(inputs, count, draw) for inputs in corpus.inputs])
    return Centroids(torch.nn.functional.normalize(rows, dim=-1))


@dataclass(frozen=True)
class ManyMeans:
    """`ensemble` with the lead of the nearest centroid in place of the mean input's."""

    whole: Mixture
    centroids: Centroids
    needs: frozenset[Any] = frozenset({"grams", "inputs", "instructions"})

    def of(self, features: QueryFeatures, without: int | None = None) -> torch.Tensor:
        words = self.whole.words.of(features, without)
        single = Mixture(self.whole.words, self.whole.inputs).of(features, without) * (1 + MEANING) - words
        weight = 1 + 2 * MEANING
        return self.whole.of(features, without) + (MEANING * self.centroids.of(features, without) - single) / weight


def score(scores: GlobalScores, texts: Sequence[str], corpus: Corpus) -> torch.Tensor:
    """Global scores (B, E) of texts."""
    embedded = vectors(texts) if scores.needs & {"instructions", "inputs"} else None
    states = torch.stack([corpus.states[text] for text in texts]) if "hidden" in scores.needs else None
    return scores.of(QueryFeatures(len(texts), embedded, tuple((ngrams(text),) for text in texts), embedded, states))


def measure(name: str, scores: GlobalScores, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Top-1 and top-2 of single queries and of three examples, and the AUC of the best score, on both sets of tasks."""
    found = {kind: score(scores, queries.texts, corpus) for kind, queries in corpus.queries.items()}
    return {"signal": name} | {side: measure_side(found, corpus, seed, side) for side in SIDES}


def measure_side(found: dict[str, torch.Tensor], corpus: Corpus, seed: int, side: str) -> dict[str, Any]:
    """`measure` on the tasks of one side."""
    parts = {kind: queries.of(tasks_of(side, queries.tasks)) for kind, queries in corpus.queries.items()}
    best = {kind: found[kind][part].amax(dim=-1) for kind, part in parts.items()}
    told: dict[str, Any] = {}
    for kind in ("seen", "held_out"):
        own, rows = corpus.queries[kind].columns[parts[kind]], found[kind][parts[kind]]
        told[kind] = {"queries": len(own), **hits(rows, own, corpus.names), **three(rows, own, corpus.names, seed)}
        for other in ("t0", "bigbench"):
            told[kind][f"auc_{other}"] = best_threshold(best[kind], best[other])[2]
    held_in, held_out = torch.cat([best["seen"], best["held_out"]]), torch.cat([best["t0"], best["bigbench"]])
    return told | {"auc": best_threshold(held_in, held_out)[2]}


def tasks_of(side: str, tasks: Sequence[str]) -> set[str]:
    """Every other task, in the order of names, is for choosing a method."""
    order = sorted(set(tasks))
    return set(order) if side == "all" else set(order[SIDES.index(side) :: 2])


def hits(scores: torch.Tensor, own: torch.Tensor, names: list[str]) -> dict[str, float]:
    """Share of queries whose expert is among the best one and two; and strictly, with the twin tasks told apart."""
    best = scores.topk(2).indices
    strict = best == own[:, None]
    right = strict | same(best, own, names)
    return {
        "top1": right[:, 0].float().mean().item(),
        "top2": right.any(dim=1).float().mean().item(),
        "top1_strict": strict[:, 0].float().mean().item(),
    }


def same(best: torch.Tensor, own: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Whether both are of the twin tasks."""
    twin = torch.tensor([name in TWINS for name in names])
    return twin[best] & twin[own][:, None]


def three(scores: torch.Tensor, own: torch.Tensor, names: list[str], seed: int, draws: int = 50) -> dict[str, float]:
    """The same for three queries of one task, their scores averaged; 50 draws of each task."""
    chance = random.Random(seed)
    means, columns = [], []
    for column in own.unique().tolist():
        rows = (own == column).nonzero()[:, 0].tolist()
        if len(rows) < 3:
            continue
        for _ in range(draws):
            means.append(scores[chance.sample(rows, 3)].mean(dim=0))
            columns.append(column)
    found = hits(torch.stack(means), torch.tensor(columns), names)
    return {"three_top1": found["top1"], "three_top2": found["top2"]}


def free_form(file: Path, corpus: Corpus, signals: dict[str, GlobalScores]) -> list[dict[str, Any]]:
    """Queries that are descriptions of a task, in words that are no template: which expert has it?"""
    written = json.loads(file.read_text("utf8"))
    entries = [written.get(KEYS.get(name, "p3" + name.replace("_", "")), {}) for name in corpus.names]
    described = vectors([entry.get("expert", "") for entry in entries])  # empty for a task without one
    told = []
    for kind in FREE_FORM:
        own = torch.tensor([i for i, entry in enumerate(entries) if isinstance(entry.get(kind), str)])
        texts = [entries[i][kind] for i in own.tolist()]
        if corpus.states:
            corpus.states.update(read_states(load_base(EMBEDDED_BASE), texts))
        row: dict[str, Any] = {"texts": kind, "queries": len(texts)}
        for name, scores in signals.items():
            row[name] = hits(score(scores, texts, corpus), own, corpus.names)
        row["descriptions"] = hits(vectors(texts) @ described.T, own, corpus.names)
        told.append(row)
    return told


def seconds_a_query(scores: GlobalScores, corpus: Corpus, count: int = 100) -> dict[str, float]:
    """Milliseconds for one query at a time, embedding included, nothing remembered: median and 95th percentile."""
    base = load_base(EMBEDDED_BASE) if "hidden" in scores.needs else None
    embedder, clock = load_embedder(), []
    texts = corpus.queries["seen"].texts + corpus.queries["t0"].texts
    for text in random.Random(0).sample(texts, min(count, len(texts))):
        start = time.perf_counter()
        embedded = embedder.embed([edges(text)]) if scores.needs & {"instructions", "inputs"} else None
        states = prompt_states(base, [edges(text)]) if base is not None else None
        scores.of(QueryFeatures(1, embedded, ((ngrams(text),),), embedded, states))
        clock.append(1000 * (time.perf_counter() - start))
    return {"median": median(clock), "p95": sorted(clock)[int(0.95 * len(clock))]}


def show(console: Console, results: list[dict[str, Any]], free: list[dict[str, Any]], clock: dict[str, Any]) -> None:
    """Print the tables."""
    columns = ("top1", "top2", "three_top1", "three_top2", "auc_t0", "auc_bigbench")
    table = Table("signal", "tasks", "templates", *columns, "AUC, all", box=None)
    for result in results:
        for side in SIDES:
            for kind in ("seen", "held_out"):
                row = result[side][kind]
                figures = [f"{row[column]:.3f}" for column in columns]
                table.add_row(result["signal"], side, kind, *figures, f"{result[side]['auc']:.3f}")
    console.print(table)
    for row in free:
        found = "  ".join(f"{name} {v['top1']:.2f}/{v['top2']:.2f}" for name, v in row.items() if isinstance(v, dict))
        console.print(f"free form, {row['texts']} ({row['queries']} texts), top-1/top-2: {found}", highlight=False)
    for name, value in clock.items():
        console.print(f"{name}: {value['median']:.2f} ms a query (95 %: {value['p95']:.2f})", highlight=False)


if __name__ == "__main__":
    sys.exit(exit_code(main))
