"""Whether tasks without an expert of their own are sent to experts of like answers or of like meaning.

    python reproduce/mini/likeness.py reproduce/mini/results [--json]

A reviewer's question. Of the tasks near to the experts' and of the held-out ones, each row's highest global score is an
expert whose task has the same form of answer (format), the same subject (meaning), both, or neither. Beside each share
stands what an expert drawn blindly would give, for the tasks for which the pool has an expert of that kind at all.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from glider.cli.terminal import exit_code
from glider.report.cells import Results

SETS = ("near", "held-out")
ROUTERS = ("glider-paper", "glider-calibrated", "glider-text", "glider-both", "retrieval", "loraretriever")
_GROUPS = """
label sentiment: rotten_tomatoes amazon_polarity yelp_review_full app_reviews imdb
label topic: trec ag_news dbpedia_14
label science: wiqa
label inference: anli_r1 anli_r2 anli_r3 cb
yes-no paraphrase: paws qqp mrpc
yes-no inference: rte
yes-no reading: wiki_qa
yes-no words: wic
yes-no coreference: wsc
choice commonsense: social_i_qa commonsense_qa cos_e cosmos_qa copa hellaswag story_cloze
choice science: qasc quarel quartz sciq
choice reading: wiki_hop dream quail
choice coreference: winogrande
span reading: hotpotqa adversarial_qa duorc quoref ropes
summary news: gigaword cnn_dailymail multi_news xsum
summary talk: samsum
text writing: common_gen wiki_bio
"""
KINDS = {
    task: (group.split()[0], group.split()[1])
    for group, tasks in (line.split(":") for line in _GROUPS.strip().splitlines())
    for task in tasks.split()
}
"""The form of a task's answer, and its subject."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    told = likeness(Results.read(arguments.results), experts_of(arguments.results))
    if arguments.json:
        print(json.dumps(told, indent=2))
        return
    for router, one in told.items():
        parts = [f"{kind} {100 * part['share']:.1f} % ({100 * part['blind']:.1f} %)" for kind, part in one.items()]
        print(f"{router}: {', '.join(parts)}")


def experts_of(results: Path) -> list[str]:
    """The pool's experts, from the map that is kept beside the cells."""
    return json.loads((results / "routing.json").read_text("utf8"))["experts"]


def likeness(results: Results, experts: list[str]) -> dict[str, dict[str, Any]]:
    """By router and kind of likeness: rows, the share that is sent so, and the share of experts drawn blindly.

    Tasks weigh alike. A task counts for a kind if some expert is like it so, and some is not.
    """
    told: dict[str, dict[str, Any]] = {}
    for router in ROUTERS:
        tasks = {
            task: [row["expert"] for row in cell.record["results"]]
            for (name, where, task), cell in results.cells.items()
            if name == router and where in SETS and cell.fault is None
        }
        told[router] = {}
        for kind, alike in _ALIKE.items():
            shares, blind, rows = [], [], 0
            for task, chosen in tasks.items():
                of_kind = {expert for expert in experts if alike(KINDS[task], KINDS[expert])}
                if of_kind and len(of_kind) < len(experts):
                    shares.append(sum(expert in of_kind for expert in chosen) / len(chosen))
                    blind.append(len(of_kind) / len(experts))
                    rows += len(chosen)
            share, chance = sum(shares) / len(shares), sum(blind) / len(blind)
            told[router][kind] = {"tasks": len(shares), "rows": rows, "share": share, "blind": chance}
    return told


_ALIKE = {
    "format alone": lambda task, expert: task[0] == expert[0] and task[1] != expert[1],
    "meaning alone": lambda task, expert: task[0] != expert[0] and task[1] == expert[1],
    "both": lambda task, expert: task == expert,
}


if __name__ == "__main__":
    sys.exit(exit_code(main))
