"""Several pools over one base model, and keys that see some of them."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import openai
import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import ModelSpec

from ..conftest import write_random_expert
from .conftest import Serve, Served
from .test_limits import key_file

TEXT = "the f0 f03 and f07"
ROUTER = "glider(global=examples, p=-1.0)"


@pytest.fixture
def other_pool(llama_directory: Path, embedder_identity: Any, tmp_path: Path) -> Path:
    """Two experts at fewer sites."""
    base = load_base(str(llama_directory))
    pool = Pool.create(tmp_path / "other", base.identity)
    sites = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    for number in range(2):
        directory = pool.path / f"f{number}"
        write_random_expert(directory, base, seed=20 + number, sites=sites, embedder=embedder_identity, profile=True)
        pool = pool.add(f"f{number}")
    return pool.path


@pytest.fixture
def served(serve: Serve, pool_directory: Path, other_pool: Path, tmp_path: Path) -> Served:
    """Two pools, keys that see one of them each, and some that see both."""
    keys = key_file(
        tmp_path / "keys",
        {"name": "ann", "pools": ["a"], "rights": ["ask", "trace", "change"]},
        {"name": "bob", "pools": ["b"]},
        {"name": "eve", "pools": ["b"], "rights": ["ask", "change", "metrics"]},
        {"name": "both"},
        {"name": "all", "rights": ["ask", "change", "metrics"]},
        {"name": "team-1", "cache": "team"},
        {"name": "team-2", "cache": "team"},
    )
    return serve(
        "--pool", f"a={pool_directory}", "--pool", f"b={other_pool}", "--api-key-file", keys, "--allow-changes"
    )


def test_pools_share_passes_and_nothing_else(
    served: Served, pool_directory: Path, other_pool: Path, llama_directory: Path
) -> None:
    turns: list[Any] = [{"role": "user", "content": TEXT}]
    asking: dict[str, Any] = {"messages": turns, "temperature": 0, "max_tokens": 12}
    asking["extra_body"] = {"return_token_ids": True}

    def ids(key: str, model: str) -> list[int]:
        return served.client(key).chat.completions.create(model=model, **asking).choices[0].token_ids  # pyright: ignore

    def in_process(pool: Path, router: str) -> list[int]:
        spec = ModelSpec(base=str(llama_directory), pool=str(pool), router=router)
        return list(spec.load().generate([TEXT], max_new_tokens=12)[0].token_ids)

    wanted = {"a": in_process(pool_directory, ROUTER), "b": in_process(other_pool, ROUTER)}
    assert wanted["a"] != wanted["b"]
    assert ids("both", "a") == ids("ann", "a") == wanted["a"]
    assert ids("both", "b") == ids("bob", "b") == wanted["b"]
    assert ids("bob", "b/f1") == in_process(other_pool, "single:f1")
    assert ids("ann", "tiny-llama") == ids("bob", "tiny-llama")

    mine = {model.id for model in served.client("bob").models.list()}
    assert mine == {"b", "b/f0", "b/f1", "tiny-llama"}
    for model in ("a", "a/e0", "a:phatgoose", "e0", "f0"):
        with pytest.raises(openai.NotFoundError):
            ids("bob", model)
    for path, body in (
        ("/v1/route", {"model": "a", "prompt": TEXT}),
        ("/v1/embeddings", {"model": "a", "input": TEXT}),
        ("/tokenize", {"model": "a", "prompt": TEXT}),
    ):
        answer = httpx.post(f"{served.url}{path}", json=body, headers={"authorization": "Bearer bob"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), path
    told = httpx.get(f"{served.url}/v1/pool", headers={"authorization": "Bearer bob"}).text
    assert [pool["id"] for pool in json.loads(told)["data"]] == ["b"]
    assert "e0" not in told
    assert httpx.get(f"{served.url}/metrics", headers={"authorization": "Bearer bob"}).status_code == 403

    reload = httpx.post(f"{served.url}/v1/pool/reload", json={"model": "b"}, headers={"authorization": "Bearer ann"})
    assert reload.status_code == 404
    reload = httpx.post(f"{served.url}/v1/pool/reload", json={}, headers={"authorization": "Bearer ann"})
    assert (reload.status_code, reload.json()["id"]) == (200, "a")
    assert ids("ann", "a") == wanted["a"]
    assert ids("bob", "b") == wanted["b"]


def asked(served: Served, key: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    if body is None:
        return httpx.get(f"{served.url}{path}", headers=headers, timeout=60)
    return httpx.post(f"{served.url}{path}", json=body, headers=headers, timeout=60)


def test_a_key_learns_nothing_of_what_others_asked(served: Served) -> None:
    """A prompt that another key had asked before came from the cache, and `usage` says so."""

    def cached(key: str, model: str) -> int:
        turns: list[Any] = [
            {"role": "user", "content": "My secret is the e1, the e11, the e17, and f0 twice over." * 2}
        ]
        answer = served.client(key).chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=2)
        return answer.usage.prompt_tokens_details.cached_tokens  # pyright: ignore

    for model in ("tiny-llama", "b/f1"):
        assert cached("bob", model) == 0
        assert cached("bob", model) > 0
        assert cached("eve", model) == 0
        assert cached("both", model) == 0
    assert cached("team-1", "b/f1") == 0
    assert cached("team-2", "b/f1") > 0


def test_metrics_of_a_key_are_those_of_its_pools(served: Served) -> None:
    """Whoever had the right saw the models, verdicts and counts of all."""
    for model in ("a", "a/e2", "tiny-llama"):
        assert asked(served, "ann", "/v1/completions", {"model": model, "prompt": TEXT, "max_tokens": 2}).is_success
    for model in ("b/f1", "tiny-llama"):  # the base's were counted for the first pool that their keys see
        assert asked(served, "bob", "/v1/completions", {"model": model, "prompt": TEXT, "max_tokens": 2}).is_success
    text = asked(served, "eve", "/metrics").text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert any('model_name="b/f1"' in line for line in samples)
    assert samples and all('"b/f1"' in line or '"b"' in line for line in samples), text
    assert 'verdict="base"' not in text and 'glider:routing_seconds_count{pool="b"} 1.0' in text
    everything = asked(served, "all", "/metrics").text
    assert 'model_name="a/e2"' in everything and "vllm:num_requests_running" in everything
    assert 'glider:requests_total{pool="tiny-llama",verdict="base"} 2.0' in everything


def test_changes_of_one_pool_show_in_no_other(served: Served, other_pool: Path) -> None:
    """Generations were counted through all pools, and names of others' models were refused as taken."""
    for _ in range(3):
        assert asked(served, "ann", "/v1/pool/reload", {}).is_success
    reloaded = asked(served, "eve", "/v1/pool/reload", {"expected_generation": 1})
    assert (reloaded.status_code, reloaded.json()["generation"]) == (200, 2), reloaded.text
    (card,) = asked(served, "eve", "/v1/pool").json()["data"]
    assert card["generation"] == 2
    asking = {"model": "b", "prompt": TEXT, "max_tokens": 1}
    assert asked(served, "eve", "/v1/completions", asking).json()["glider"]["generation"] == 2
    for name in ("a", "e0", "tiny-llama"):
        loaded = asked(served, "eve", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": "f1"})
        assert (loaded.status_code, loaded.json().get("id")) == (200, f"b/{name}"), loaded.text
    assert asked(served, "eve", "/v1/load_lora_adapter", {"lora_name": "f0", "lora_path": "f1"}).status_code == 400


def test_the_base_names_no_pool_to_change(served: Served) -> None:
    """By the base's name the first pool was reloaded, whichever was meant."""
    answer = asked(served, "all", "/v1/pool/reload", {"model": "tiny-llama"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert asked(served, "eve", "/v1/pool/reload", {"model": "tiny-llama"}).json()["id"] == "b"


SPELLINGS = ("a", "A", "a/e0", "a/f0", "a:phatgoose", "b/../a", "b/e0", "\uff41", "a\u200b", "b/%2e%2e/a")


def test_names_in_other_spellings_are_no_models(served: Served) -> None:
    for name in SPELLINGS:
        refused_everywhere(served, name)


def refused_everywhere(served: Served, name: str) -> None:
    spelt = {"model": name, "prompt": TEXT, "max_tokens": 1}
    turns = [{"role": "user", "content": TEXT}]
    for path, body in (
        ("/v1/completions", spelt),
        ("/v1/chat/completions", {"model": name, "messages": turns}),
        ("/v1/responses", {"model": name, "input": TEXT}),
        ("/v1/route", {"model": name, "prompt": TEXT}),
        ("/v1/embeddings", {"model": name, "input": TEXT}),
        ("/tokenize", {"model": name, "prompt": TEXT}),
        ("/detokenize", {"model": name, "tokens": [1]}),
        ("/v1/pool/reload", {"model": name}),
        ("/v1/unload_lora_adapter", {"model": name, "lora_name": "e0"}),
    ):
        answer = asked(served, "eve", path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model"), (path, answer.text)
        assert "e1" not in answer.text and "e2" not in answer.text
    assert asked(served, "eve", f"/v1/models/{quote(name, safe='')}").status_code == 404
    steered = {"model": "b", "prompt": TEXT, "max_tokens": 1, "glider": {"exclude": [name]}}
    assert asked(served, "eve", "/v1/completions", steered).status_code == 400
