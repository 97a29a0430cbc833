"""Choice by embedding alone: which experts, their weights, absent experts, fusion of parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.contribute.fewshot_fits import AdapterSoupFit
from glider.data.rows import Row
from glider.errors import QueryError, RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.routing.base import Prepared, QueryFeatures, Router, Site, routers
from glider.routing.methods.adaptersoup import AdapterSoup, AdapterSoupTask
from glider.routing.methods.loraretriever import LoraRetriever
from glider.routing.methods.merge import Merge
from glider.routing.methods.retrieval import Retrieval
from glider.routing.methods.single import Single
from glider.routing.nearest import Nearest, Uniform
from glider.routing.select import Select

IDS = torch.tensor([[40, 71, 99, 5, 200, 13], [9, 9, 31, 64, 100, 101]])
ROUTERS = [
    Retrieval(),
    Retrieval(k=3, temperature=0.1),
    Retrieval(k=2, weighting="equal"),
    AdapterSoup(k=2),
    LoraRetriever(k=3, by="descriptions"),
]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits


def own_query(pool: Pool, *names: str) -> QueryFeatures:
    return QueryFeatures(len(names), torch.stack([pool[name].instruction for name in names]))  # pyright: ignore


def uneven_pool(make_pool, grow_pool, base_directory: Path) -> Pool:
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, rank=2, alpha=8.0, sites=pool.sites[::2])


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(1, 10),
    st.sampled_from([Nearest, Uniform]),
    st.sets(st.integers(0, 7)),
    st.integers(0, 999),
)
def test_selections_keep_the_largest_with_weights_of_sum_one(
    t: int, e: int, k: int, select: Any, absent: set[int], seed: int
) -> None:
    scores = torch.randn(t, e, generator=torch.Generator().manual_seed(seed))
    gone = sorted(absent & set(range(e - 1)))  # one expert is there
    scores[:, gone] = -torch.inf
    decision = select(k)(scores)
    assert decision.experts.shape == decision.weights.shape == (t, min(k, e))
    assert decision.experts.min() >= 0 and decision.experts.max() < e
    assert torch.isfinite(decision.weights).all() and (decision.weights >= 0).all()
    torch.testing.assert_close(decision.weights.sum(-1), torch.ones(t))
    dense = torch.zeros(t, e).scatter_add(1, decision.experts, decision.weights)
    assert (dense[:, gone] == 0).all()
    assert (dense > 0).sum(-1).tolist() == [min(k, e - len(gone))] * t
    if select is Uniform:
        assert dense[dense > 0].unique().numel() == 1


def test_one_expert_weighs_exactly_one() -> None:
    assert Nearest(1)(torch.zeros(2, 1000)).weights.tolist() == [[1.0], [1.0]]
    assert isinstance(Nearest(1), Select) and isinstance(Uniform(1), Select)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 5), st.sets(st.integers(0, 5)), st.integers(0, 999))
def test_fusion_names_existing_columns_and_weighs_the_pairs(e: int, k: int, absent: set[int], seed: int) -> None:
    gone = torch.tensor([i in absent and i < e - 1 for i in range(e)])
    columns = e * (e + 1) // 2
    site = Site("s", torch.cat([gone, torch.zeros(columns - e, dtype=torch.bool)]))
    term = torch.randn(3, e, generator=torch.Generator().manual_seed(seed))
    decision = LoraRetriever(k, "fusion").route(site, torch.randn(3, 4), term)
    kept = min(k, int((~gone).sum()))
    assert decision.experts.shape == (3, kept + kept * (kept - 1) // 2)
    assert decision.experts.max() < columns
    assert all(len(set(row)) == len(row) for row in decision.experts.tolist())
    torch.testing.assert_close(
        decision.weights.sum(-1), torch.full((3,), 1.0 if kept == 1 else (3 - kept) / (2 * kept))
    )


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_decisions_are_per_query_and_the_same_at_every_token(llama_directory: Path, make_pool, router: Any) -> None:
    pool = make_pool(llama_directory, 4)
    assert isinstance(router, Router)
    prepared = router.prepare(pool)
    condition = router.condition(prepared, own_query(pool, "e3", "e1"))
    assert condition is not None
    site = next(iter(prepared.sites.values()))
    decision = router.route(site, torch.randn(6, 32), condition.term.repeat_interleave(3, dim=0))
    assert decision.experts[:, 0].tolist() == [3, 3, 3, 1, 1, 1]
    assert torch.equal(decision.experts[:3], decision.experts[:1].expand(3, -1))
    torch.testing.assert_close(decision.weights.sum(-1), torch.ones(6))


def test_weights_are_the_softmax_of_cosines_over_the_temperature(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    router = Retrieval(k=2, temperature=0.25)
    prepared = router.prepare(pool)
    condition = router.condition(prepared, own_query(pool, "e1"))
    assert condition is not None and condition.alpha.tolist() == [4.0]
    decision = router.route(next(iter(prepared.sites.values())), torch.randn(1, 32), condition.term)
    cosines = condition.global_scores[0, decision.experts[0]]
    torch.testing.assert_close(decision.weights[0], (cosines / 0.25).softmax(-1))


def routed_logits(base_directory: Path, pool: Pool, router: Any, *names: str) -> torch.Tensor:
    model = load_base(str(base_directory)).model
    attached = attach(model, pool, router)
    with attached.routing(router.condition(attached.prepared, own_query(pool, *names))):
        return logits(model)


def static_logits(base_directory: Path, pool: Pool, router: Router) -> torch.Tensor:
    model = load_base(str(base_directory)).model
    attach(model, pool, router)
    return logits(model)


def test_retrieval_equals_single_of_the_nearest_for_each_row(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 3)
    got = routed_logits(base_directory, pool, Retrieval(), "e2", "e0")
    for row, name in enumerate(["e2", "e0"]):
        wanted = static_logits(base_directory, pool, Single(name))
        torch.testing.assert_close(got[row], wanted[row], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "router", [AdapterSoup(k=3), LoraRetriever(k=3, by="descriptions"), Retrieval(k=3, weighting="equal")], ids=str
)
def test_all_experts_with_equal_weights_are_the_exact_merge(base_directory: Path, make_pool, router: Any) -> None:
    pool = make_pool(base_directory, 3)
    got = routed_logits(base_directory, pool, router, "e2", "e0")
    torch.testing.assert_close(got, static_logits(base_directory, pool, Merge()), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_fusion_averages_a_and_b_each_by_itself(base_directory: Path, make_pool, k: int) -> None:
    pool = make_pool(base_directory, 4, alpha=8.0)
    router = LoraRetriever(k=k, composition="fusion", by="descriptions")
    prepared = router.prepare(pool)
    condition = router.condition(prepared, own_query(pool, "e1"))
    assert condition is not None
    kept = condition.global_scores[0].topk(k).indices.tolist()
    plain = load_base(str(base_directory)).model
    with torch.no_grad():
        for site in pool.sites:
            factors = [pool.experts[i].factors(site) for i in kept]
            a, b = (sum(two) / k for two in zip(*factors, strict=True))
            plain.get_submodule(site).weight += pool.experts[0].scaling(site) * b @ a
    got = routed_logits(base_directory, pool, router, "e1", "e1")
    torch.testing.assert_close(got, logits(plain), atol=5e-4, rtol=1e-3)


def test_where_the_nearest_is_absent_the_next_stands_in(base_directory: Path, make_pool, grow_pool) -> None:
    pool = uneven_pool(make_pool, grow_pool, base_directory)
    for router in ROUTERS:
        prepared = router.prepare(pool)
        condition = router.condition(prepared, own_query(pool, "half"))
        assert condition is not None
        for site in prepared.sites.values():
            decision = router.route(site, torch.randn(1, 4), condition.term)
            dense = torch.zeros(3).scatter_add(0, decision.experts[0], decision.weights[0])
            assert (dense[2] > 0) == (site.name in pool["half"].sites)
            assert dense.sum().item() == pytest.approx(1)
        assert torch.isfinite(routed_logits(base_directory, pool, router, "half", "e0")).all()


def test_a_loaded_model_answers_and_traces(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    for router in (Retrieval(), LoraRetriever(k=2, composition="fusion", by="descriptions")):
        model = load(str(llama_directory), pool.path, router=router)
        answer = model.generate(["What is this?"], max_new_tokens=2, trace=True)[0]
        assert set(answer.global_scores) == {"e0", "e1", "e2"}
        assert answer.alpha == 1


def test_without_a_query_there_is_nothing_to_choose_by(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 3)
    for router in (*ROUTERS, LoraRetriever(composition="fusion", by="descriptions")):
        site = next(iter(router.prepare(pool).sites.values()))
        with pytest.raises(QueryError, match="no local score"):
            router.route(site, torch.randn(1, 32), None)


def test_what_the_pool_lacks_is_named(llama_directory: Path, make_pool, grow_pool) -> None:
    with pytest.raises(RouterError, match="empty"):
        Retrieval().prepare(make_pool(llama_directory, 0))
    pool = make_pool(llama_directory, 1, "one")
    pool = grow_pool(pool, llama_directory, "mute", embedder=None)
    for router in ROUTERS:
        with pytest.raises(RouterError, match=r"instruction.*none in mute\."):
            router.prepare(pool)


def test_fusion_needs_equal_ranks(llama_directory: Path, make_pool, grow_pool) -> None:
    pool = uneven_pool(make_pool, grow_pool, llama_directory)
    with pytest.raises(RouterError, match=r"equal rank.*ranks 2, 4"):
        LoraRetriever(composition="fusion", by="descriptions").prepare(pool)
    assert isinstance(LoraRetriever(by="descriptions").prepare(pool), Prepared)


def unchecked(made: type, **changes: Any) -> None:
    """Settings as a caller without type checks gives them (the tests check types before `__post_init__` does)."""
    settings = object.__new__(made)
    for name, value in {**vars(made()), **changes}.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (Retrieval, {"k": 0}, "at least 1"),
        (Retrieval, {"weighting": "hard"}, "softmax, equal"),
        (Retrieval, {"temperature": 0.0}, "temperature above 0"),
        (Retrieval, {"temperature": float("nan")}, "temperature above 0"),
        (AdapterSoup, {"k": 0}, "at least 1"),
        (LoraRetriever, {"k": 0}, "at least 1"),
        (LoraRetriever, {"composition": "selection"}, "mixture, fusion"),
        *(
            (made, {"by": "smell"}, "descriptions, samples, examples")
            for made in (Retrieval, AdapterSoup, LoraRetriever)
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(made: type, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        unchecked(made, **changes)


def test_the_registry_makes_them_by_name() -> None:
    assert routers.create("retrieval", k=2) == Retrieval(2)
    assert routers.create("adaptersoup") == AdapterSoup(3)
    assert routers.create("loraretriever", composition="fusion") == LoraRetriever(3, "fusion")


def with_profiles(make_pool, base_directory: Path, **settings: Any) -> Pool:
    return make_pool(base_directory, 3, profile=True, **settings)


def cosines(vector: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(vector[None].float(), others.float(), dim=-1)


def test_loraretriever_compares_mean_sample_embeddings(llama_directory: Path, make_pool) -> None:
    """It compared descriptions, where its paper has the mean embedding of a task's samples for each LoRA."""
    pool = with_profiles(make_pool, llama_directory)
    query = torch.randn(2, len(pool["e0"].instruction), generator=torch.Generator().manual_seed(0))  # pyright: ignore
    prepared = LoraRetriever().prepare(pool)
    assert prepared.global_term is not None and prepared.global_term.scores.needs == {"inputs"}
    scores = LoraRetriever().condition(prepared, QueryFeatures(2, inputs=query)).global_scores
    means = torch.stack([expert.profile.inputs for expert in pool])  # pyright: ignore
    assert scores is not None
    torch.testing.assert_close(scores, torch.stack([cosines(row, means) for row in query]), atol=1e-5, rtol=1e-4)
    without = prepared.global_term.scores.of(QueryFeatures(2, inputs=query), without=1)
    assert torch.isneginf(without[:, 1]).all() and torch.equal(without[:, 0], scores[:, 0])


