"""The pool merged into one expert: exact weight deltas, PEFT's own merges, truncation, folding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from glider.errors import RouterError
from glider.experts.membership import add_expert
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.layers.attach import attach
from glider.routing.base import Router, routers
from glider.routing.methods.merge import Merge
from glider.routing.products import factored, nth_largest, product, truncated

IDS = torch.tensor([[40, 71, 99, 5, 200, 13]])
Q_SITES = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits


def uneven_pool(make_pool, grow_pool, base_directory: Path) -> Pool:
    """Ranks 4, 4, 2 with scalings 1, 1, 4; the last expert adapts half of the sites."""
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, rank=2, alpha=8.0, sites=pool.sites[::2])


def mean_products(pool: Pool) -> dict[str, torch.Tensor]:
    return {s: sum(product(e, s).double() for e in pool if s in e.sites) / len(pool) for s in pool.sites}  # pyright: ignore


def test_the_mean_is_the_exact_mean_of_weight_deltas(base_directory: Path, make_pool, grow_pool) -> None:
    pool = uneven_pool(make_pool, grow_pool, base_directory)
    merged = Merge().expert(pool)
    for site, wanted in mean_products(pool).items():
        torch.testing.assert_close(product(merged, site).double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fold", [False, True], ids=["attached", "folded"])
def test_the_merge_computes_what_merged_weights_compute(base_directory: Path, make_pool, grow_pool, fold: bool) -> None:
    pool = uneven_pool(make_pool, grow_pool, base_directory)
    plain = load_base(str(base_directory)).model
    before = logits(plain)
    attached = attach(plain, pool, Merge())
    if fold:
        attached.fold()
    got = logits(plain)
    attached.unfold()
    attached.detach()
    assert torch.equal(logits(plain), before)
    with torch.no_grad():
        for site, delta in mean_products(pool).items():
            plain.get_submodule(site).weight += delta.float()
    torch.testing.assert_close(got, logits(plain), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "router",
    [Merge(rank=3), Merge("ties"), Merge("ties", rank=4), Merge("ties", trim="site"), Merge("dare", seed=3)],
    ids=str,
)
def test_folding_changes_no_merge(base_directory: Path, make_pool, grow_pool, router: Merge) -> None:
    pool, model = uneven_pool(make_pool, grow_pool, base_directory), load_base(str(base_directory)).model
    attached = attach(model, pool, router)
    unfolded = logits(model)
    attached.fold()
    torch.testing.assert_close(logits(model), unfolded, atol=2e-4, rtol=1e-4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_truncation_is_the_best_of_its_rank(d: int, o: int, r: int, rank: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    a, b = torch.randn(r, d, generator=chance), torch.randn(o, r, generator=chance)
    short_a, short_b = truncated(a, b, rank)
    u, s, vt = torch.linalg.svd(b @ a, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    assert len(short_a) == short_b.shape[1] <= min(rank, d, o)
    torch.testing.assert_close(short_b @ short_a, best, atol=1e-4, rtol=1e-4)
    dense_a, dense_b = factored(b @ a, rank)
    torch.testing.assert_close(dense_b @ dense_a, best, atol=1e-4, rtol=1e-4)
    exact_a, exact_b = factored(b @ a, None)
    assert torch.equal(exact_b @ exact_a, b @ a)


def test_rank_is_that_of_the_result(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3, sites=Q_SITES)
    assert [site.rank for site in Merge(rank=5).expert(pool).sites.values()] == [5, 5]
    assert [site.rank for site in Merge().expert(pool).sites.values()] == [12, 12]
    wide = make_pool(llama_directory, 3, "wide", sites=Q_SITES, rank=16)
    merged = Merge().expert(wide)
    assert [site.rank for site in merged.sites.values()] == [32, 32]  # not 48: the sites are 32 wide
    for site, wanted in mean_products(wide).items():
        torch.testing.assert_close(product(merged, site).double(), wanted, atol=1e-5, rtol=1e-4)


PEFT_TYPES = [
    (Merge(rank=6), "svd", 1 / 3),
    (Merge("ties", density=0.3, rank=6, trim="site"), "ties_svd", 1.0),
    (Merge("ties", density=0.3, trim="site"), "ties_svd", 1.0),
    (Merge("dare", density=0.4, seed=11, rank=6), "dare_linear_svd", 1 / 3),
    (Merge("dare", density=0.4, seed=11), "dare_linear_svd", 1 / 3),
]


@pytest.mark.parametrize(("router", "kind", "weight"), PEFT_TYPES, ids=lambda value: str(value))
def test_merges_equal_peft_on_products(
    llama_directory: Path, make_pool, monkeypatch: pytest.MonkeyPatch, router: Merge, kind: str, weight: float
) -> None:
    pool = make_pool(llama_directory, 3, sites=Q_SITES)
    model = load_base(str(llama_directory)).model
    adapted = PeftModel.from_pretrained(model, str(pool["e0"].directory), adapter_name="e0")
    for name in ("e1", "e2"):
        adapted.load_adapter(str(pool[name].directory), adapter_name=name)
    once = iter([router.seed])  # PEFT draws the new adapter's first values, then merges: seeded in between
    merge_site = adapted.base_model._svd_generalized_task_arithmetic_weighted_adapter

    def seeded(*arguments: Any, **keywords: Any) -> Any:
        for seed in once:
            torch.manual_seed(seed)
        return merge_site(*arguments, **keywords)

    monkeypatch.setattr(adapted.base_model, merge_site.__name__, seeded)
    adapted.add_weighted_adapter(
        pool.names, [weight] * 3, "merged", combination_type=kind, svd_rank=router.rank or 32, density=router.density
    )
    merged = router.expert(pool)
    for site in Q_SITES:
        delta = adapted.base_model.model.get_submodule(site).get_delta_weight("merged")  # pyright: ignore
        torch.testing.assert_close(product(merged, site), delta, atol=2e-5, rtol=1e-4)


def by_the_paper(pool: Pool, density: float) -> dict[str, torch.Tensor]:
    """TIES of whole vectors (arXiv 2306.01708, algorithm 1), in the plainest way."""
    sizes = {site: product(pool.experts[0], site).shape for site in pool.sites}
    vectors = torch.stack([torch.cat([product(e, site).flatten() for site in pool.sites]) for e in pool])  # (E, N)
    for vector in vectors:
        least = vector.abs().sort(descending=True).values[int(density * len(vector)) - 1]
        vector[vector.abs() < least] = 0
    elected = vectors.sum(dim=0).sign()
    agree = vectors.sign() == elected
    merged = (vectors * agree).sum(dim=0) / (agree & (vectors != 0)).sum(dim=0).clamp(min=1)
    parts = merged.split([size.numel() for size in sizes.values()])
    return {site: part.view(size) for (site, size), part in zip(sizes.items(), parts, strict=True)}


def with_unlike_sites(pool: Pool, edit_tensors) -> Pool:
    """The pool with a hundredth of the first site's values."""

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            if Q_SITES[0] in key and "lora_B" in key:
                tensors[key] = tensors[key] / 100

    for expert in pool:
        edit_tensors(expert.directory / ADAPTER_WEIGHTS_FILE, shrink)
        add_expert(pool.path, expert.name)
    return Pool.open(pool.path)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7])
