"""Do the lengths of the experts' own answers, or several centroids an expert, tell what the margin does not?

    glider evaluate WORK/unsure.yaml --out RESULTS
    python reproduce/mini/norms.py WORK/pool RESULTS --tasks TASKS --everyday everyday.jsonl --out ROWS.jsonl
        [--other by-examples] [--base RESULTS/base]

Of prompts with a result of both routers, of validation rows of the experts' own tasks, and of everyday requests: the
margin of verdicts; SEQR's norms (arXiv 2509.18093), |B A x| in the bare base, averaged over a prompt's tokens but the
first (which most attention falls on) and divided by the same on the expert's own training inputs, averaged over sites;
and the cosine with the nearest of so many centroids of the experts' embedded training inputs (arXiv 2606.19079).
Printed: areas under ROC curves. What ROWS holds already is not computed again.
"""

import argparse
import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import glider
from glider.cli.terminal import exit_code
from glider.contribute.router_statistics import k_means
from glider.instructions.embedders import load_for
from glider.instructions.inputs import edges, ngrams
from glider.progress import track
from glider.routing.base import QueryFeatures
from glider.routing.local_scores.seqr import QRNorm
from glider.shapes import Float, Tensor
from glider.verdicts.background import shipped
from glider.verdicts.contest import Contest

FIRST, LAST = 64, 32  # tokens of a longer prompt that are read
CHANGED = 0.1  # of a score
OWN = 8  # training inputs of an expert that its usual norms are measured on
EMBEDDED = 32  # and that its centroids are found on
CENTROIDS = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--everyday", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--other", default="by-examples")
    parser.add_argument("--base", type=Path, help="the base's results, where they are not beside the other's")
    parser.add_argument("--set", dest="sets", action="append", help="near and held-out, if none is named")
    parser.add_argument("--rows", type=int, default=20, help="rows of a task")
    parser.add_argument("--own-tasks", type=int, default=5, help="experts' tasks whose validation rows are read")
    arguments = parser.parse_args()
    arguments.out.touch()
    known = [json.loads(line) for line in arguments.out.read_text("utf8").splitlines()]
    measure = Measure(arguments.pool, arguments.tasks, {row["own"]: row["usual"] for row in known if "own" in row})
    lines = arguments.everyday.read_text("utf8").splitlines()
    prompts = [{"set": "everyday", "id": row["id"], "text": row["input"]} for row in map(json.loads, lines)]
    prompts += [
        {"set": "held-in", "id": f"{name} {i}", "text": text}
        for name in measure.pool.names[: arguments.own_tasks]
        for i, text in enumerate(inputs_of(arguments.tasks, name, "val", arguments.rows))
    ]
    prompts += answered(arguments.results / arguments.other, arguments.base or arguments.results / "base", arguments)
    rows = [row for row in known if "id" in row]
    done = {(row["set"], row["id"]) for row in rows}
    with arguments.out.open("a", encoding="utf8") as file:
        for name in measure.unknown():
            file.write(json.dumps({"own": name, "usual": measure.usual_of(name)}) + "\n")
            file.flush()
        missing = [one for one in prompts if (one["set"], one["id"]) not in done]
        for one in track(missing, len(missing), "Prompts"):
            rows.append({name: one[name] for name in one if name != "text"} | measure.of(one["text"]))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    show(rows)


