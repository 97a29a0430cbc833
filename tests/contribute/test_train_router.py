"""Trained routers: what they learn, training that goes on where it was broken off, files that nobody has to trust."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from glider.cli.main import main
from glider.contribute import train_router as module
from glider.contribute.router_statistics import halving, k_means, moved
from glider.contribute.settings import RouterTraining
from glider.contribute.train_router import train_router
from glider.data.rows import Row
from glider.errors import GliderError, PoolError, RouterError
from glider.experts.membership import remove_expert
from glider.experts.pool import Pool
from glider.experts.router_files import router_path
from glider.files.opening import sha256
from glider.inference.base_model import BaseModel, load_base
from glider.inference.spec import ModelSpec
from glider.layers.attach import attach
from glider.routing.base import QueryFeatures
from glider.routing.local_scores.seqr import QRNorm
from glider.routing.methods.joint import Joint
from glider.routing.methods.mindskip import MindSkip
from glider.routing.methods.mindskip_attention import MindSkipAttention
from glider.routing.methods.mole import Mole, layers
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.methods.task_moe import TaskMoe
from glider.routing.methods.vq import Vq
from glider.routing.scores import standardise
from glider.routing.select import TopK
from glider.routing.signals.base import signals
from glider.routing.specification import parsed, router_from
from glider.sharing.signature import generate_keys, sign_pool
from glider.testing import check_router

WORDS = {"e0": "red green", "e1": "seven eight", "e2": "do re mi"}
KINDS = ["joint", "mindskip", "mindskip-attention", "task-moe", "vq", "seqr", "ariadne", "lorauter"]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pool(pool_with_profiles) -> Pool:
    return pool_with_profiles(experts=3, alpha=0.5)


@pytest.fixture
def base(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


def rows_of(count: int = 8) -> dict[str, list[Row]]:
    return {
        name: [
            Row.model_validate({"input": f"the {name} {name}{i} and {words}", "output": words[: 2 + i % 3]})
            for i in range(count)
        ]
        for name, words in WORDS.items()
    }


def settings(**more: Any) -> RouterTraining:
    return RouterTraining(**{"steps": 4, "batch_size": 4, "codes": 5, "centroids": 2, **more})


def plain_scores(base: BaseModel, pool: Pool) -> list[list[float]]:
    """What routers that are not trained beside a pool say."""
    scores = []
    for text in ("phatgoose", "glider(global=examples)", "seqr"):
        model = ModelSpec(router=router_from(*parsed(text))).over(base, pool)
        scores.append([choice.log_likelihood for choice in model.score("the e1 e13 and", ["yes", "no"])])
        model.detach()
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_trained_stored_recorded_and_read(base: BaseModel, pool: Pool, kind: str) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    others = plain_scores(base, pool)
    trained = train_router(base, pool, kind, rows_of(), settings())
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.model.parameters())
    record = (trained.index.routers or {})[kind]
    assert list(record.experts) == ["e0", "e1", "e2"] and record.settings["steps"] == 4
    again = Pool.open(pool.path)
    again.verify()
    assert not list(router_path(pool.path, kind).parent.glob(".*.training"))
    if kind in ("ariadne", "lorauter"):
        text = f"glider(global={kind})"
    else:
        text = "seqr(norms=calibrated)" if kind == "seqr" else kind
    router = router_from(*parsed(text))
    check_router(router, again, base)
    if kind in ("joint", "vq"):
        check_router(router_from(f"glider+{kind}", {}), again, base)
    assert plain_scores(base, again) == others, "what is trained changes no other router"


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


@pytest.mark.parametrize("kind", ["joint", "mindskip", "mindskip-attention", "task-moe"])
def test_training_that_was_broken_off_ends_with_the_same_bits(
    base: BaseModel, pool: Pool, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = train_router(base, pool, kind, rows_of(), settings(steps=6))
    wanted = router_path(pool.path, kind).read_bytes()
    router_path(pool.path, kind).unlink()
    monkeypatch.setattr("glider.contribute.loop.SAVE_SECONDS", 0.0)

    def break_off(what: str, done: int, all_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_router(base, whole, kind, rows_of(), settings(steps=6), break_off)
    steps: list[int] = []
    train_router(base, whole, kind, rows_of(), settings(steps=6), lambda what, done, all_: steps.append(done))
    assert steps[0] == 3 + (steps[0] != 3) and steps[-1] == 6 and len(steps) < 6
    assert router_path(pool.path, kind).read_bytes() == wanted


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
    new, sizes, nearest = moved(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([4.0, 2.0]), x)
    assert nearest.tolist() == [0, 0, 1]
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
    router, notes = Mole.fit(base, pool, rows_of()["e1"][:5], steps=15, learning_rate=0.3)
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


def test_a_router_for_other_experts_or_of_a_changed_file_is_refused(
    base: BaseModel, pool: Pool, llama_directory: Path, grow_pool, edit_tensors
) -> None:
    trained = train_router(base, pool, "joint", rows_of(), settings())
    with pytest.raises(RouterError, match="trained for the pool's experts"):
        Joint().prepare(grow_pool(trained, llama_directory, "more", seed=9))
    remove_expert(pool.path, "more")
    with pytest.raises(RouterError, match="train-router"):
        Vq().prepare(Pool.open(pool.path))
    file = router_path(pool.path, "joint")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = Pool.open(pool.path)
    for check in (again.verify, lambda: Joint().prepare(again)):
        with pytest.raises(PoolError, match="unchanged since it was trained"):
            check()
    file.write_bytes(b"0" * (1 << 20))
    with pytest.raises(PoolError):
        again.verify()


@pytest.mark.parametrize("change", ["name", "shape", "value", "kind"])
def test_tensors_that_are_no_router_are_refused(base: BaseModel, pool: Pool, edit_tensors, change: str) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    file = router_path(pool.path, "joint")
    changes: dict[str, Any] = {
        "name": lambda t: t.update({"other": t.pop(Q)}),
        "shape": lambda t: t.update({Q: t[Q][:2].clone()}),
        "value": lambda t: t[Q].fill_(torch.nan),
        "kind": lambda t: t.update({Q: t[Q].long()}),
    }
    edit_tensors(file, changes[change])
    index = json.loads((pool.path / "pool.json").read_text("utf8"))
    index["routers"]["joint"] |= {"sha256": sha256(file), "size": file.stat().st_size}
    (pool.path / "pool.json").write_text(json.dumps(index), "utf8")
    with pytest.raises(GliderError, match="joint"):
        Joint().prepare(Pool.open(pool.path))


def test_a_signature_vouches_for_the_router(base: BaseModel, pool: Pool, tmp_path: Path) -> None:
    train_router(base, pool, "vq", rows_of(), settings())
    generate_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    sign_pool(pool.path, tmp_path / "private.pem")
    signed = Pool.open(pool.path, tmp_path / "public.pem")
    signed.verify()
    attach(base.model, signed, Vq()).detach()
    train_router(base, signed, "joint", rows_of(), settings())
    with pytest.raises(PoolError, match="signed"):
        Pool.open(pool.path, tmp_path / "public.pem")


def test_an_index_without_routers_is_written_as_before(pool: Pool) -> None:
    assert "routers" not in json.loads((pool.path / "pool.json").read_text("utf8"))


def test_what_cannot_be_trained_is_refused(base: BaseModel, pool: Pool) -> None:
    with pytest.raises(RouterError, match="joint"):
        train_router(base, pool, "glider", rows_of(), settings())
    with pytest.raises(GliderError, match="e2"):
        train_router(base, pool, "joint", {"e0": rows_of()["e0"], "e1": rows_of()["e1"]}, settings())


def test_the_command_trains_for_one_pool_and_says_where(
    llama_directory: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name, rows in rows_of().items():
        lines = [json.dumps({"input": row.input, "output": row.output}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf8")

    def run(*arguments: str) -> tuple[int, str]:
        command = ["glider", "pool", "train-router", str(pool.path), "--base", str(llama_directory), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    data = str(tmp_path / "{name}.jsonl")
    code, told = run("--router", "vq", "--data", data, "--codes", "4")
    assert code == 0 and "routers/vq.safetensors" in told
    Vq().prepare(Pool.open(pool.path))
    assert run("--router", "nothing", "--data", data)[0] == 2
    code, told = run("--router", "vq", "--data", str(tmp_path / "e0.jsonl"))
    assert code == 2 and "{name}" in told


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_router_behind_a_link_is_neither_written_nor_read(
    base: BaseModel, pool: Pool, tmp_path: Path, kind: str
) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    place = router_path(pool.path, "joint")
    outside = tmp_path / "outside"
    if kind == "folder":
        place.parent.rename(outside)
        place.parent.symlink_to(outside)
        before = sorted(outside.iterdir())
        with pytest.raises(GliderError, match="link"):
            train_router(base, pool.reload(), "vq", rows_of(), settings())
        assert sorted(outside.iterdir()) == before
    else:
        place.rename(outside)
        place.symlink_to(outside)
    with pytest.raises(GliderError, match="link"):
        Pool.open(pool.path).verify()


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0"])
def test_a_router_of_a_dtype_without_a_name_is_refused(base: BaseModel, pool: Pool, dtype: str) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    file = router_path(pool.path, "joint")
    header = json.dumps({Q: {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    index = json.loads((pool.path / "pool.json").read_text("utf8"))
    index["routers"]["joint"] |= {"sha256": sha256(file), "size": file.stat().st_size}
    (pool.path / "pool.json").write_text(json.dumps(index), "utf8")
    with pytest.raises(GliderError, match="joint"):
        Joint().prepare(Pool.open(pool.path))
