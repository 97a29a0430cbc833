"""GLIDER and PHATGOOSE: one alpha for each query, the sum of both terms, what a pool must have."""

from pathlib import Path

import pytest
import torch

from glider.errors import PoolError, RouterError
from glider.experts.card import EmbedderIdentity
from glider.experts.pool import Calibration, Pool
from glider.routing.base import GlobalTerm, Prepared, QueryFeatures, Router, Site, routers
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.scores import local_scores, standardise
from glider.routing.select import TopK, TopP
from glider.routing.signals.instruction import THRESHOLDS, Cosines

ONE_SITE = ["model.layers.0.self_attn.q_proj"]


def prepared_with(p: float, gamma: float = 100.0, beta: float = 3.0) -> Prepared:
    """Two experts whose instructions are the axes of a plane."""
    return Prepared((), {}, GlobalTerm(Cosines(torch.eye(2)), p, gamma, beta))


def queries_at(*cosines: float) -> QueryFeatures:
    """Queries (not of unit length) with these cosines to expert 0, and a negative one to expert 1."""
    return QueryFeatures(len(cosines), torch.tensor([[5 * c, -5 * (1 - c * c) ** 0.5] for c in cosines]))


def random_site(experts: int, width: int) -> Site:
    gates = torch.randn(experts, width, generator=torch.Generator().manual_seed(0))
    return Site("s", torch.zeros(experts, dtype=torch.bool), {"gates": standardise(gates)})


def test_alpha_is_103_above_the_threshold_and_3_below_for_each_row() -> None:
    condition = Glider().condition(prepared_with(p=0.8), queries_at(0.9, 0.5, 0.81, 0.79))
    assert condition.alpha.tolist() == [103, 3, 103, 3]
    torch.testing.assert_close(condition.global_scores[:, 0], torch.tensor([0.9, 0.5, 0.81, 0.79]))
    torch.testing.assert_close(condition.term, condition.alpha[:, None] * condition.global_scores)


def test_a_score_that_only_meets_the_threshold_is_not_above_it() -> None:
    assert Glider().condition(prepared_with(p=1.0), QueryFeatures(1, torch.tensor([[1.0, 0.0]]))).alpha.tolist() == [3]


def test_gamma_and_beta_are_the_formulas() -> None:
    condition = Glider().condition(prepared_with(p=0.8, gamma=10.0, beta=-1.0), queries_at(0.9, 0.5))
    assert condition.alpha.tolist() == [9, -1]


@pytest.mark.parametrize("select", [TopK(2), TopK(1), TopP(0.6)], ids=str)
@pytest.mark.parametrize("scale", ["width", "experts"])
def test_glider_adds_both_terms_before_selecting(select: TopK | TopP, scale: str) -> None:
    x, term = torch.randn(5, 16), 4 * torch.randn(5, 3)
    site = random_site(3, 16)
    got = Glider(select, p=0.8, local_scale=scale).route(site, x, term)  # pyright: ignore
    wanted = select(local_scores(x, site, scale) + term)  # pyright: ignore
    assert torch.equal(got.experts, wanted.experts)
    assert torch.equal(got.weights, wanted.weights)
    assert torch.equal(got.scores, wanted.scores)  # pyright: ignore


def test_glider_without_a_condition_is_phatgoose() -> None:
    x, site = torch.randn(5, 16), random_site(3, 16)
    got, wanted = Glider(p=0.8).route(site, x, None), Phatgoose().route(site, x, None)
    assert torch.equal(got.experts, wanted.experts)
    assert torch.equal(got.weights, wanted.weights)


def test_an_absent_expert_is_not_brought_back_by_the_global_term() -> None:
    site = random_site(3, 8)
    site = Site("s", torch.tensor([False, True, False]), site.tensors)
    term = torch.tensor([[0.0, 103.0, 0.0]]).expand(4, 3)
    decision = Glider(p=0.8).route(site, torch.randn(4, 8), term)
    assert (decision.weights[decision.experts == 1] == 0).all()


def test_a_strong_global_term_overrules_every_token() -> None:
    term = torch.tensor([[0.0, 0.0, 90.0]]).expand(20, 3)
    decision = Glider(p=0.8).route(random_site(3, 16), torch.randn(20, 16), term)
    assert (decision.experts[:, 0] == 2).all()
    torch.testing.assert_close(decision.weights[:, 0], torch.ones(20))


def test_constants_come_from_settings_then_calibration_then_the_paper(llama_directory: Path, make_pool) -> None:
    pool: Pool = make_pool(llama_directory, 2, sites=ONE_SITE)
    assert constants(Glider(), pool) == (THRESHOLDS["all-MiniLM-L6-v2"], 100, 3)
    pool = pool.calibrate("instruction", Calibration(p=0.4, gamma=50, beta=2, source="test"))
    assert constants(Glider(), pool) == (0.4, 50, 2)
    assert constants(Glider(p=0.7, beta=0.0), pool) == (0.7, 50, 0)
    assert constants(Glider(gamma=0.0), Pool.open(pool.path)) == (0.4, 0, 2)


def test_an_embedder_without_a_known_threshold_needs_one(llama_directory: Path, make_pool) -> None:
    unknown = EmbedderIdentity(embedder="somebody/new", dimension=4, probe=(0.0,))
    pool = make_pool(llama_directory, 1, sites=ONE_SITE, embedder=unknown)
    with pytest.raises(RouterError, match="somebody/new"):
        Glider().prepare(pool)
    assert constants(Glider(p=0.5), pool) == (0.5, 100, 3)


def test_instructions_are_prepared_at_unit_length(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=ONE_SITE)
    term = Glider().prepare(pool).global_term
    assert term is not None
    assert isinstance(term.scores, Cosines)
    torch.testing.assert_close(term.scores.instructions.norm(dim=-1), torch.ones(3))
    for row, expert in zip(term.scores.instructions, pool, strict=True):
        assert torch.cosine_similarity(row, expert.instruction, dim=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("router", [Glider(p=0.8), Phatgoose()], ids=["glider", "phatgoose"])
def test_an_expert_without_gates_is_named(llama_directory: Path, make_pool, grow_pool, router: Router) -> None:
    pool = make_pool(llama_directory, 1, sites=ONE_SITE)
    pool = grow_pool(pool, llama_directory, "bare", sites=ONE_SITE, gates=False)
    with pytest.raises(RouterError, match=r"gate.*none in bare\."):
        router.prepare(pool)


def test_an_expert_without_instruction_is_named_and_phatgoose_serves_it(
    llama_directory: Path, make_pool, grow_pool
) -> None:
    pool = make_pool(llama_directory, 1, sites=ONE_SITE)
    pool = grow_pool(pool, llama_directory, "mute", sites=ONE_SITE, embedder=None)
    with pytest.raises(RouterError, match=r"instruction.*none in mute\."):
        Glider().prepare(pool)
    prepared = Phatgoose().prepare(pool)
    assert prepared.global_term is None
    assert Phatgoose().condition(prepared, QueryFeatures(1, torch.zeros(1, 4))).term is None


def test_glider_refuses_an_empty_pool(llama_directory: Path, make_pool) -> None:
    with pytest.raises(RouterError, match="empty"):
        Glider().prepare(make_pool(llama_directory, 0))


def test_single_names_the_experts_it_could_have_been(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2, sites=ONE_SITE)
    with pytest.raises(PoolError, match="e0, e1"):
        routers.create("single:nobody").prepare(pool)


def constants(router: Glider, pool: Pool) -> tuple[float, float, float]:
    term = router.prepare(pool).global_term
    assert term is not None
    return term.p, term.gamma, term.beta
