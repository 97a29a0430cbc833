"""One decision per query, from the mean of the prompt's token scores."""

from pathlib import Path

import pytest
import torch

from glider.contribute.fewshot_fits import fit_of
from glider.evaluation.run_plan import cell_key
from glider.inference.spec import load
from glider.routing.base import routers
from glider.routing.preparation import name_of
from glider.routing.specification import router_from


def test_every_token_of_a_query_has_the_decision_of_the_mean(make_pool, base_directory: Path) -> None:
    pool = make_pool(base_directory)
    by_query = load(str(base_directory), pool.path, router="phatgoose-query")
    _, trace = by_query.trace("a prompt")
    _, by_token = load(str(base_directory), pool.path, router="phatgoose").trace("a prompt")
    scores = torch.cat([call.decision.scores for call in by_token.calls if call.decision.scores is not None])
    wanted = scores.mean(dim=0).topk(2).indices.tolist()
    for call in trace.calls:
        assert all(row == wanted for row in call.decision.experts.tolist())


def test_a_mixed_batch_equals_its_queries_one_by_one(make_pool, base_directory: Path) -> None:
    pool = make_pool(base_directory)
    model = load(str(base_directory), pool.path, router="phatgoose-query")
    prompts = ["one", "a longer second prompt", "3"]
    together = model.generate(prompts, max_new_tokens=4, trace=True)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = model.generate([prompt], max_new_tokens=4, trace=True)
        assert alone.token_ids == answer.token_ids
        assert alone.usage == pytest.approx(answer.usage, abs=1e-4)


def test_absent_experts_are_not_chosen(make_pool, llama_directory: Path, grow_pool) -> None:
    pool = make_pool(llama_directory, experts=2, sites=["model.layers.0.mlp.up_proj"])
    model = load(str(llama_directory), grow_pool(pool, llama_directory, "all").path, router="phatgoose-query")
    _, trace = model.trace("prompt")
    for call in trace.calls:
        if call.site != "model.layers.0.mlp.up_proj":
            weights = trace.weights(call)[0]
            assert torch.all(weights[:, :2] == 0)


def test_the_former_name_is_an_alias_under_which_kept_results_are_read() -> None:
    assert router_from("tasklevel", {"top_k": 3}) == router_from("phatgoose-query", {"top_k": 3})
    assert name_of(router_from("tasklevel", {})) == "phatgoose-query"
    assert "tasklevel" not in {entry.name for entry in routers}
    assert routers.settings("tasklevel") == {"select", "local_scale"} and fit_of("tasklevel", {}) is None
    keys = {
        cell_key({"router": {"router": name, "settings": {}}, "task": {"name": "t"}}, {"pool": "0"})
        for name in ("tasklevel", "phatgoose-query")
    }
    assert len(keys) == 1
    assert keys == {"cee18d2d4fe4ac7721bbe644de6262a76a6741a53adf93a7dec9898a1eab7dbf"}  # as an earlier version made it