def answered(other: Path, base: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows that both have answered, so many of a task: set, id, text, and the routed score less the base's."""
    rows, sets = [], arguments.sets or ("near", "held-out")
    for file in sorted(other.glob("*/*.json")):
        if not (base / file.parent.name / file.name).exists() or file.parent.name not in sets:
            continue
        cells = [json.loads(one.read_text("utf8")) for one in (file, base / file.parent.name / file.name)]
        (source,) = arguments.tasks.glob(f"t0_*/{file.stem}.jsonl.gz")
        with gzip.open(source, "rt", encoding="utf8") as lines:
            texts = {row["id"]: row["input"] for row in map(json.loads, lines)}
        scores = {row["id"]: row["score"] for row in cells[1]["results"]}
        for row in cells[0]["results"][: arguments.rows]:
            place = {"set": file.parent.name, "id": row["id"], "text": texts[row["id"]]}
            rows.append(place | {"gain": row["score"] - scores[row["id"]], "verdict": row.get("verdict")})
    return rows


def inputs_of(tasks: Path, name: str, split: str, count: int) -> list[str]:
    """So many inputs of a split, drawn by a fixed seed."""
    with gzip.open(tasks / "t0_heldin" / f"{name}.jsonl.gz", "rt", encoding="utf8") as lines:
        texts = [row["input"] for row in map(json.loads, lines) if row["split"] == split]
    return random.Random(0).sample(texts, min(count, len(texts)))


class Measure:
    """What is measured of a prompt; `usual` are the experts' usual norms at each site, as far as they are known."""

    def __init__(self, pool: Path, tasks: Path, usual: dict[str, list[float]]):
        self.model = glider.load(pool=pool)
        self.pool, self.tasks, self.usual = glider.Pool.open(pool), tasks, usual
        self.score = QRNorm()
        self.sites = self.score.prepare(self.pool)
        self.contest = Contest.of([expert.profile for expert in self.pool], shipped())
        assert self.pool.index.embedder is not None
        self.embedder = load_for(self.pool.index.embedder)
        texts = [inputs_of(tasks, name, "train", EMBEDDED) for name in self.pool.names]
        vectors = [self.embedder.embed(list(map(edges, one))).float() for one in texts]
        draw = torch.Generator().manual_seed(0)
        self.centroids = {
            count: torch.nn.functional.normalize(torch.cat([k_means(one, count, draw) for one in vectors]), dim=-1)
            for count in CENTROIDS
        }

    def unknown(self) -> list[str]:
        """Experts whose usual norms are not known."""
        return [name for name in self.pool.names if name not in self.usual]

    def usual_of(self, name: str) -> list[float]:
        """An expert's mean norm at each site on its own training inputs."""
        place, texts = self.pool.names.index(name), inputs_of(self.tasks, name, "train", OWN)
        self.usual[name] = torch.stack([self.norms(text)[:, place] for text in texts]).mean(dim=0).tolist()
        return self.usual[name]

    @torch.no_grad()
    def norms(self, text: str) -> Float[Tensor, "S E"]:
        """The mean norm of each expert's answer at each site over a prompt's tokens but the first."""
        ids = torch.tensor([self.model.prompt.prompt_ids(self.model.tokenizer, text)])
        if ids.shape[1] > FIRST + LAST:
            ids = torch.cat([ids[:, :FIRST], ids[:, -LAST:]], dim=1)
        seen: dict[str, Tensor] = {}
        hooks = []
        for name, site in self.sites.items():

            def hook(_: Any, inputs: tuple, name: str = name, site: Any = site) -> None:
                seen[name] = self.score.scores(inputs[0][0, 1:].float(), site).mean(dim=0)

            hooks.append(self.model.model.get_submodule(name).register_forward_pre_hook(hook))
        try:
            with self.model.routing(glider.Query(text, verdict="base")):
                self.model.model(input_ids=ids)
        finally:
            for one in hooks:
                one.remove()
        return torch.stack([seen[name] for name in self.sites])

    def of(self, text: str) -> dict[str, float]:
        """The statistics of one prompt."""
        margins = self.contest.margins(QueryFeatures(1, grams=((ngrams(text),),)))[0]
        usual = torch.tensor([self.usual[name] for name in self.pool.names]).T  # (S, E)
        ratios = (self.norms(text) / usual.clamp(min=1e-12)).mean(dim=0)
        nearest = int(margins.argmax())
        lead = ratios[nearest] - (ratios.sum() - ratios[nearest]) / (len(ratios) - 1)
        rank = 1 + int((ratios > ratios[nearest]).sum())
        values = {"margin": margins[nearest], "ratio": ratios[nearest], "ratio_lead": lead, "largest": ratios.max()}
        vector = torch.nn.functional.normalize(self.embedder.embed([edges(text)]).float(), dim=-1)
        values |= {f"centroids_{count}": (vector @ rows.T).max() for count, rows in self.centroids.items()}
        return {name: round(float(value), 4) for name, value in values.items()} | {"rank": -rank}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each comparison: the areas of all statistics."""
    by_set = {name: [row for row in rows if row["set"] == name] for name in sorted({row["set"] for row in rows})}
    statistics = [name for name in rows[0] if name not in ("set", "id", "gain", "verdict")]
    pairs = [(f"{name} against everyday", by_set[name], by_set["everyday"]) for name in by_set if name != "everyday"]
    for name in sorted(by_set.keys() - {"everyday", "held-in"}):
        better, worse = ([row for row in by_set[name] if sign * row["gain"] > CHANGED] for sign in (1, -1))
        pairs.append((f"{name}, better against worse", better, worse))
    for name, ones, others in pairs:
        print(f"{name}: {len(ones)} and {len(others)}")
        for key in statistics:
            low, high = interval(ones, others, key)
            print(f"  {key} {area(ones, others, key):.2f} [{low:.2f} to {high:.2f}]")


def interval(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    """Of an area, by bootstrap over rows."""
    draw = random.Random(0)
    drawn = [(draw.choices(ones, k=len(ones)), draw.choices(others, k=len(others))) for _ in range(300)]
    areas = sorted(area(one, other, key) for one, other in drawn)
    return areas[7], areas[292]


def area(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], key: str) -> float:
    """The share of pairs in which the first one's value is larger; ties count half."""
    pairs = [(one[key], other[key]) for one in ones for other in others]
    return sum((one > other) + (one == other) / 2 for one, other in pairs) / max(1, len(pairs))


if __name__ == "__main__":
    sys.exit(exit_code(main))
