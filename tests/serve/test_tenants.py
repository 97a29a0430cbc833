"""Several pools over one base model, and keys that see some of them."""

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import ModelSpec

from ..conftest import write_random_expert
from .conftest import Serve
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


def test_pools_share_passes_and_nothing_else(
    serve: Serve, pool_directory: Path, other_pool: Path, llama_directory: Path, tmp_path: Path
) -> None:
    keys = key_file(
        tmp_path / "keys",
        {"name": "ann", "pools": ["a"], "rights": ["ask", "trace", "change"]},
        {"name": "bob", "pools": ["b"]},
        {"name": "both"},
    )
    served = serve(
        "--pool", f"a={pool_directory}", "--pool", f"b={other_pool}", "--api-key-file", keys, "--allow-changes"
    )
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
