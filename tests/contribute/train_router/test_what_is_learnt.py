"""What trained routers learn, against plain statements of their formulas."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from glider.contribute import router_statistics
from glider.contribute import train_router as module
from glider.contribute.fewshot_fits import MoleFit
from glider.contribute.router_statistics import drawn, halving, k_means, moved
from glider.contribute.train_router import train_router
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.inference.spec import ModelSpec
from glider.layers.attach import attach
from glider.routing.base import QueryFeatures
from glider.routing.local_scores.seqr import QRNorm
from glider.routing.local_scores.vq import nearest_code
from glider.routing.methods.joint import Joint
from glider.routing.methods.mindskip import MindSkip
from glider.routing.methods.mindskip_attention import MindSkipAttention
from glider.routing.methods.mole import Mole, layers
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.methods.single import Single
from glider.routing.methods.task_moe import TaskMoe
from glider.routing.methods.vq import Vq
from glider.routing.scores import standardise
from glider.routing.select import TopK
from glider.routing.signals.base import signals

from .rows import Q, rows_of, settings


def test_the_joint_router_begins_as_phatgoose_and_lowers_the_loss(base: BaseModel, pool: Pool) -> None:
    losses: list[float] = []

    class Told(module._RouterLoop):
        def _step(self, rows: Any, step: int) -> float:
            losses.append(super()._step(rows, step))
            return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_RouterLoop", Told)
        start = train_router(base, pool, "joint", rows_of(), settings(steps=1, learning_rate=1e-12))
        x = torch.randn(9, 32)
        wanted = Phatgoose().route(Phatgoose().prepare(pool).sites[Q], x, None)
        got = Joint().route(Joint().prepare(start).sites[Q], x, None)
        torch.testing.assert_close(got.weights, wanted.weights)
        assert torch.equal(got.experts, wanted.experts)
        losses.clear()
        train_router(base, start, "joint", rows_of(), settings(steps=12, batch_size=21, learning_rate=0.1))
    assert losses[-1] < losses[0] - 0.02


def test_joint_runs_whole_in_the_native_kernel_as_in_plain_torch(base: BaseModel, pool: Pool) -> None:
    trained = train_router(base, pool, "joint", rows_of(), settings(learning_rate=0.05))
    ids = torch.tensor([[5, 60, 71, 99, 200]])
    logits = []
    for kernel in ("native", "reference"):
        model = ModelSpec(router="joint", kernel=kernel).over(base, trained)
        with torch.inference_mode():
            logits.append(model.model(ids).logits)
        model.detach()
    torch.testing.assert_close(logits[0], logits[1], atol=2e-3, rtol=1e-3)


def test_a_price_closes_the_gates_of_mindskip(base: BaseModel, pool: Pool) -> None:
    x = torch.randn(200, 32)

    def used(penalty: float) -> float:
        made = train_router(base, pool, "mindskip", rows_of(), settings(steps=12, learning_rate=0.3, penalty=penalty))
        decision = MindSkip().route(MindSkip().prepare(made).sites[Q], x, None)
        assert set(decision.weights.sum(dim=-1).round(decimals=3).tolist()) <= {0.0, 1.0}
        return float((decision.weights.sum(dim=-1) > 0).float().mean())

    assert used(100.0) < 0.2
    assert MindSkip(tau=0.0).route(MindSkip().prepare(Pool.open(pool.path)).sites[Q], x, None).weights.sum() > 199


def test_a_price_closes_the_attention_blocks_of_mindskip(base: BaseModel, pool: Pool) -> None:
    router = MindSkipAttention()
    texts = [row.input + row.output for rows in rows_of(3).values() for row in rows]

    def computed(penalty: float) -> float:
        given = settings(steps=12, learning_rate=0.3, penalty=penalty)
        trained = train_router(base, pool, "mindskip-attention", rows_of(), given)
        blocks = router.prepare(trained).blocks
        assert list(blocks) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
        attached, made = attach(base.model, trained, router), []
        modules = [base.model.get_submodule(name) for name in blocks]
        hooks = [one.register_forward_hook(lambda _, __, output: made.append(bool(output[0].any()))) for one in modules]
        with attached.routing(None), torch.inference_mode():
            for text in texts:
                base.model(torch.tensor([base.tokenizer(text).input_ids]))
        for hook in hooks:
            hook.remove()
        attached.detach()
        return sum(made) / len(made)

    assert computed(100.0) == 0.0
    assert computed(0.0) > 0.2  # the loss alone closes some of them over a random base


def test_task_moe_chooses_by_layer_what_its_matrix_says(base: BaseModel, pool: Pool) -> None:
    trained = train_router(base, pool, "task-moe", rows_of(), settings(learning_rate=0.05))
    router = TaskMoe(select=TopK(2))
    prepared = router.prepare(trained)
    own = pool["e1"].profile
    assert own is not None and prepared.global_term is not None and prepared.global_term.signal == "examples"
    features = QueryFeatures(1, grams=((own.queries[0],),))
    term = router.condition(prepared, features).term
    assert term is not None
    torch.testing.assert_close(term, signals.create("examples").prepare(pool).of(features))
    site = prepared.sites[Q]
    logits = torch.stack([sum(site["matrix"][e, f] * term[0, f] for f in range(3)) + site["bias"][e] for e in range(3)])
    decision = router.route(site, torch.randn(1, 32), term)
    best = logits.softmax(dim=0).topk(2)
    assert decision.experts[0].tolist() == best.indices.tolist()
    torch.testing.assert_close(decision.weights[0], best.values / best.values.sum(), atol=1e-4, rtol=1e-3)
    others = prepared.sites["model.layers.1.mlp.down_proj"]
    assert not torch.equal(others["matrix"], site["matrix"])


def test_drawn_tokens_do_not_keep_the_others_in_memory() -> None:
    """Every token of every row stayed in memory until the codes were found."""
    tokens = torch.arange(3000.0).reshape(1000, 3)
    few = drawn(tokens, 4, torch.Generator().manual_seed(0))
    assert few.shape == (4, 3) and few.untyped_storage().nbytes() == few.nbytes
    assert drawn(tokens[:2], 4, torch.Generator()).shape == (2, 3)


def test_codes_move_as_in_vq_vae_and_tokens_of_one_code_are_treated_alike(base: BaseModel, pool: Pool) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.cat(
        [centre + 0.1 * torch.randn(30, 2, generator=draw) for centre in torch.tensor([[0.0, 0], [5, 5]])]
    )
    codes = k_means(tokens, 2, draw)
    ends = sorted(codes.tolist())
    assert ends[0] == pytest.approx(tokens[:30].mean(dim=0).tolist(), abs=1e-5)
    assert ends[1] == pytest.approx(tokens[30:].mean(dim=0).tolist(), abs=1e-5)
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [9.0, 9.0]])
    new, sizes = moved(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([4.0, 2.0]), x)
    assert sizes.tolist() == pytest.approx([0.99 * 4 + 0.01 * 2, 0.99 * 2 + 0.01])
    assert new[0].tolist() == pytest.approx([0.04 / sizes[0].item(), 0.02 / sizes[0].item()])
    assert new[1].tolist() == pytest.approx([(0.99 * 2 * 5 + 0.09) / sizes[1].item()] * 2)

    trained = train_router(base, pool, "vq", rows_of(), settings())
    site = Vq().prepare(trained).sites[Q]
    table = site["table"].exp()
    torch.testing.assert_close(table.sum(dim=0), torch.ones(5))
    x = torch.randn(40, 32)
    decision = Vq(TopK(3)).route(site, x, None)
    for token in range(40):
        code = int((standardise(x)[token] - site["codes"][0]).norm(dim=1).argmin())
        wanted = table[:, code].sort(descending=True)
        torch.testing.assert_close(decision.weights[token], wanted.values, atol=1e-4, rtol=1e-3)


def test_tokens_are_counted_by_the_codes_that_are_kept(
    base: BaseModel, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were counted while codes still moved."""
    monkeypatch.setattr(router_statistics, "_DECAY", 0.5)  # they move far
    trained = train_router(base, pool, "vq", rows_of(), settings())
    site = Vq().prepare(trained).sites[Q]
    counts = torch.ones(3, 5)
    for number, (name, rows) in enumerate(rows_of().items()):
        seen: list[torch.Tensor] = []
        attached, form = attach(base.model, trained, Single(name)), pool[name].card.prompt
        hook = base.model.get_submodule(Q).register_forward_pre_hook(lambda _, given, to=seen: to.append(given[0][0]))
        for row in rows[1:]:  # the first of eight is held back
            ids = form.prompt_ids(base.tokenizer, row.input) + form.target_ids(base.tokenizer, row.output)
            with torch.inference_mode(), attached.routing(None):
                base.model(torch.tensor([ids]))
        hook.remove()
        attached.detach()
        nearest = nearest_code(standardise(torch.cat(seen)), site["codes"][0])
        counts[number] += torch.bincount(nearest, minlength=5)
    shares = counts / counts.sum(dim=1, keepdim=True)
    torch.testing.assert_close(site["table"].exp(), shares / shares.sum(dim=0), atol=1e-5, rtol=1e-5)


