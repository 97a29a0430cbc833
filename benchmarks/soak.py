"""Does a server at saturation stay right, for as long as one likes?

    python benchmarks/soak.py [--minutes 30] [--base DIRECTORY --pool DIRECTORY] [--router ROUTER] [--workers 24]
                              [--most-growth 64] [--reload-every 2] [--json out.json]

Starts `glider serve` over a copy of the pool (the demo's by default) with fewer places than there are workers, so that
some always wait. First every request of a set is asked by itself: prompts and answers of mixed lengths, conversations,
the pool, another router, the base and an expert, chat and completions, all greedy. Then the workers ask the same at
random and all at once, whole or streamed; one request in ten is cancelled midway, one in ten is one that must be
refused, some are drawn by a seed; meanwhile the pool is reloaded again and again. At the end all are asked once more.

A fault is an error that nobody asked for, a bad request that is not refused as it must be, an answer of other tokens
than the quiet one's, places that are never given back, and memory that has grown by more than --most-growth megabytes
since the first tenth of the time. An answer may leave the quiet one's where the two tokens are nearly as likely there
(log-probabilities within --tie): products of other sizes round otherwise. Such near ties are counted and told. The exit
code is 1 where there is a fault.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from rich.console import Console

from glider.cli.terminal import exit_code
from glider.demo.pool import DEMO_POOL
from glider.demo.prompts import PROMPTS
from glider.files.disk import write_json
from served import Server, serving

SHOWN = Console(stderr=True, highlight=False, soft_wrap=True)
LENGTHS = (1, 4, 16, 48)  # tokens of the answers
LONGEST = 200  # of those that are cancelled
ROOM = LONGEST + 60  # tokens beside a prompt's own
BAD: list[tuple[str, Any, int]] = [  # path, body, status
    ("chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "a"}]}, 404),
    ("chat/completions", {"model": "{pool}", "messages": []}, 400),
    ("chat/completions", {"model": "{pool}", "messages": [{"role": "user", "content": "a"}], "beams": 4}, 400),
    ("chat/completions", {"model": "{pool}", "messages": [{"role": "user", "content": "a"}], "temperature": -1}, 400),
    ("chat/completions", {"model": "{pool}:nonsense", "messages": [{"role": "user", "content": "a"}]}, 404),
    ("completions", {"model": "{pool}", "prompt": [-1]}, 400),
    ("completions", {"model": "{pool}", "prompt": "a " * 9000, "max_tokens": 4}, 400),
    ("completions", {"model": "{pool}", "prompt": "a", "glider": {"experts": ["nobody"]}}, 400),
    ("completions", b'{"model": ', 400),
    ("nothing/here", {}, 404),
    ("pool/reload", {"expected_generation": 10**9}, 409),
]


@dataclass(frozen=True)
class Case:
    """A request whose answer is known."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Quiet:
    """Its answer when nobody else asked: tokens, and the likeliest of each place with their log-probabilities."""

    ids: tuple[int, ...]
    likeliest: tuple[dict[str, float], ...]


