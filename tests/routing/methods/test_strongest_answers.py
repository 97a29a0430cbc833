"""SEQR, LAG and MoR-LoRA against plain statements of their formulas."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from glider.errors import RouterError
from glider.experts.membership import add_expert
from glider.experts.pool import Pool
from glider.routing.base import GlobalTerm, Need, QueryFeatures
from glider.routing.condition import Condition
from glider.routing.global_part import GlobalPart
from glider.routing.local_scores.lag import FilteredNorm
from glider.routing.local_scores.seqr import QRNorm
from glider.routing.local_scores.spectr import SpectralNorm
from glider.routing.methods.glider import Glider
from glider.routing.methods.mor_lora import MorLora
from glider.routing.methods.seqr import Seqr
from glider.routing.specification import router_from

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pool(llama_directory: Path, make_pool, grow_pool) -> Pool:
    """Ranks 4, 4, 6 with scalings 1, 1, 0.5; the last one adapts one of the two sites."""
    pool = make_pool(llama_directory, 2, sites=[Q, DOWN])
    return grow_pool(pool, llama_directory, "e2", seed=7, rank=6, alpha=3.0, sites=[DOWN])


def lengths(pool: Pool, site: str, x: torch.Tensor) -> torch.Tensor:
    """|s B A x| by the product itself."""
    columns = []
    for expert in pool:
        if site not in expert.sites:
            columns.append(torch.full((len(x),), -torch.inf, dtype=torch.float64))
            continue
        a, b = expert.factors(site)
        columns.append((x.double() @ (expert.scaling(site) * b.double() @ a.double()).T).norm(dim=-1))
    return torch.stack(columns, dim=1)


def test_seqr_is_the_length_of_each_answer(pool: Pool) -> None:
    sites = QRNorm().prepare(pool)
    for name, width in ((Q, 32), (DOWN, 48)):
        x = torch.randn(7, width)
        torch.testing.assert_close(
            QRNorm().scores(x, sites[name]).double(), lengths(pool, name, x), atol=1e-4, rtol=1e-4
        )


def test_seqr_chooses_as_spectr_does(pool: Pool) -> None:
    x = torch.randn(50, 48)
    spectr = SpectralNorm()
    wanted = spectr.scores(x, spectr.prepare(pool)[DOWN]).argmax(dim=-1)
    decision = Seqr().route(Seqr().prepare(pool).sites[DOWN], x, None)
    assert torch.equal(decision.experts[:, 0], wanted) and len(wanted.unique()) > 1
    torch.testing.assert_close(decision.weights, torch.ones(50, 1), atol=1e-4, rtol=0)


def test_seqr_holds_a_shared_down_projection_once(llama_directory: Path, make_pool, edit_tensors) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    shared = pool["e0"].factors(Q)[0].clone()
    key = f"base_model.model.{Q}.lora_A.weight"
    for name in ("e1", "e2"):
        edit_tensors(pool[name].directory / "adapter_model.safetensors", lambda t: t.update({key: shared}))
        add_expert(pool.path, name)
    pool = Pool.open(pool.path)
    site = QRNorm().prepare(pool)[Q]
    assert set(site.tensors) == {"triangles", "down"} and site["down"].stride(0) == 0
    x = torch.randn(9, 32)
    torch.testing.assert_close(QRNorm().scores(x, site).double(), lengths(pool, Q, x), atol=1e-4, rtol=1e-4)


def test_white_norms_are_measured_against_the_answer_to_noise(pool: Pool) -> None:
    x = torch.randn(4000, 48)
    scores = QRNorm("white").scores(x, QRNorm("white").prepare(pool)[DOWN])
    torch.testing.assert_close(scores.square().mean(dim=0), torch.ones(3), atol=0.1, rtol=0)
    raw = QRNorm().scores(x, QRNorm().prepare(pool)[DOWN])
    noise = torch.stack(
        [e.scaling(DOWN) * (e.factors(DOWN)[1].float() @ e.factors(DOWN)[0].float()).norm() for e in pool]
    )
    torch.testing.assert_close(scores, raw / noise, atol=1e-4, rtol=1e-4)


def test_lag_ranks_the_candidates_of_arrow_by_their_lengths(pool: Pool) -> None:
    score = FilteredNorm(candidates=2)
    site, x = score.prepare(pool)[DOWN], torch.randn(40, 48)
    scores = score.scores(x, site)
    exact = lengths(pool, DOWN, x)
    for token in range(40):
        coarse = []
        for expert in pool:
            a, b = expert.factors(DOWN)
            coarse.append(abs(float(torch.linalg.svd(b.double() @ a.double()).Vh[0] @ x[token].double())))
        kept = sorted(range(3), key=lambda e: -coarse[e])[:2]
        for e in range(3):
            wanted = exact[token, e].item() if e in kept else -torch.inf
            assert scores[token, e].item() == pytest.approx(wanted, abs=1e-3)


def test_lag_with_enough_candidates_is_spectr(pool: Pool) -> None:
    lag, spectr = router_from("lag", {}), router_from("spectr", {"top_k": 1})
    x = torch.randn(30, 48)
    one, other = (r.route(r.prepare(pool).sites[DOWN], x, None) for r in (lag, spectr))
    assert torch.equal(one.experts, other.experts)  # pyright: ignore


def test_mor_lora_is_hard_where_the_query_fits_and_glider_elsewhere(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=[Q])
    hard, soft = MorLora(p=0.5, gamma=2.0, beta=1.0), Glider(p=0.5, gamma=2.0, beta=1.0)
    prepared = hard.prepare(pool)
    own = pool["e1"].instruction
    assert own is not None
    features = QueryFeatures(2, torch.stack([own.float(), -own.float()]))
    term = hard.condition(prepared, features).term
    assert term is not None
    x = torch.randn(2, 32)
    decision = hard.route(prepared.sites[Q], x, term)
    other = soft.route(soft.prepare(pool).sites[Q], x, term)
    assert decision.weights[0].tolist() == [1.0, 0.0]
    assert torch.equal(decision.experts, other.experts)
    assert torch.equal(decision.weights[1], other.weights[1]) and 0 < other.weights[1, 1] < 1


@dataclass(frozen=True)
class Equal:
    """The first expert has this score, the others have half of it."""

    score: float
    needs: frozenset[Need] = frozenset()

    def of(self, features: QueryFeatures, without: int | None = None) -> torch.Tensor:
        return torch.tensor([[self.score, self.score / 2, self.score / 2]])


@pytest.mark.parametrize(("factor", "hard"), [(1.02, True), (0.98, False)])
def test_mor_lora_holds_a_query_against_its_own_term(
    llama_directory: Path, make_pool, monkeypatch: pytest.MonkeyPatch, factor: float, hard: bool
) -> None:
    """One bound for both terms left a query that fits mixed, where the other term's p is larger."""
    terms = [GlobalTerm(Equal(p * factor), p, 0.1, 3.0) for p in (0.35, 0.63)]
    monkeypatch.setattr(GlobalPart, "prepare", lambda *_: terms[0])
    monkeypatch.setattr(GlobalPart, "prepare_described", lambda *_: terms[1])
    router, features = MorLora(), QueryFeatures(1)
    prepared = router.prepare(make_pool(llama_directory, 3, sites=[Q]))
    conditions = [router.condition(replace(prepared, global_term=term), features) for term in terms]
    for condition, term in zip(conditions, terms, strict=True):
        assert condition.global_scores is not None
        assert torch.equal(condition.global_scores, term.scores.of(features)), "scores are told as they are"
    lost = conditions[1].without_term(torch.tensor([True]), 3.0)
    together = Condition.cat([*conditions, lost]).rows([1, 2, 0])
    decision = router.route(prepared.sites[Q], torch.randn(1, 32).expand(3, -1), together.term)
    assert [bool(second == 0) for second in decision.weights[:, 1]] == [hard, False, hard]


def test_settings_that_mean_nothing_are_refused(pool: Pool) -> None:
    for name, settings in (("seqr", {"norms": "loud"}), ("lag", {"candidates": 0})):
        with pytest.raises(RouterError):
            router_from(name, settings)
    with pytest.raises(RouterError, match="above 0"):
        MorLora(p=-0.1).prepare(pool)