def test_codes_move_over_the_rows_of_all_experts_in_an_order_by_the_seed(
    base: BaseModel, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expert after expert, the last one's tokens outweighed the first one's in the moving averages."""
    passes: list[tuple[int, ...]] = []
    plain = router_statistics._pass

    def told(base: BaseModel, row: Any, attached: Any) -> None:
        passes.append(tuple(row.prompt))
        plain(base, row, attached)

    monkeypatch.setattr(router_statistics, "_pass", told)
    orders = []
    for seed in (0, 0, 1):
        passes.clear()
        train_router(base, pool, "vq", rows_of(), settings(seed=seed))
        by_expert, orders = passes[:21], [*orders, passes[21:42]]
        assert sorted(orders[-1]) == sorted(by_expert) and orders[-1] != by_expert
        thirds = [[by_expert.index(prompt) // 7 for prompt in orders[-1][at : at + 7]] for at in (0, 7, 14)]
        assert all(len(set(experts)) > 1 for experts in thirds)
    assert orders[0] == orders[1] != orders[2]


def test_calibrated_norms_are_standard_scores_over_the_rows(base: BaseModel, pool: Pool) -> None:
    trained = train_router(base, pool, "seqr", rows_of(), settings())
    calibrated, raw = QRNorm("calibrated"), QRNorm()
    site, plain = calibrated.prepare(trained)[Q], raw.prepare(trained)[Q]
    seen: list[torch.Tensor] = []
    hook = base.model.get_submodule(Q).register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for name, rows in rows_of().items():
        form = pool[name].card.prompt
        for row in rows[1:]:  # the first of eight is held back
            ids = form.prompt_ids(base.tokenizer, row.input) + form.target_ids(base.tokenizer, row.output)
            with torch.inference_mode():
                base.model(torch.tensor([ids]))
    hook.remove()
    lengths = raw.scores(torch.cat(seen), plain)
    wanted = (lengths - lengths.mean(dim=0)) / lengths.std(dim=0, correction=0)
    torch.testing.assert_close(calibrated.scores(torch.cat(seen), site), wanted, atol=1e-3, rtol=1e-3)


def test_ariadne_takes_the_expert_of_the_nearest_centroid(base: BaseModel, pool: Pool) -> None:
    scores = signals.create("ariadne").prepare(train_router(base, pool, "ariadne", rows_of(), settings()))
    centroids = scores.centroids  # pyright: ignore[reportAttributeAccessIssue]
    assert centroids.shape[:2] == (3, 2)
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(3, 2))
    query = normalize(torch.randn(6, centroids.shape[-1]), dim=-1)
    got = scores.of(QueryFeatures(6, inputs=query))
    nearest = [max(range(3), key=lambda e: max(float(c @ q) for c in centroids[e])) for q in query]
    assert got.argmax(dim=-1).tolist() == nearest
    assert (scores.of(QueryFeatures(6, inputs=query), without=1)[:, 1] == -torch.inf).all()


def test_lorauter_gives_a_task_the_adapter_of_least_loss() -> None:
    asked: list[tuple[str, int]] = []

    def loss(name: str, rows: Any) -> float:
        asked.append((name, len(rows)))
        return {"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0, "e": 0.5}[name]

    assert halving(list("abcde"), list(range(20)), loss) == "e"  # pyright: ignore[reportArgumentType]
    assert [asked.count((name, 4)) for name in "abcde"] == [1, 1, 1, 1, 1]
    assert {name for name, count in asked if count == 8} == {"b", "c", "e"}
    assert {name for name, count in asked if count == 16} == {"b", "e"}


def test_gates_fitted_on_few_rows_lower_their_loss_and_fold(base: BaseModel, pool: Pool) -> None:
    router, notes = MoleFit().fit(base, pool, rows_of()["e1"][:5], steps=15, learning_rate=0.3)
    assert notes["loss"] < notes["loss_before"]
    assert router.weights is not None and list(router.weights) == layers(pool)
    for weights in router.weights.values():
        assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    merged = router.expert(pool)
    a, b = merged.pairs[Q]
    wanted = sum(
        router.weights["model.layers.0"][e.name] * e.scaling(Q) * e.factors(Q)[1].float() @ e.factors(Q)[0].float()
        for e in pool
    )
    torch.testing.assert_close(b @ a, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(RouterError, match="few"):
        Mole().prepare(pool)
