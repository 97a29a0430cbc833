"""LoGo, HiLoRA and per-task decisions against plain statements of what they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glider.contribute.fewshot_fits import PerTaskFit
from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import ModelSpec, load
from glider.routing.base import QueryFeatures
from glider.routing.methods.hilora import Hilora
from glider.routing.methods.logo import Logo
from glider.routing.methods.per_task import PerTask
from glider.routing.signals.base import signals
from glider.testing import check_router

PROMPT = "the e1 e13 and"  # in the words of the expert e1
PROMPTS = ["one", "a longer second prompt", "sort 3 1 2"]


def inputs_at(model, site: str, ids: torch.Tensor) -> torch.Tensor:
    """What a site of a model sees."""
    seen = []
    hook = model.get_submodule(site).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(ids)
    hook.remove()
    return seen[0][0]


@pytest.mark.parametrize("adapters", ["all", "none"])
@pytest.mark.parametrize("signal", ["norm", "entropy"])
def test_logo_weighs_adapters_by_their_answer_to_the_last_token(
    llama_directory: Path, make_pool, signal: Any, adapters: Any
) -> None:
    """By the rule of the authors' code: the pass that is probed has every adapter on, added to its weights here."""
    pool = make_pool(llama_directory, 4)
    model = load(str(llama_directory), pool.path, router=Logo(k=2, signal=signal, adapters=adapters))
    probe = "model.layers.1.self_attn.q_proj"
    _, trace = model.trace("a prompt")
    ids = torch.tensor([model.encoder.rows(["a prompt"], False, 0)[0]])
    probed = load_base(str(llama_directory)).model
    for expert in pool if adapters == "all" else ():
        for name in expert.sites:
            a, b = expert.factors(name)
            probed.get_submodule(name).weight.data += expert.scaling(name) * b.float() @ a.float()
    last = inputs_at(probed, probe, ids)[-1]
    told = []
    for expert in pool:
        a, b = expert.factors(probe)
        answer = expert.scaling(probe) * b.float() @ (a.float() @ last)
        chances = answer.softmax(dim=-1)
        told.append(answer.norm() if signal == "norm" else 1 / (1e-6 - (chances * chances.log()).sum()))
    s = torch.stack(told)
    wanted = torch.zeros(4).scatter(0, s.topk(2).indices, s.topk(2).values / s.topk(2).values.sum())
    for call in trace.calls:
        torch.testing.assert_close(trace.weights(call)[0], wanted.expand(ids.shape[1], -1), atol=1e-4, rtol=1e-3)


def test_logo_decides_each_prompt_of_a_batch_by_its_own_last_token(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 4)
    model = load(str(base_directory), pool.path, router="logo")
    together = model.generate(PROMPTS, max_new_tokens=4, trace=True)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = model.generate([prompt], max_new_tokens=4, trace=True)
        assert alone.token_ids == answer.token_ids and alone.usage == pytest.approx(answer.usage, abs=1e-4)


def test_logo_refuses_a_probe_that_an_expert_lacks(llama_directory: Path, make_pool, grow_pool) -> None:
    pool = grow_pool(make_pool(llama_directory, 2), llama_directory, "part", sites=["model.layers.0.mlp.up_proj"])
    with pytest.raises(RouterError, match="probe that all experts adapt"):
        Logo(probe="model.layers.1.self_attn.q_proj").prepare(pool)
    assert "up" in Logo().prepare(pool).sites["model.layers.0.mlp.up_proj"].tensors


@pytest.fixture
def profiled(pool_with_profiles) -> Pool:
    return pool_with_profiles(experts=3, rank=3)


@pytest.mark.parametrize(("parts", "share"), [(2, 0.9), (3, 0.01), (5, 0.01)])
def test_hilora_keeps_the_strongest_parts_of_each_adapter_that_the_query_picks(
    profiled: Pool, parts: int, share: float
) -> None:
    router = Hilora(parts=parts, share=share, sharpness=0.3)
    prepared = router.prepare(profiled)
    assert [expert.name for expert in prepared.experts][:4] == ["e0#0", "e0#1", "e0#2", "e1#0"]
    profile = profiled["e1"].profile
    assert profile is not None and profile.held_back_hidden is not None
    features = QueryFeatures(1, hidden=profile.held_back_hidden[:1].float())
    chances = (0.3 * signals.create("hidden").prepare(profiled).of(features)).softmax(dim=-1)[0]
    picked = chances * (chances >= share * chances.max())
    term = router.condition(prepared, features).term
    assert term is not None
    torch.testing.assert_close(term[0], (picked / picked.sum()).repeat_interleave(3))
    name = profiled.sites[0]
    x = torch.randn(1, profiled["e0"].sites[name].in_features)
    decision = router.route(prepared.sites[name], x, term)
    wanted = {}
    for number, (expert, own) in enumerate(zip(profiled, (picked / picked.sum()).tolist(), strict=True)):
        a, b = expert.factors(name)
        strengths = [float(b[:, i].norm() * (a[i] @ x[0]).abs() * expert.scaling(name)) for i in range(3)]
        count = min(3, max(1, round(parts * own))) if own > 0 else 0
        best = sorted(range(3), key=lambda i: -strengths[i])[:count]
        wanted |= {3 * number + i: own for i in best}
    pairs = zip(decision.experts[0].tolist(), decision.weights[0].tolist(), strict=True)
    assert {part: weight for part, weight in pairs if weight > 0} == pytest.approx(wanted)
    assert share > 0.5 or len({part // 3 for part in wanted}) > 1


def test_hilora_goes_through_the_kit(llama_directory: Path, profiled: Pool) -> None:
    check_router(Hilora(parts=3, global_="examples"), profiled, load_base(str(llama_directory)))


def test_all_parts_of_one_adapter_are_the_adapter(llama_directory: Path, profiled: Pool) -> None:
    model = load(str(llama_directory), profiled.path, router=Hilora(parts=9, share=1.0, global_="examples"))
    chosen = model.condition([PROMPT]).term
    assert chosen is not None
    name = profiled.names[int(chosen[0].argmax()) // 3]
    assert sorted(chosen[0].unique().tolist()) == [0.0, 1.0]
    answer = model.score(PROMPT, ["yes", "no"])
    model.detach()
    single = load(str(llama_directory), profiled.path, router=f"single:{name}").score(PROMPT, ["yes", "no"])
    for one, other in zip(answer, single, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_a_task_has_one_decision_from_its_few_rows(llama_directory: Path, profiled: Pool) -> None:
    base = load_base(str(llama_directory))
    rows = [Row.model_validate({"input": text, "output": "yes"}) for text in ("red green", "blue")]
    router, notes = PerTaskFit().fit(base, profiled, rows, global_="examples", k=2)
    asked = ModelSpec(router="glider", signal="examples").over(base, profiled)
    scores = asked.condition([row.input for row in rows]).global_scores
    asked.detach()
    assert scores is not None and notes["rows"] == 2
    assert router.scores == pytest.approx(dict(zip(profiled.names, scores.mean(dim=0).tolist(), strict=True)))
    model = ModelSpec(router=router).over(base, profiled)
    best = scores.mean(dim=0).topk(2).indices
    for prompt in ("anything", "another thing"):
        _, trace = model.trace(prompt)
        for call in trace.calls:
            weights = trace.weights(call)[0]
            torch.testing.assert_close(weights, torch.zeros(3).scatter(0, best, 0.5).expand_as(weights))
    model.detach()
    with pytest.raises(RouterError, match="few-shot rows"):
        PerTask().prepare(profiled)