def test_retrieval_by_examples_takes_the_expert_of_the_most_similar_stored_example(
    llama_directory: Path, make_pool, edit_tensors
) -> None:
    """PHATGOOSE's baseline. The one example decides, though another expert is nearer on average."""
    pool = with_profiles(make_pool, llama_directory)
    stored = [expert.profile.held_back_inputs.float() for expert in pool]  # pyright: ignore
    query = 0.9 * stored[0].mean(dim=0) + 0.1 * stored[2][5]
    near = torch.stack([cosines(query, rows).max() for rows in stored])
    router = Retrieval(by="examples")
    features = QueryFeatures(2, inputs=torch.stack([stored[2][7], query]))
    scores = router.condition(router.prepare(pool), features).global_scores
    assert scores is not None and scores[0].argmax() == 2 and scores[0, 2] == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(scores[1], near, atol=1e-5, rtol=1e-4)

    def lonely(tensors: dict[str, torch.Tensor]) -> None:
        rows = tensors["profile.held_back_inputs"]
        tensors["profile.held_back_inputs"] = -rows.clone()
        tensors["profile.held_back_inputs"][3] = stored[0].mean(dim=0)

    edit_tensors(pool.path / "e1" / "glider.safetensors", lonely)
    pool = pool.remove("e1").add("e1")
    prepared = router.prepare(pool)
    centre = QueryFeatures(1, inputs=stored[0].mean(dim=0)[None])
    names = [expert.name for expert in prepared.experts]
    chosen = router.condition(prepared, centre).global_scores
    assert chosen is not None and names[int(chosen.argmax())] == "e1"
    by_mean = Retrieval(by="samples")
    chosen = by_mean.condition(by_mean.prepare(pool), centre).global_scores
    assert chosen is not None and names[int(chosen.argmax())] == "e0"


