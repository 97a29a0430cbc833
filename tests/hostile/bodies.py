"""Ask a server with bodies that no client should send, and see that each is answered, or refused in OpenAI's words.

    python tests/hostile/bodies.py --out DIR [--cases 100000] [--seed 0]

Whatever comes back in half a minute is one of 2xx, or an error of {"error": {message, type, param, code}} below 500; an
event stream ends with [DONE]. What is not lies in DIR/faults.jsonl with the number of its case, which `--case`
repeats. Bodies are well-formed ones of every route with a value changed, or bytes that are no JSON of the kind.
"""

import argparse
import asyncio
import json
import random
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from kill_root import make_root

from glider.inference.spec import ModelSpec
from glider.serve.app import build
from glider.serve.pools import Pools
from glider.serve.service import Service
from glider.serve.settings import ServeSettings

HANGS = 30
CHAT = {"model": "pool", "messages": [{"role": "user", "content": "say 2 words"}], "max_tokens": 2}
STEERING = {"verdict": "route", "experts": ["reviews"], "exclude": ["trivia"], "description": "Say words."}
COMPLETION = {"model": "pool", "prompt": "say 2 words", "max_tokens": 2, "stop": ["x"], "logprobs": 2, "echo": True}
DRAWN = {"n": 2, "seed": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "logit_bias": {"5": 1.0}}
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "stop_token_ids": [9]}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, **DRAWN, "user": "me", "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {**CHAT, "glider": STEERING}),
    ("/v1/chat/completions", {**CHAT, "glider": {"experts": ["reviews"], "examples": [["a", "b"]], "trace": True}}),
    ("/v1/completions", COMPLETION),
    ("/v1/completions", {**CHAT, "messages": None, "prompt": [[5, 6], [7]], **DRAWN, **PENALTIES}),
    ("/tokenize", {"model": "pool", "prompt": "say", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": CHAT["messages"], "add_generation_prompt": False}),
    ("/detokenize", {"model": "pool", "tokens": [5, 6, 7]}),
    ("/v1/embeddings", {"model": "pool", "input": ["say", "words"], "encoding_format": "base64", "user": "me"}),
    ("/v1/route", {"model": "pool", "prompt": "say 2 words", "glider": {"trace": True, "verdict": "base"}}),
    ("/v1/load_lora_adapter", {"lora_name": "more", "lora_path": "nothing", "model": "pool"}),
    ("/v1/unload_lora_adapter", {"lora_name": "nobody", "model": "pool", "expected_generation": 1}),
    ("/v1/pool/reload", {"model": "pool", "expected_generation": 99}),
)
TEXTS = ("", " ", "\0", "\x1b[31m", "\u202e", "a" * 3000, "9" * 5000, "\U0001f600", "<eos>", "../x", "reviews", "x")
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**70, 10**400, 1e308, -1e-308, 0.5, 2, 3, 100)
BROKEN = ("\ud800", "x\udfff", "pool:single:\ud800", float("nan"), float("inf"), {"\ud800": 1})
NAMES = ("pool:", "pool:glider", "pool:(((", "pool:merge(method=ties)", "pool:glider(p=nan)", "pool:single:reviews")
VALUES = (*TEXTS, *NUMBERS, *NAMES, None, True, [], {}, [[]], [{}], {"": 1}, {"9" * 5000: 1}, [None])
KEYS = ("__class__", "\ud800", "model", "glider", "", "x" * 9000, "9" * 5000)
RAW = (
    *(b"", b"{", b"null", b"[]", b"\xff\xfe{}", b'"\\ud800"', b"\xef\xbb\xbf{}", b"{}", b"nan", b"9" * 5000),
    *(
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"model":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"\0" * 100,
        b'{"a":1e999}',
    ),
    *(b"[" + b"{}," * 300_000 + b"{}]", b'{"model":"pool","messages":[' + b"{}," * 300_000 + b"{}]}", b'{"' * 9000),
)
HEADERS = (
    {"content-length": "9" * 5000},
    {"content-length": "-1"},
    {"content-type": "application/json; charset=\xff"},
    {"content-type": "application/json, text/plain"},
    {"authorization": "Bearer \xff\xfe"},
    {"x-request-id": "\xff" * 9},
    {"origin": "null"},
    {"origin": "http://\xff"},
    {"accept-encoding": "br;q=\xff"},
)


