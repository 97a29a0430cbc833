"""SpectR scores by the length of what an adapter adds; its decisions keep the contract."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.routing.base import Site, routers
from glider.routing.local_scores.spectr import SpectralNorm
from glider.routing.methods.glider import Glider
from glider.routing.methods.spectr import Spectr
from glider.routing.select import TopK

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mixed(llama_directory: Path, make_pool, grow_pool) -> Pool:
    """Experts of unlike ranks, scalings and sites."""
    pool = make_pool(llama_directory, 1, rank=3, alpha=6.0, sites=[Q, DOWN])
    pool = grow_pool(pool, llama_directory, "e1", rank=5, alpha=1.0, seed=1, sites=[DOWN])
    return grow_pool(pool, llama_directory, "e2", rank=40, seed=2, sites=[Q, DOWN], dtype=torch.bfloat16)


def test_the_score_is_the_length_of_what_the_adapter_adds(mixed: Pool) -> None:
    for name, site in Spectr().prepare(mixed).sites.items():
        x = torch.randn(6, mixed["e0"].sites[name].in_features)
        scores = SpectralNorm().scores(x, site)
        for column, expert in enumerate(mixed):
            if name not in expert.sites:
                assert (scores[:, column] == -torch.inf).all()
                continue
            a, b = (factor.float() for factor in expert.factors(name))
            added = expert.scaling(name) * (x @ a.T @ b.T)
            torch.testing.assert_close(scores[:, column], added.norm(dim=-1), atol=1e-4, rtol=1e-4)


def test_the_score_is_that_of_the_materialised_products_spectrum(mixed: Pool) -> None:
    site, expert = Spectr().prepare(mixed).sites[DOWN], mixed["e1"]
    a, b = expert.factors(DOWN)
    spectrum = torch.linalg.svd(expert.scaling(DOWN) * (b @ a))
    x = torch.randn(6, 48)
    wanted = (x @ (spectrum.S[:5, None] * spectrum.Vh[:5]).T).norm(dim=-1)
    torch.testing.assert_close(SpectralNorm().scores(x, site)[:, 1], wanted, atol=1e-4, rtol=1e-4)


def test_a_site_moves_whole(mixed: Pool) -> None:
    site = Spectr().prepare(mixed).sites[DOWN]
    moved = site.to(torch.device("meta"))
    assert moved["basis"].device.type == moved.absent.device.type == "meta"


@settings(deadline=None, derandomize=True)
@given(
    st.data(), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.integers(1, 7),
    st.booleans(),
)  # fmt: skip
def test_decisions_keep_the_contract(
    data: st.DataObject, tokens: int, experts: int, directions: int, width: int, k: int, conditioned: bool
) -> None:
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    present = data.draw(st.integers(0, experts - 1))
    absent = torch.tensor([i != present and data.draw(st.booleans()) for i in range(experts)])
    basis = torch.randn(experts, directions, width, generator=chance)
    basis[absent] = 0
    x = 30 * torch.randn(tokens, width, generator=chance)
    term = 100 * torch.randn(tokens, experts, generator=chance) if conditioned else None
    router = Glider(TopK(k), p=0.5, local="spectr") if conditioned else Spectr(TopK(k))
    decision = router.route(Site("s", absent, {"basis": basis}), x, term)
    assert decision.experts.shape == decision.weights.shape == (tokens, min(k, experts))
    assert ((decision.experts >= 0) & (decision.experts < experts)).all()
    assert torch.isfinite(decision.weights).all() and (decision.weights >= 0).all()
    torch.testing.assert_close(decision.weights.sum(dim=-1), torch.ones(tokens), atol=1e-5, rtol=0)
    assert (decision.weights[absent[decision.experts]] == 0).all()


@pytest.mark.parametrize("name", ["spectr", "glider+spectr"])
def test_a_model_answers_with_experts_of_unlike_shape(base_directory: Path, make_pool, grow_pool, name: str) -> None:
    modules = load_base(str(base_directory)).model.named_modules()
    names = [n for n, m in modules if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    pool = make_pool(base_directory, 2, rank=2, gates=False)
    pool = grow_pool(pool, base_directory, "e2", rank=7, seed=2, sites=names[::3], gates=False)
    model = load(str(base_directory), pool.path, router=name)
    answers, trace = model.generate_traced(["hello there", "sort 3 1 2"], max_new_tokens=4)
    assert all(sum(answer.usage.values()) == pytest.approx(1, abs=1e-4) for answer in answers)
    assert all((answer.alpha is None) == (name == "spectr") for answer in answers)
    for call in trace.calls:
        if call.site not in pool["e2"].sites:
            assert (call.decision.weights[call.decision.experts == 2] == 0).all()


def test_the_global_term_overrules_and_without_it_glider_spectr_is_spectr(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q], gates=False)
    router = Glider(p=0.5, local="spectr")
    prepared = router.prepare(pool)
    x, term = torch.randn(9, 32), torch.tensor([[0.0, 0.0, 90.0]]).expand(9, 3)
    assert (router.route(prepared.sites[Q], x, term).experts[:, 0] == 2).all()
    alone = Spectr().route(prepared.sites[Q], x, None)
    assert torch.equal(router.route(prepared.sites[Q], x, None).weights, alone.weights)
    assert prepared.global_term is not None and prepared.global_term.p == 0.5


def test_names_and_papers() -> None:
    told = {entry.name: entry.paper for entry in routers}
    assert told["spectr"] == "arXiv:2504.03454" and told["glider+spectr"] == "arXiv:2410.07172, arXiv:2504.03454"
