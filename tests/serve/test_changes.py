"""Pools that change while they are served."""

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from glider.experts.gains import GAINS_FILE, Gain, store_gains
from glider.experts.membership import remove_expert
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import ModelSpec

from ..conftest import write_random_expert
from .conftest import Serve, Served
from .test_limits import key_file

TEXT = "the e9 e93 and e97"
PATHS = ("/v1/pool/reload", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")


def post(served: Served, path: str, key: str = "none", **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def ask(served: Served, model: str = "tiny", text: str = TEXT, **more: Any) -> Any:
    turns: list[Any] = [{"role": "user", "content": text}]
    settings = {"temperature": 0, "max_tokens": 12, "extra_body": {"return_token_ids": True}, **more}
    return served.client().chat.completions.create(model=model, messages=turns, **settings)


def pool_card(served: Served, key: str = "none") -> dict[str, Any]:
    answer = httpx.get(f"{served.url}/v1/pool", headers={"authorization": f"Bearer {key}"})
    return answer.json()["data"][0]


def change_lines(served: Served) -> list[dict[str, Any]]:
    lines = served.log.read_text("utf8").splitlines()
    return [json.loads(line.split("glider.serve.changes ")[1]) for line in lines if "glider.serve.changes " in line]


def ids(served: Served, model: str = "tiny", text: str = TEXT) -> list[int]:
    return ask(served, model, text).choices[0].token_ids


def in_process(base: Path, pool: Path, router: str) -> list[int]:
    (answer,) = ModelSpec(base=str(base), pool=str(pool), router=router).load().generate([TEXT], max_new_tokens=12)
    return list(answer.token_ids)


@pytest.fixture
def own_pool(pool_directory: Path, tmp_path: Path) -> Path:
    """A copy of the pool that may change."""
    return Path(shutil.copytree(pool_directory, tmp_path / "own" / "tiny"))


@pytest.fixture
def served(serve: Serve, own_pool: Path, llama_directory: Path, embedder_identity: Any) -> Served:
    """A server with changes allowed, experts to load beside it: one whole, one bare, one for another base."""
    base, outside = load_base(str(llama_directory)), own_pool.parent
    write_random_expert(outside / "e9", base, seed=9, embedder=embedder_identity, profile=True)
    (outside / "bare").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(outside / "e9" / file, outside / "bare" / file)
    return serve("--pool", str(own_pool), "--allow-changes", "--changes-from", str(outside))


def test_an_expert_comes_and_goes(served: Served, own_pool: Path, llama_directory: Path) -> None:
    before = ids(served)
    told = post(served, PATHS[1], lora_name="e9", lora_path="e9", expected_generation=1)
    assert told.status_code == 200, told.text
    assert (told.json()["routed"], told.json()["generation"]) == (True, 2)
    assert [model.id for model in served.client().models.list()][:6] == ["tiny", "e0", "e1", "e2", "e3", "e9"]
    grown = Path(shutil.copytree(own_pool, own_pool.parent / "grown"))
    shutil.copytree(own_pool.parent / "e9", grown / "e9")
    Pool.open(grown).add("e9")
    assert ids(served) == in_process(llama_directory, grown, "glider(global=examples, p=-1.0)") != before
    assert ids(served, "e9") == in_process(llama_directory, grown, "single:e9")
    assert max(ask(served).glider["scores"].items(), key=lambda one: one[1])[0] == "e9"
    assert post(served, PATHS[2], lora_name="e9").status_code == 200
    assert ids(served) == before
    with pytest.raises(openai.NotFoundError):
        ids(served, "e9")


def test_a_bare_adapter_is_served_by_its_name_alone(served: Served, own_pool: Path, llama_directory: Path) -> None:
    before = ids(served)
    told = post(served, PATHS[1], lora_name="mine", lora_path="bare").json()
    assert told["routed"] is False
    assert "no query is sent to it" in told["message"]
    alone = own_pool.parent / "alone"
    Pool.create(alone, load_base(str(llama_directory)).identity)
    shutil.copytree(own_pool.parent / "e9", alone / "e9")
    Pool.open(alone).add("e9")
    assert ids(served, "mine") == in_process(llama_directory, alone, "single:e9")
    assert ids(served) == before
    assert ask(served).glider["scores"].keys() == {"e0", "e1", "e2", "e3"}
    assert post(served, PATHS[2], lora_name="mine").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ids(served, "mine")


def test_an_adapter_that_went_leaves_nothing_to_the_next(served: Served, own_pool: Path, llama_directory: Path) -> None:
    """The next one had its number, and with it what it had left in the cache: other answers than its own."""
    outside, base = own_pool.parent, load_base(str(llama_directory))
    write_random_expert(outside / "e8", base, seed=8)
    for name in ("e8", "e9"):
        bare = outside / f"bare-{name}"
        bare.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(outside / name / file, bare / file)
    long = f"{TEXT}, and what is beside them, twice over and once more."

    def answer(path: str) -> tuple[list[int], int, int]:
        loaded = post(served, PATHS[1], lora_name="mine", lora_path=path).json()
        one = ask(served, "mine", long)
        assert post(served, PATHS[2], lora_name="mine").status_code == 200
        return one.choices[0].token_ids, one.usage.prompt_tokens_details.cached_tokens, loaded["generation"]

    quiet, _, first = answer("bare-e8")
    other, cached, second = answer("bare-e9")
    assert (cached, quiet != other, second > first) == (0, True, True)
    assert answer("bare-e8")[:2] == (quiet, 0)


def test_requests_in_flight_keep_their_generation(served: Served, own_pool: Path) -> None:
    quiet = ask(served, max_tokens=300, logit_bias={"1": -100}).choices[0].token_ids
    outcome: list[Any] = []
    asking = threading.Thread(target=lambda: outcome.append(ask(served, max_tokens=300, logit_bias={"1": -100})))
    asking.start()
    running = re.compile(r"^vllm:num_requests_running\S* 1", re.MULTILINE)
    while asking.is_alive() and not running.search(httpx.get(f"{served.url}/metrics").text):
        pass  # it is not in flight before
    remove_expert(own_pool, "e1")
    numbers = [post(served, PATHS[0]).json()["generation"] for _ in range(3)]
    asking.join()
    assert numbers == sorted(numbers)
    assert outcome[0].choices[0].token_ids == quiet
    assert ask(served).glider["generation"] == numbers[-1]
    assert "e1" not in ask(served).glider["scores"]


def test_what_does_not_fit_changes_nothing(
    served: Served, own_pool: Path, other_llama_directory: Path, edit_json: Any, tmp_path: Path
) -> None:
    before, outside = ids(served), own_pool.parent
    write_random_expert(outside / "strange", load_base(str(other_llama_directory)), seed=3)
    (outside / "empty").mkdir()
    (outside / "out").symlink_to(tmp_path.parent)
    for path, code in (
        ("strange", "change_failed"),
        ("empty", "change_failed"),
        ("nothing", "no_such_directory"),
        ("../..", "path_not_allowed"),
        ("out", "path_not_allowed"),
        ("/etc", "path_not_allowed"),
        ("", "path_not_allowed"),
        ("a\0b", "path_not_allowed"),
    ):
        answer = post(served, PATHS[1], lora_name="new", lora_path=path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), (path, answer.text)
        assert str(outside) not in answer.text and "glider-adapter-" not in answer.text
        assert code != "no_such_directory" or "no directory 'nothing'" in answer.json()["error"]["message"]
    for name in ("e1", "tiny", "tiny-llama", "../x", "<img onerror>"):
        assert post(served, PATHS[1], lora_name=name, lora_path="e9").status_code == 400
    stale = post(served, PATHS[1], lora_name="e9", lora_path="e9", expected_generation=7)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "generation_mismatch")
    assert post(served, PATHS[2], lora_name="nobody").status_code == 404
    edit_json(own_pool / "e2" / "card.json", task="tampered with")
    broken = post(served, PATHS[0])
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "change_failed")
    assert str(outside) not in broken.text
    assert ask(served).glider["generation"] == 1
    assert ids(served) == before