def body_of(chance: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """Path, content and headers of a case."""
    path, body = chance.choice(BODIES)
    headers = chance.choice(HEADERS) if chance.random() < 0.03 else {}
    if chance.random() < 0.1:
        return path, chance.choice(RAW), headers
    body = json.loads(json.dumps(body))
    for _ in range(chance.choice((1, 1, 2, 3))):
        _change(body, chance)
    content = json.dumps(body, ensure_ascii=chance.random() < 0.7).encode("utf8", "surrogatepass")
    if chance.random() < 0.05:
        at = chance.randrange(len(content) + 1)
        content = content[:at] + chance.randbytes(3) + content[at:]
    return path, content, headers


def _change(body: dict[str, Any], chance: random.Random) -> None:
    """Put something else in one place of a body, however deep."""
    places: list[tuple[Any, Any]] = []
    layer: list[Any] = [body]
    while layer:
        holder = layer.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        places += [(holder, name) for name, _ in items]
        layer += [value for _, value in items if isinstance(value, dict | list)]
    holder, name = chance.choice(places) if places else (body, "model")
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            holder[chance.choice(KEYS)] = _value(chance)
        case 1 if isinstance(holder, dict):
            holder.pop(name, None)
        case 2:
            holder[name] = [holder[name]] * chance.choice((1, 2, 17, 300, 5000)) if name in _names(holder) else []
        case 3:
            value: Any = _value(chance)
            for _ in range(chance.choice((3, 60, 300))):
                value = [value] if chance.random() < 0.5 else {"a": value}
            holder[name] = value
        case _:
            holder[name] = _value(chance)


def _value(chance: random.Random) -> Any:
    return deepcopy(chance.choice(BROKEN if chance.random() < 0.1 else VALUES))  # it may be changed once more


def _names(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application over the tiny pool of a directory, in this process."""
    place = str(root / "pool")
    settings = ServeSettings(pool=[place], allow_changes=True, request_timeout=HANGS)
    service = Service(Pools.load(ModelSpec(base=str(root / "base"), pool=place), settings), settings)
    service.start()
    try:
        transport = httpx.ASGITransport(build(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        service.close()


async def run_case(number: int, seed: int, client: httpx.AsyncClient) -> tuple[str, dict[str, Any] | None]:
    """The route and the status, and the fault if there is one."""
    path, content, headers = body_of(random.Random(f"{seed}/{number}"))
    headers = {"content-type": "application/json", "host": "127.0.0.1", **headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    try:
        answer = await asyncio.wait_for(client.post(path, content=content, headers=raw), HANGS)
        status, fault = str(answer.status_code), _fault(answer)
    except TimeoutError:
        status, fault = "hung", "hung"
    except Exception:
        status, fault = "raised", traceback.format_exc()
    told = {"case": number, "path": path, "status": status, "fault": fault, "body": repr(content[:2000])}
    return f"{path}: {status}", told if fault else None


def _fault(answer: httpx.Response) -> str | None:
    """What is wrong with an answer."""
    if answer.status_code < 300:
        if "event-stream" in answer.headers.get("content-type", ""):
            return None if answer.text.endswith("data: [DONE]\n\n") else "a stream without its end"
        return None if isinstance(answer.json(), dict) else "no object"
    try:
        error = answer.json()["error"]
    except (ValueError, LookupError, TypeError):
        return f"no error of OpenAI's: {answer.text[:500]}"
    if error.keys() != {"message", "type", "param", "code"} or not error["code"] or len(answer.content) > 5000:
        return f"no whole error, or a long one: {answer.text[:500]}"
    return None if answer.status_code < 500 else f"the server's fault: {answer.text[:500]}"


async def run(out: Path, cases: int, seed: int, one: int | None) -> int:
    """How many faults there were."""
    note = out / "done.json"
    told = json.loads(note.read_text()) if note.exists() and one is None else {"seed": seed, "next": 0, "ended": {}}
    if told["seed"] != seed:
        raise SystemExit(f"{note} is of the seed {told['seed']}: give another --out")
    if not (out / "root").exists():
        shutil.rmtree(out / "making", ignore_errors=True)
        make_root(out / "making")
        (out / "making").rename(out / "root")
    ended, faults = Counter(told["ended"]), 0
    async with served(out / "root") as client:
        for number in range(told["next"], cases) if one is None else [one]:
            how, fault = await run_case(number, seed, client)
            ended[how] += 1
            if fault is not None:
                faults += 1
                with (out / "faults.jsonl").open("a") as file:
                    file.write(json.dumps(fault) + "\n")
            if one is None and (number % 500 == 0 or number + 1 == cases):
                partial = note.with_suffix(".partial")
                partial.write_text(json.dumps({"seed": seed, "next": number + 1, "ended": dict(ended)}))
                partial.replace(note)
            if one is not None:
                print(how, fault)
    for how, count in sorted(ended.items()):
        print(f"{count:9d}  {how}")
    print(f"{sum(ended.values())} cases, {faults} faults")
    return faults


def main() -> int:
    """0 or 1, as there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="Run this case alone, and show its fault.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return int(bool(asyncio.run(run(arguments.out.resolve(), arguments.cases, arguments.seed, arguments.case))))


if __name__ == "__main__":
    raise SystemExit(main())
