"""Does the model's own response to a prompt tell whether an unsure query is better left to the base?

    glider evaluate WORK/unsure.yaml --out RESULTS
    python reproduce/mini/response.py WORK/pool RESULTS --tasks TASKS --out ROWS.jsonl [--other by-examples]

Of every row that is unsure: the prompt's log-likelihood by the routed model less that by the base, a token (arXiv
2404.08679); the entropy of the base's next token; and the divergences between the two models' next tokens, routed from
base and base from routed. Printed for each set: the area under the ROC curve of each, rows that routing makes better
against rows that it makes worse. What ROWS holds already is not computed again.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch

import glider
from glider.cli.terminal import exit_code
from glider.progress import track

STATISTICS = ("likelihood_ratio", "base_entropy", "routed_from_base", "base_from_routed")
FIRST, LAST = 300, 100  # tokens of a longer prompt that are read
CHANGED = 0.1  # of a score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--other", default="by-examples")
    arguments = parser.parse_args()
    arguments.out.touch()
    rows = [json.loads(line) for line in arguments.out.read_text("utf8").splitlines()]
    known, unsure = {row["id"] for row in rows}, unsure_rows(arguments.results, arguments.other, arguments.tasks)
    model = glider.load(pool=arguments.pool)
    with arguments.out.open("a", encoding="utf8") as file:
        missing = [row for row in unsure if row["id"] not in known]
        for row in track(missing, len(missing), "Rows"):
            rows.append({name: row[name] for name in ("id", "set", "gain")} | response(model, row["text"]))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    for name in sorted({row["set"] for row in rows}):
        own = [row for row in rows if row["set"] == name]
        better, worse = ([row for row in own if sign * row["gain"] > CHANGED] for sign in (1, -1))
        areas = ", ".join(f"{key} {area(better, worse, key):.2f}" for key in STATISTICS)
        print(f"{name}: {len(own)} unsure, {len(better)} better, {len(worse)} worse; {areas}")


def unsure_rows(results: Path, other: str, tasks: Path) -> list[dict[str, Any]]:
    """Each unsure row's set, id, text, and the routed score less the base's."""
    rows = []
    for file in sorted((results / other).glob("*/*.json")):
        cells = [
            json.loads((results / name / file.parent.name / file.name).read_text("utf8")) for name in (other, "base")
        ]
        (source,) = tasks.glob(f"t0_*/{file.stem}.jsonl.gz")
        with gzip.open(source, "rt", encoding="utf8") as lines:
            inputs = {row["id"]: row["input"] for row in map(json.loads, lines)}
        for routed, base in zip(*(cell["results"] for cell in cells), strict=True):
            assert routed["id"] == base["id"]
            if routed["verdict"] == "unsure":
                place = {"set": file.parent.name, "id": routed["id"], "text": inputs[routed["id"]]}
                rows.append(place | {"gain": routed["score"] - base["score"]})
    return rows


@torch.no_grad()
def response(model: glider.RoutedModel, text: str) -> dict[str, float]:
    """The statistics of one prompt."""
    ids = torch.tensor([model.prompt.prompt_ids(model.tokenizer, text)])
    if ids.shape[1] > FIRST + LAST:
        ids = torch.cat([ids[:, :FIRST], ids[:, -LAST:]], dim=1)
    scores = []
    for verdict in (None, "base"):
        with model.routing(glider.Query(text, verdict=verdict)):
            scores.append(model.model(input_ids=ids).logits[0].float().log_softmax(dim=-1))
    routed, base = scores
    following = ids[0, 1:, None]
    ratio = (routed[:-1] - base[:-1]).gather(1, following).mean()
    p, q = routed[-1], base[-1]
    values = (ratio, -(q.exp() * q).sum(), (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum())
    return {name: round(value.item(), 4) for name, value in zip(STATISTICS, values, strict=True)}


def area(better: list[dict[str, Any]], worse: list[dict[str, Any]], key: str) -> float:
    """The share of pairs of a better and a worse row in which the better one's value is larger; ties count half."""
    pairs = [(one[key], other[key]) for one in better for other in worse]
    return sum((one > other) + (one == other) / 2 for one, other in pairs) / max(1, len(pairs))


if __name__ == "__main__":
    sys.exit(exit_code(main))