@dataclass
class Tally:
    """What has happened so far."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    ties: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, megabytes

    def fault(self, text: str) -> None:
        self.faults.append(text)
        SHOWN.print(f"[red]fault[/red]: {text[:500]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--base")
    parser.add_argument("--pool", type=Path, default=DEMO_POOL)
    parser.add_argument("--router")
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--places", type=int, default=12, help="requests that share the server's passes")
    parser.add_argument("--tie", type=float, default=1e-3)
    parser.add_argument("--most-growth", type=float, default=64.0, help="megabytes")
    parser.add_argument(
        "--reload-every",
        type=float,
        default=2.0,
        help="seconds between reloads of the pool; more than all minutes: none",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(shutil.copytree(arguments.pool, Path(folder) / "soaked"))
        options = ["--pool", pool, "--allow-changes", "--max-requests", arguments.places]
        options += ["--pass-tokens", 192, "--cache-tokens", 6144]  # prompts in parts, and requests put out of the cache
        options += [part for name in ("base", "router") if (value := getattr(arguments, name))
                    for part in (f"--{name}", value)]  # fmt: skip
        with serving(options) as server:
            result = asyncio.run(Soak(server, arguments).run())
    SHOWN.print(json.dumps({key: value for key, value in result.items() if key != "memory"}, indent=2))
    if arguments.json:
        write_json(arguments.json, result)
    raise SystemExit(1 if result["faults"] else 0)


class Soak:
    """One run against one server."""

    def __init__(self, server: Server, arguments: argparse.Namespace):
        self.server, self.arguments = server, arguments
        self.chance, self.tally = random.Random(arguments.seed), Tally()
        limits = httpx.Limits(max_connections=arguments.workers + 8)
        self.client = httpx.AsyncClient(base_url=f"{server.url}/v1", limits=limits, timeout=600.0)
        self.pool = "soaked"
        self.cases: list[Case] = []
        self.quiet: list[Quiet] = []
        self.began = self.end = 0.0

    async def run(self) -> dict[str, Any]:
        async with self.client:
            self.cases = await self._make_cases()
            self.quiet = [await self._quiet(case) for case in self.cases]
            SHOWN.print(f"{len(self.cases)} requests asked by themselves; {self.server.resident_megabytes:.0f} MB")
            self.began = time.monotonic()
            self.end = self.began + 60 * self.arguments.minutes
            workers = [self._work() for _ in range(self.arguments.workers)]
            await asyncio.gather(*workers, self._reload(), self._watch())
            await self._settle()
            for case, quiet in zip(self.cases, self.quiet, strict=True):
                await self._ask(case, quiet)
        return self._result()

    async def _make_cases(self) -> list[Case]:
        models = (await self._get("models"))["data"]
        expert = next(one["id"] for one in models if one["kind"] == "expert")
        base = next(one["id"] for one in models if one["kind"] == "base")
        names = [self.pool, self.pool, self.pool, f"{self.pool}:phatgoose", base, expert]
        cases = []
        for number, prompt in enumerate(PROMPTS):
            text = await self._fitted(" ".join([prompt.text] * self.chance.choice((1, 1, 2, 5))), models[0])
            settings = {"model": names[number % len(names)], "max_tokens": LENGTHS[number % len(LENGTHS)]}
            user = {"role": "user", "content": text}
            cases.append(Case("chat/completions", {**settings, "messages": [user]}))
            cases.append(Case("completions", {**settings, "prompt": text, "ignore_eos": True}))
            turns = [user, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
            cases.append(Case("chat/completions", {**settings, "messages": turns}))
        return cases

    async def _fitted(self, text: str, model: dict[str, Any]) -> str:
        """As much of a text as leaves room for a conversation and the longest answer."""
        limit = (model["max_model_len"] or 10**9) - ROOM
        while True:
            body = {"model": model["id"], "prompt": text}
            answer = await self.client.post(f"{self.server.url}/tokenize", json=body)
            if answer.raise_for_status().json()["count"] <= limit:
                return text
            text = text[: len(text) // 2]

    async def _quiet(self, case: Case) -> Quiet:
        chat = case.path.startswith("chat")
        fields = {"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}
        body = await self._post(case.path, {**case.body, **fields, "temperature": 0, "return_token_ids": True})
        choice = body["choices"][0]
        logprobs = choice["logprobs"]
        if chat:
            likeliest = [
                {one["token"]: one["logprob"] for one in place["top_logprobs"]} for place in logprobs["content"]
            ]
        else:
            likeliest = logprobs["top_logprobs"]
        return Quiet(tuple(choice["token_ids"]), tuple(likeliest))

    async def _work(self) -> None:
        while time.monotonic() < self.end:
            number = self.chance.randrange(len(self.cases))
            case, draw = self.cases[number], self.chance.random()
            try:
                if draw < 0.1:
                    await self._refused(*self.chance.choice(BAD))
                elif draw < 0.2:
                    await self._cancelled(case)
                elif draw < 0.25:
                    await self._drawn(case)
                else:
                    await self._ask(case, self.quiet[number])
            except (httpx.HTTPError, ValueError, KeyError) as fault:
                self.tally.fault(f"{case.path} {case.body['model']}: {type(fault).__name__}: {fault}")

    async def _ask(self, case: Case, quiet: Quiet) -> None:
        """A greedy request, whole or streamed, beside its quiet answer."""
        body = {**case.body, "temperature": 0, "return_token_ids": True, "stream": self.chance.random() < 0.5}
        if body["stream"]:
            ids = tuple([token async for token in self._streamed(case.path, body)])
        else:
            ids = tuple((await self._post(case.path, body))["choices"][0]["token_ids"])
        self.tally.counts["greedy"] += 1
        if ids == quiet.ids:
            return
        place = next((i for i, (a, b) in enumerate(zip(ids, quiet.ids, strict=False)) if a != b), len(ids))
        values = sorted(quiet.likeliest[place].values(), reverse=True) if place < len(quiet.likeliest) else []
        gap = values[0] - values[1] if len(values) > 1 else float("inf")
        if gap <= self.arguments.tie:
            self.tally.ties.append(gap)
        else:
            self.tally.fault(
                f"{case.path} {case.body['model']}: {len(ids)} tokens leave the quiet answer's {len(quiet.ids)} at"
                f" {place}, where it leads by {gap:.2g}: {ids[place : place + 3]}, {quiet.ids[place : place + 3]}"
            )

    async def _drawn(self, case: Case) -> None:
        """Two draws by one seed are the same; by near ties of rounding they may part, so that only lengths are held."""
        body = {**case.body, "seed": 7, "temperature": 0.8, "n": 2, "return_token_ids": True}
        answer = await self._post(case.path, body)
        lengths = [len(choice["token_ids"]) for choice in answer["choices"]]
        if len(lengths) != 2 or not all(0 < length <= case.body["max_tokens"] for length in lengths):
            self.tally.fault(f"{case.path}: answers of {lengths} tokens, where {case.body['max_tokens']} are the most")
        self.tally.counts["drawn"] += 1

    async def _cancelled(self, case: Case) -> None:
        """A client that hangs up: in the midst of a stream, or while it waits."""
        body = {**case.body, "max_tokens": LONGEST, "ignore_eos": True, "n": self.chance.choice((1, 3))}
        if self.chance.random() < 0.5:
            most = self.chance.randrange(6)
            async with aclosing(self._streamed(case.path, {**body, "return_token_ids": True})) as tokens:
                async for _ in tokens:
                    most -= 1
                    if most < 0:
                        break
        else:
            with suppress(httpx.TimeoutException):
                await self.client.post(case.path, json=body, timeout=self.chance.uniform(0.01, 2.0))
        self.tally.counts["cancelled"] += 1

    async def _refused(self, path: str, body: Any, status: int) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).replace("{pool}", self.pool).encode()
        headers = {"content-type": "application/json"}
        answer = await self.client.post(path, content=content, headers=headers)
        expected = {status, 429} if path == "pool/reload" else {status}  # while another change is on its way
        if answer.status_code not in expected or "error" not in answer.json():
            self.tally.fault(f"{path} {content[:80]!r}: {answer.status_code} {answer.text[:200]}, not {status}")
        self.tally.counts["refused"] += 1

    async def _reload(self) -> None:
        while time.monotonic() + self.arguments.reload_every < self.end:
            await asyncio.sleep(self.arguments.reload_every)
            answer = await self.client.post("pool/reload", json={})
            if answer.status_code != 200:
                self.tally.fault(f"pool/reload: {answer.status_code} {answer.text[:200]}")
            self.tally.counts["reloads"] += 1

    async def _watch(self) -> None:
        """Memory, and a line a minute."""
        minutes = 0
        while (now := time.monotonic()) < self.end:
            self.tally.memory.append((now - self.began, self.server.resident_megabytes))
            if now - self.began >= 60 * minutes:
                minutes += 1
                counts = ", ".join(f"{count} {name}" for name, count in sorted(self.tally.counts.items()))
                SHOWN.print(f"{(now - self.began) / 60:.1f} min: {self.tally.memory[-1][1]:.0f} MB; {counts}")
            await asyncio.sleep(min(2.0, max(0.05, self.end - now)))

    async def _settle(self) -> None:
        """Every place is given back within a minute of the last request."""
        end = time.monotonic() + 60
        while (await self._get(f"{self.server.url}/load"))["server_load"]:
            if time.monotonic() > end:
                self.tally.fault("places are taken a minute after the last request")
                return
            await asyncio.sleep(0.1)

    def _result(self) -> dict[str, Any]:
        memory, last = self.tally.memory, 60 * self.arguments.minutes
        begin = statistics.median([size for at, size in memory if at <= max(0.1 * last, memory[0][0])])
        end = statistics.median([size for at, size in memory if at >= 0.9 * last] or [memory[-1][1]])
        if end - begin > self.arguments.most_growth:
            self.tally.fault(f"memory grew from {begin:.0f} to {end:.0f} MB")
        return {
            "minutes": self.arguments.minutes,
            "counts": dict(self.tally.counts),
            "near_ties": len(self.tally.ties),
            "widest_tie": max(self.tally.ties, default=None),
            "megabytes_first_tenth": round(begin, 1),
            "megabytes_last_tenth": round(end, 1),
            "faults": self.tally.faults,
            "memory": memory[:: max(1, len(memory) // 200)],
        }

    async def _get(self, path: str) -> Any:
        return (await self.client.get(path)).raise_for_status().json()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = await self.client.post(path, json=body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text[:300]}")
        return answer.json()

    async def _streamed(self, path: str, body: dict[str, Any]) -> AsyncGenerator[int, None]:
        """Tokens of a stream as they come."""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                raise ValueError(f"{answer.status_code} {(await answer.aread())[:300]!r}")
            ended = False
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(f"in a stream: {event['error']}")
                    for choice in event["choices"]:
                        for token in choice.get("token_ids", []):
                            yield token
            if not ended:
                raise ValueError("a stream that broke off")


if __name__ == "__main__":
    sys.exit(exit_code(main))
