"""One decision per query, from the mean of the prompt's token scores."""

from pathlib import Path

import pytest
import torch

from glider.inference.spec import load


def test_every_token_of_a_query_has_the_decision_of_the_mean(make_pool, base_directory: Path) -> None:
    pool = make_pool(base_directory)
    by_query = load(str(base_directory), pool.path, router="tasklevel")
    _, trace = by_query.trace("a prompt")
    _, by_token = load(str(base_directory), pool.path, router="phatgoose").trace("a prompt")
    scores = torch.cat([call.decision.scores for call in by_token.calls if call.decision.scores is not None])
    wanted = scores.mean(dim=0).topk(2).indices.tolist()
    for call in trace.calls:
        assert all(row == wanted for row in call.decision.experts.tolist())


def test_a_mixed_batch_equals_its_queries_one_by_one(make_pool, base_directory: Path) -> None:
    pool = make_pool(base_directory)
    model = load(str(base_directory), pool.path, router="tasklevel")
    prompts = ["one", "a longer second prompt", "3"]
    together = model.generate(prompts, max_new_tokens=4, trace=True)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = model.generate([prompt], max_new_tokens=4, trace=True)
        assert alone.token_ids == answer.token_ids
        assert alone.usage == pytest.approx(answer.usage, abs=1e-4)


def test_absent_experts_are_not_chosen(make_pool, llama_directory: Path, grow_pool) -> None:
    pool = make_pool(llama_directory, experts=2, sites=["model.layers.0.mlp.up_proj"])
    model = load(str(llama_directory), grow_pool(pool, llama_directory, "all").path, router="tasklevel")
    _, trace = model.trace("prompt")
    for call in trace.calls:
        if call.site != "model.layers.0.mlp.up_proj":
            weights = trace.weights(call)[0]
            assert torch.all(weights[:, :2] == 0)