def test_ties_trims_the_whole_vector(llama_directory: Path, make_pool, edit_tensors, density: float) -> None:
    """Each site was trimmed by itself: of two sites of unlike magnitude both kept the same share."""
    pool = with_unlike_sites(make_pool(llama_directory, 3, sites=Q_SITES), edit_tensors)
    merged = Merge("ties", density=density).expert(pool)
    for site, wanted in by_the_paper(pool, density).items():
        torch.testing.assert_close(product(merged, site), wanted, atol=1e-6, rtol=1e-5)


def test_a_site_of_small_products_loses_all_where_each_by_itself_keeps_its_share(
    llama_directory: Path, make_pool, edit_tensors
) -> None:
    pool = with_unlike_sites(make_pool(llama_directory, 3, sites=Q_SITES), edit_tensors)

    def shares(router: Merge) -> list[float]:
        merged = router.expert(pool)
        return [(product(merged, site) != 0).float().mean().item() for site in Q_SITES]

    small, large = shares(Merge("ties"))
    assert small < 0.01 and large > 0.6
    assert all(0.35 < share < 0.55 for share in shares(Merge("ties", trim="site")))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 60), st.integers(0, 999))
def test_the_nth_largest_is_exact(heights: list[int], n: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(height, 3, generator=chance) * 10.0 ** (4 * i) for i, height in enumerate(heights)]
    matrices[0][0] = torch.tensor([0.0, -0.0, 1e-42])  # equal ones, and one without a leading bit
    every = torch.cat([matrix.flatten() for matrix in matrices]).abs().sort(descending=True).values
    assert nth_largest(lambda: iter(matrices), n) == every[min(n, len(every)) - 1].item()


def test_ties_and_dare_pass_over_absent_experts(base_directory: Path, make_pool, grow_pool) -> None:
    pool = uneven_pool(make_pool, grow_pool, base_directory)
    alone = Pool(pool.path, pool.index, pool.experts[:2])
    site = pool.sites[1]
    ties = (Merge("ties").expert(some) for some in (pool, alone))
    torch.testing.assert_close(*(product(merged, site) for merged in ties))
    dare = Merge("dare").expert(pool)
    assert set(dare.sites) == set(pool.sites)
    again = Merge("dare").expert(pool)
    other = Merge("dare", seed=1).expert(pool)
    assert torch.equal(product(dare, site), product(again, site))
    assert not torch.equal(product(dare, site), product(other, site))


def test_dare_leaves_the_callers_random_numbers_alone(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2, sites=Q_SITES)
    state = torch.get_rng_state()
    Merge("dare").expert(pool)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_merge_is_one_static_expert(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2, sites=Q_SITES)
    for method in ("mean", "ties", "dare"):
        chosen = routers.create("merge", method=method)
        assert isinstance(chosen, Router)
        prepared = chosen.prepare(pool)
        decision = chosen.route(prepared.sites[Q_SITES[0]], torch.randn(5, 32), None)
        assert len(prepared.experts) == 1
        assert decision.experts.tolist() == [[0]] * 5
        assert decision.weights.tolist() == [[1.0]] * 5


def unchecked(made: type, **changes: Any) -> None:
    """Settings as a caller without type checks gives them (the tests check types before `__post_init__` does)."""
    settings = object.__new__(made)
    for name, value in {**vars(made()), **changes}.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slerp"}, "mean, ties, dare"),
        ({"rank": 0}, "rank of at least 1"),
        ({"density": 0.5}, "no density for the mean"),
        ({"method": "ties", "density": 1.0}, r"density in \(0, 1\)"),
        ({"method": "dare", "density": float("nan")}, r"density in \(0, 1\)"),
        ({"method": "ties", "trim": "layer"}, "trim of vector, site"),
        ({"method": "dare", "trim": "site"}, "for the method ties"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        unchecked(Merge, **changes)


def test_an_empty_pool_cannot_be_merged(llama_directory: Path, make_pool) -> None:
    with pytest.raises(RouterError, match="empty"):
        Merge().prepare(make_pool(llama_directory, 0))
