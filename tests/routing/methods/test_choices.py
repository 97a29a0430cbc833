"""Token choice, expert choice and Soft MoE: their formulas in plain loops, and prompts decided each by itself."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import KernelError, QueryError, RouterError
from glider.experts.pool import Pool
from glider.inference.spec import load
from glider.layers.bank import Bank
from glider.layers.kernels.grouped import add_slots
from glider.layers.kernels.reference import apply_slots
from glider.routing.base import Decision, Site, SlotDecision
from glider.routing.methods.expert_choice import ExpertChoice
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.methods.soft_moe import SoftMoe
from glider.routing.methods.token_choice import TokenChoice
from glider.routing.specification import parsed, router_from
from glider.routing.transport import sinkhorn

Q = "model.layers.0.self_attn.q_proj"
WHOLE = ["token-choice(normalise=sinkhorn)", "expert-choice", "expert-choice(normalise=sinkhorn)"]
WHOLE += ["expert-choice(normalise=sparse)", "soft-moe", "expert-choice(local=spectr,capacity=1.0)"]
PROMPTS = ["one", "a longer second prompt", "3", "sort 3 1 2 and tell"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pool(base_directory: Path, make_pool, grow_pool) -> Pool:
    """Three experts; the last one adapts half of the sites."""
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, rank=2, alpha=8.0, sites=pool.sites[::2])


def dense(decision: Decision | SlotDecision, experts: int) -> torch.Tensor:
    assert isinstance(decision, Decision)
    return torch.zeros(len(decision.weights), experts).scatter_add(1, decision.experts, decision.weights)


def site_of(pool: Pool, router, name: str) -> Site:
    return router.prepare(pool).sites[name]


def test_each_expert_takes_its_best_tokens(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    router = ExpertChoice(capacity=1.5)
    site, x = site_of(pool, router, Q), torch.randn(9, 32)
    sequence_of = torch.tensor([0, 0, 0, 0, 0, 1, 1, -1, 2])
    got = dense(router.route_sequences(site, x, None, sequence_of), 3)
    weights = Phatgoose().local_score().scores(x, site).softmax(dim=-1)
    wanted = torch.zeros(9, 3)
    for tokens in ([0, 1, 2, 3, 4], [5, 6]):
        most = ceil(1.5 * len(tokens) / 3)
        for expert in range(3):
            for token in sorted(tokens, key=lambda t: -weights[t, expert])[:most]:
                wanted[token, expert] = weights[token, expert]
    alone = weights[8].topk(2)  # a capacity of 1.5 experts a token
    wanted[8, alone.indices] = alone.values
    torch.testing.assert_close(got, wanted)
    assert (got[7] == 0).all() and ((got > 0).sum(dim=0) <= 3 + 1 + 1).all()


def test_sinkhorn_token_choice_uses_the_experts_of_a_prompt_evenly(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    router = TokenChoice(normalise="sinkhorn", k=1, iterations=200)
    site = site_of(pool, router, Q)
    x = torch.randn(1, 32) + 0.3 * torch.randn(30, 32)  # alike, so that one expert would win nearly all of them
    got = dense(router.route_sequences(site, x, None, torch.zeros(30, dtype=torch.long)), 3)
    plan = sinkhorn(Phatgoose().local_score().scores(x, site), 200)
    best = plan.argmax(dim=-1)
    torch.testing.assert_close(got, torch.zeros(30, 3).scatter(1, best[:, None], plan.gather(1, best[:, None])))
    by_token = dense(TokenChoice(k=1).route(site, x, None), 3)
    assert (got > 0).sum(dim=0).max() < (by_token > 0).sum(dim=0).max()


def test_softmax_token_choice_with_renormalised_weights_is_phatgoose(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    router, x = TokenChoice(renormalise=True), torch.randn(9, 32)
    wanted = dense(Phatgoose().route(site_of(pool, Phatgoose(), Q), x, None), 3)
    torch.testing.assert_close(dense(router.route(site_of(pool, router, Q), x, None), 3), wanted)
    raw = dense(TokenChoice(k=3).route(site_of(pool, router, Q), x, None), 3)
    torch.testing.assert_close(raw.sum(dim=-1), torch.ones(9))


@pytest.mark.parametrize("apply", [apply_slots, add_slots])
def test_soft_moe_is_its_formula(llama_directory: Path, make_pool, apply) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    router = SoftMoe()
    site, x = site_of(pool, router, Q), torch.randn(6, 32)
    decision = router.route_sequences(site, x, None, torch.tensor([0, 0, 0, 1, 1, -1]))
    assert isinstance(decision, SlotDecision)
    got = apply(x, decision, Bank.of(Q, pool.experts, torch.float32))
    scores = Phatgoose().local_score().scores(x, site)
    wanted = torch.zeros(6, 32)
    for tokens in ([0, 1, 2], [3, 4]):
        for e, expert in enumerate(pool):
            a, b = expert.factors(Q)
            shares = [scores[u, e].exp() / sum(scores[v, e].exp() for v in tokens) for u in tokens]
            slot = sum(share * x[u] for share, u in zip(shares, tokens, strict=True))
            output = expert.scaling(Q) * b.float() @ (a.float() @ slot)
            for t in tokens:
                wanted[t] += scores[t, e].exp() / scores[t].exp().sum() * output
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def token_ids(model, prompts: Sequence[str], **settings) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in model.generate(prompts, max_new_tokens=5, **settings)]


@pytest.mark.parametrize("text", WHOLE)
def test_prompts_are_decided_each_by_itself(base_directory: Path, pool: Pool, text: str) -> None:
    model = load(str(base_directory), pool.path, router=router_from(*parsed(text)))
    alone = [token_ids(model, [prompt])[0] for prompt in PROMPTS]
    assert token_ids(model, PROMPTS) == alone
    assert [answer.token_ids for answer in model.generate_batch(PROMPTS, max_new_tokens=5)] == alone
    beams = [token_ids(model, [prompt], num_beams=3)[0] for prompt in PROMPTS]
    assert token_ids(model, PROMPTS, num_beams=3) == beams
    choices = [["yes", "no, never"], ["a", "b", "cd"]]
    together, _ = model.score_many(PROMPTS[:2], choices)
    for prompt, own, scored in zip(PROMPTS, choices, together, strict=False):
        for one, choice in zip(model.score(prompt, own), scored, strict=True):
            assert one.log_likelihood == pytest.approx(choice.log_likelihood, abs=2e-3)
        (single,) = model.score(prompt, own[:1])
        assert single.log_likelihood == pytest.approx(scored[0].log_likelihood, abs=2e-3)


@pytest.mark.parametrize("text", ["expert-choice", "soft-moe"])
def test_a_score_is_the_likelihood_of_what_generation_writes(llama_directory: Path, make_pool, text: str) -> None:
    """The prompt's decisions are the same whether an answer follows in the pass or on the cache."""
    pool = make_pool(llama_directory, 3)
    model = load(str(llama_directory), pool.path, router=text)
    _, trace = model.generate_traced(["a prompt of some words"], max_new_tokens=3)
    first = [call for call in trace.calls if call.index == 0]
    later = [call for call in trace.calls if call.index == 2]
    assert all(len(call.decision.experts) > 1 for call in first) and all(len(c.decision.experts) == 1 for c in later)
    _, read = model.trace("a prompt of some words")
    for one, other in zip(first, read.calls, strict=True):
        torch.testing.assert_close(trace.weights(one), read.weights(other), atol=1e-4, rtol=1e-3)