def test_retrieval_by_examples_compares_what_experts_store_of_their_training_inputs(
    llama_directory: Path, make_pool, edit_tensors
) -> None:
    """PHATGOOSE stores 1,000 inputs of each expert; the 24 that are held back stand in where none are stored."""
    pool = with_profiles(make_pool, llama_directory)
    chance, names = torch.Generator().manual_seed(5), pool.names
    width = pool[names[0]].profile.held_back_inputs.shape[1]  # pyright: ignore
    stored = {name: torch.nn.functional.normalize(torch.randn(40, width, generator=chance), dim=-1) for name in names}

    def store(name: str) -> None:
        edit_tensors(
            pool.path / name / "glider.safetensors",
            lambda tensors: tensors.update({"profile.stored_inputs": stored[name].half()}),
        )

    router = Retrieval(by="examples")
    store(names[0])
    pool = pool.remove(names[0]).add(names[0])
    with pytest.raises(RouterError, match=rf"of every expert, or of none.*none in {names[1]}.*--stored N"):
        router.prepare(pool)
    for name in names[1:]:
        store(name)
        pool = pool.remove(name).add(name)
    prepared = router.prepare(pool)
    order = [expert.name for expert in prepared.experts]
    asked = QueryFeatures(len(order), inputs=torch.stack([stored[name][39] for name in order]))
    scores = router.condition(prepared, asked).global_scores
    assert scores is not None and scores.argmax(dim=-1).tolist() == list(range(len(order)))
    assert scores.diagonal().min() > 0.99


