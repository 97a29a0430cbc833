"""What attaching a pool does to what the base model could do before: everyday prompts, by the base and by routers.

    python benchmarks/harm.py POOL [--data everyday.jsonl] [--router glider --router phatgoose ...] [--json]

Rows are JSON Lines with `input`, or `messages` for a chat, and `match` (a regular expression that a right answer has)
where there is one. For each router: right answers, answers that are the base's token for token, and how many queries
had which verdict, by `kind` too where rows have one. Answers are greedy, in batches of eight that are the same for all.
`benchmarks/other_prompts.jsonl` has other languages, code, documents, system prompts and chats.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from glider.cli.terminal import exit_code
from glider.inference.answers import Answer
from glider.inference.base_model import BaseModel
from glider.inference.queries import Prompt, Query
from glider.inference.spec import ModelSpec, base_of, open_pool
from glider.progress import track
from glider.routing.specification import parsed

ROWS = 8
TOKENS = 32
DEFAULT = Path(__file__).resolve().parents[2] / "shared/data/everyday/everyday.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", nargs="?", default="demo")
    parser.add_argument("--data", type=Path, default=DEFAULT)
    parser.add_argument("--router", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.data.read_text("utf8").splitlines() if line.strip()]
    routers = arguments.router or ["glider", "glider(abstain=false)"]
    pool = open_pool(arguments.pool)
    base = ModelSpec(base=None).load_base(base_of(pool))
    prompts = [Query.chat(row["messages"]) if "messages" in row else row["input"] for row in rows]
    before = answered(ModelSpec(pool=arguments.pool, router="base"), base, prompts)
    results = [summary("base", rows, before, before)]
    for router in routers:
        answers = answered(spec_of(arguments.pool, router), base, prompts)
        results.append(summary(router, rows, answers, before))
    if arguments.json:
        print(
            json.dumps({"pool": str(pool.path), "experts": len(pool), "rows": len(rows), "results": results}, indent=2)
        )
        return
    print(
        f"{pool.path}: {len(pool)} experts, {len(rows)} prompts, {sum('match' in row for row in rows)} with an answer"
    )
    for one in results:
        verdicts = ", ".join(f"{name} {count}" for name, count in one["verdicts"].items())
        print(f"{one['router']:>28}  right {one['right']:3}  as the base {one['same']:6.1%}  {verdicts}")
        for kind, share in one["same_by_kind"].items():
            print(f"{kind:>28}             as the base {share:6.1%}")


def spec_of(pool: str, router: str) -> ModelSpec:
    """A router over a pool."""
    name, settings = parsed(router)
    return ModelSpec(pool=pool, router=name, settings=settings)


def answered(spec: ModelSpec, base: BaseModel, prompts: list[Prompt]) -> list[Answer]:
    """Greedy answers of a router, batch by batch."""
    model = spec.over(base)
    batches = [prompts[i : i + ROWS] for i in range(0, len(prompts), ROWS)]
    answers = [
        answer
        for batch in track(batches, len(batches), str(spec.router))
        for answer in model.generate(batch, max_new_tokens=TOKENS)
    ]
    model.detach()
    return answers


def summary(router: str, rows: list[dict[str, Any]], answers: list[Answer], base: list[Answer]) -> dict[str, Any]:
    """What the table says of a router."""
    right = [
        bool(re.search(row["match"], answer.text, re.IGNORECASE))
        for row, answer in zip(rows, answers, strict=True)
        if row.get("match")
    ]
    same = [answer.token_ids == before.token_ids for answer, before in zip(answers, base, strict=True)]
    kinds: dict[str, list[bool]] = {}
    for row, equal in zip(rows, same, strict=True):
        if "kind" in row:
            kinds.setdefault(row["kind"], []).append(equal)
    verdicts = Counter(answer.verdict for answer in answers if answer.verdict is not None)
    return {
        "router": router,
        "right": sum(right),
        "of": len(right),
        "same": sum(same) / len(same),
        "same_by_kind": {kind: sum(values) / len(values) for kind, values in kinds.items()},
        "verdicts": verdicts,
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