def test_changes_are_off_unless_allowed(server: Served) -> None:
    for path in PATHS:
        body = {"lora_name": "x"} if path != PATHS[0] else {}
        body |= {"lora_path": "x"} if path == PATHS[1] else {}
        answer = post(server, path, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "changes_not_allowed")


def test_changes_need_their_right(serve: Serve, tmp_path: Path) -> None:
    keys = key_file(tmp_path / "keys", {"name": "ann"}, {"name": "ops", "rights": ["ask", "change"]})
    served = serve("--api-key-file", keys, "--allow-changes")
    assert [card["allow_changes"] for card in (pool_card(served, "ann"), pool_card(served, "ops"))] == [False, True]
    assert post(served, PATHS[0], "ann").status_code == 403
    assert post(served, PATHS[0], "ops").json()["generation"] == 2
    (refused, done) = change_lines(served)
    assert (refused["key"], refused["outcome"], refused["code"]) == ("ann", "refused", "missing_right")
    assert (done["key"], done["outcome"], done["before"], done["after"]) == ("ops", "done", 1, 2)


def test_each_change_is_a_line_of_the_log(served: Served) -> None:
    """Who loaded an adapter, and whether it came, was told nowhere but in the reply."""
    post(served, PATHS[1], lora_name="e9", lora_path="e9")
    post(served, PATHS[1], lora_name="mine", lora_path="bare")
    post(served, PATHS[1], lora_name="new", lora_path="../secret")
    post(served, PATHS[0], expected_generation=7)
    post(served, PATHS[2], lora_name="mine")
    post(served, PATHS[2], lora_name="e9")
    fields = ("change", "adapter", "outcome", "code", "before", "after", "routed")
    assert [tuple(line[field] for field in fields) for line in change_lines(served)] == [
        (PATHS[1], "e9", "done", None, 1, 2, True),
        (PATHS[1], "mine", "done", None, 2, 3, False),
        (PATHS[1], "new", "refused", "path_not_allowed", 2, 2, None),
        (PATHS[0], None, "refused", "generation_mismatch", 2, 2, None),
        (PATHS[2], "mine", "done", None, 2, 2, None),
        (PATHS[2], "e9", "done", None, 2, 4, None),
    ]
    assert {(line["pool"], line["key"]) for line in change_lines(served)} == {("tiny", "anybody")}
    assert "secret" not in served.log.read_text("utf8")


def test_gains_are_read_once_a_generation(served: Served, own_pool: Path) -> None:
    """Each look at the pool read them from disk."""
    store_gains(Pool.open(own_pool), {"e1": Gain(metric="accuracy", rows=8, base=0.25, alone=0.5)})
    card = pool_card(served)
    assert card["experts"][1]["gain"] == {"metric": "accuracy", "rows": 8, "base": 0.25, "alone": 0.5}
    (own_pool / GAINS_FILE).unlink()
    assert pool_card(served) == card
    assert post(served, PATHS[0]).status_code == 200
    assert "gain" not in pool_card(served)["experts"][1]


def test_one_change_at_a_time(served: Served) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(post(served, PATHS[0]).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 429}
    assert 200 in codes