def test_what_a_decoder_writes_beside_an_encoder_stands_alone(t5_directory: Path, make_pool) -> None:
    pool = make_pool(t5_directory, 3)
    router = ExpertChoice(capacity=1.0)
    model = load(str(t5_directory), pool.path, router=router)
    _, trace = model.generate_traced(["one", "a longer second prompt"], max_new_tokens=4)
    for call in trace.calls:
        weights = trace.weights(call)
        if call.site.startswith("decoder"):
            assert ((weights > 0).sum(dim=-1) == 1).all()  # one expert a token
        else:
            real = trace.prompt_mask
            counts = (weights > 0).sum(dim=1)  # tokens of each expert, by row
            assert (weights[~real] == 0).all()
            assert (counts == torch.ceil(real.sum(dim=1, keepdim=True) / 3)).all()


def test_what_would_break_a_prompt_is_refused(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    model = load(str(llama_directory), pool.path, router="expert-choice")
    with pytest.raises(QueryError, match="tells a prompt from its answer"):
        model.generate(["one"], max_new_tokens=2, use_cache=False)
    with pytest.raises(QueryError, match="in one pass"):
        model.generate(["one"], max_new_tokens=2, prefill_chunk_size=2)
    with pytest.raises(QueryError, match="a call of a part"):
        model.model.model(torch.tensor([[5, 6, 7]]))
    model.detach()
    with pytest.raises(KernelError, match="mixes tokens"):
        load(str(llama_directory), pool.path, router="soft-moe", kernel="native").generate(["one"], max_new_tokens=1)


@pytest.mark.parametrize("own", [{"use_cache": False}, {"prefill_chunk_size": 3}], ids=str)
def test_the_bases_own_settings_break_no_prompt(llama_directory: Path, make_pool, own: dict[str, Any]) -> None:
    model = load(str(llama_directory), make_pool(llama_directory, 3).path, router="expert-choice")
    prompts = ["one", "a longer second prompt"]
    wanted = [answer.token_ids for answer in model.generate(prompts, max_new_tokens=8)]
    model.model.generation_config.update(**own)
    with pytest.raises(QueryError, match=next(iter(own))):
        model.generate(prompts, max_new_tokens=8)
    assert [answer.token_ids for answer in model.generate_batch(prompts, max_new_tokens=8)] == wanted


@pytest.mark.parametrize(
    "text", ["expert-choice(capacity=0.0)", "expert-choice(normalise=sparse,capacity=0.5)", "token-choice(k=0)"]
)
def test_settings_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(RouterError):
        router_from(*parsed(text))


@pytest.mark.parametrize("text", [*WHOLE[:4], "soft-moe"])
def test_an_expert_that_no_token_may_use_is_as_if_absent(llama_directory: Path, make_pool, text: str) -> None:
    """LAG's score is minus infinity for experts that are not its candidates."""
    pool = make_pool(llama_directory, 4, sites=[Q])
    name, settings = parsed(text)
    router = router_from(name, {**settings, "local": "lag", "local_settings": {"candidates": 1}})
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(1.0, 2.0, 5)[:, None]
    site = site_of(pool, router, Q)
    decision = router.route_sequences(site, x, None, torch.zeros(5, dtype=torch.long))  # pyright: ignore
    weights = decision.token_weights(4) if isinstance(decision, SlotDecision) else dense(decision, 4)
    assert (weights > 0).any(dim=0).sum() == 1
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5), atol=1e-4, rtol=0)