def test_experts_that_keep_no_inputs_are_named(llama_directory: Path, make_pool, grow_pool) -> None:
    pool = grow_pool(with_profiles(make_pool, llama_directory), llama_directory, "bare")
    for router in (LoraRetriever(), Retrieval(by="examples"), AdapterSoup(by="samples")):
        with pytest.raises(RouterError, match=r"profile with embeddings.*none in bare\. .*by=descriptions"):
            router.prepare(pool)
    with pytest.raises(RouterError, match="none in bare"):
        AdapterSoupFit().check_fit(pool)
    AdapterSoupFit().check_fit(pool, by="descriptions", k=2, seed=3)
    with pytest.raises(RouterError, match="smell"):
        AdapterSoupFit().check_fit(pool, smell=2)


def test_adaptersoup_by_task_is_the_merge_of_the_nearest_to_its_rows(llama_directory: Path, make_pool) -> None:
    """Each query was its own domain; the paper chooses once for a domain, by a few texts of it."""
    pool, base = with_profiles(make_pool, llama_directory), load_base(str(llama_directory))
    rows = [Row(input=text, output="yes") for text in ("the e2 e21 and", "is it far?", "a third one")]
    soup, notes = AdapterSoupFit().fit(base, pool, rows, k=2, seed=1)
    model = load(str(llama_directory), pool.path, router=AdapterSoup(k=2, by="samples"))
    scores = model.condition([row.input for row in rows]).global_scores
    assert scores is not None
    nearest = [pool.names[place] for place in scores.mean(dim=0).topk(2).indices.tolist()]
    assert soup.experts == tuple(nearest) and notes["rows"] == 3
    assert notes["scores"] == pytest.approx(dict(zip(pool.names, scores.mean(dim=0).tolist(), strict=True)))
    wanted = static_logits(llama_directory, pool.remove(*(set(pool.names) - set(nearest))), Merge())
    pool = Pool.open(pool.path)
    for name in set(soup.experts or ()) ^ {"e0", "e1", "e2"}:
        pool = pool.add(name)
    torch.testing.assert_close(static_logits(llama_directory, pool, soup), wanted, atol=2e-4, rtol=1e-4)
    with pytest.raises(RouterError, match="few-shot rows of the task"):
        AdapterSoupTask().prepare(pool)
