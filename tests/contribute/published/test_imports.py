"""A checkpoint becomes a pool of its base, whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from glider.contribute.published_format import (
    NOMIC,
    OfficialCheckpoint,
    open_checkpoint,
)
from glider.contribute.published_import import OfficialBase, import_checkpoint
from glider.errors import BaseModelError, ExpertError, PoolError, RouterError
from glider.inference.base_model import load_base
from glider.layers.attach import attach
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose

from .checkpoints import NAMES, Tensors, left_behind, modules, random_experts, save_glider, save_phatgoose


@pytest.mark.parametrize("layout", ["glider", "phatgoose"])
def test_imported_pool(layout: str, experts: list[Tensors], base: OfficialBase, model: Any, tmp_path: Path) -> None:
    table = model.get_input_embeddings().weight.detach()
    if layout == "glider":
        tied = {f"base_model.model.{side}.embed_tokens.weight": table for side in ("encoder", "decoder")}
        path = save_glider([{**expert, **tied} for expert in experts], tmp_path / "glider")
    else:
        tied = {f"{side}.embed_tokens.weight": table for side in ("encoder", "decoder")}
        path = save_phatgoose(experts, tmp_path / "best.pt", **tied)
    vectors = {name: torch.randn(1, 768) for name in NAMES}
    seen = []
    pool = import_checkpoint(
        open_checkpoint(path, NAMES),
        tmp_path / "pool",
        base,
        embeddings={**vectors, "bbsnarks": torch.randn(2, 768)},
        descriptions={"p3yelp": "Rate a review."},
        licence="MIT",
        report=lambda *state: seen.append(state),
    )
    pool.verify()
    assert seen == [("p3xsum", 1, 3), ("p3agnews", 2, 3), ("p3yelp", 3, 3)]
    assert pool.names == list(NAMES) and pool.index.embedder == NOMIC
    assert pool.index.base == base.identity
    for position, (name, tensors) in enumerate(zip(NAMES, experts, strict=True)):
        expert = pool[name]
        assert torch.equal(expert.instruction, vectors[name][0])  # pyright: ignore
        assert expert.card.prompt.kind == "encoder-decoder"
        assert expert.card.description == ("Rate a review." if name == "p3yelp" else None)
        assert expert.card.training["gates"] == "trained" and expert.card.training["position"] == position
        for site in modules(model):
            a, b = expert.factors(site)
            assert a.dtype == torch.float32 and expert.scaling(site) == 1 / 16
            prefix = f"base_model.model.{site}"
            assert torch.equal(a, tensors[f"{prefix}.lora_A.default.weight"])
            assert torch.equal(b, tensors[f"{prefix}.lora_B.default.weight"])
            assert torch.equal(expert.gate(site), tensors[f"{prefix}.lora_gate.default"])  # pyright: ignore


def test_peft_loads_an_imported_expert(experts: list[Tensors], base: OfficialBase, t5_directory: Path, tmp_path: Path):
    """One expert alone: what PEFT computes is what the routed model computes."""
    directory = save_glider(experts, tmp_path / "glider")
    pool = import_checkpoint(open_checkpoint(directory / "p3xsum_best.pt"), tmp_path / "pool", base)
    ids = torch.tensor([[5, 9, 80, 33, 1]])
    own, routed = (load_base(str(t5_directory)).model for _ in range(2))
    with torch.inference_mode():
        wanted = PeftModel.from_pretrained(own, pool["p3xsum"].directory)(input_ids=ids, decoder_input_ids=ids).logits
        with attach(routed, pool, Phatgoose()).routing(None):
            got = routed(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_pool_without_embeddings_serves_routers_without_a_global_term(
    experts: list[Tensors], base: OfficialBase, tmp_path: Path
) -> None:
    pool = import_checkpoint(open_checkpoint(save_glider(experts, tmp_path / "glider")), tmp_path / "pool", base)
    assert pool.index.embedder is None
    Phatgoose().prepare(pool)
    with pytest.raises(RouterError, match="instruction embedding"):
        Glider().prepare(pool)


@pytest.mark.parametrize(("told", "recorded"), [("auto", "arrow"), ("trained", "trained"), ("arrow", "arrow")])
def test_gates_of_unit_length_are_arrows(
    told: Any, recorded: str, model: Any, base: OfficialBase, tmp_path: Path
) -> None:
    experts = random_experts(model, unit_gates=True)
    directory = save_glider(experts, tmp_path / "arrow")
    pool = import_checkpoint(open_checkpoint(directory, NAMES), tmp_path / "pool", base, gates=told)
    assert [expert.card.training["gates"] for expert in pool] == [recorded] * 3
    site = next(iter(modules(model)))
    kept = pool["p3xsum"].gate(site)
    assert kept is not None and torch.equal(kept, experts[0][f"base_model.model.{site}.lora_gate.default"])


def test_one_gate_of_another_length_is_not_arrows(model: Any, base: OfficialBase, tmp_path: Path) -> None:
    experts = random_experts(model, count=1, unit_gates=True)
    last = f"base_model.model.{list(modules(model))[-1]}.lora_gate.default"
    experts[0][last] = experts[0][last] * 1.01
    directory = save_glider(experts, tmp_path / "glider", ["a"])
    pool = import_checkpoint(open_checkpoint(directory), tmp_path / "pool", base)
    assert pool["a"].card.training["gates"] == "trained"


def test_embed_tokens_of_another_base_are_refused(
    experts: list[Tensors], base: OfficialBase, model: Any, tmp_path: Path
) -> None:
    other = model.get_input_embeddings().weight.detach().clone()
    other[17, 3] += 1e-4
    path = save_phatgoose(experts, tmp_path / "best.pt", **{"decoder.embed_tokens.weight": other})
    with pytest.raises(BaseModelError, match=r"decoder\.embed_tokens"):
        import_checkpoint(open_checkpoint(path, NAMES), tmp_path / "pool", base)
    assert left_behind(tmp_path, "best.pt") == []


def test_embed_tokens_in_bfloat16_are_the_bases(
    experts: list[Tensors], base: OfficialBase, model: Any, tmp_path: Path
) -> None:
    rounded = model.get_input_embeddings().weight.detach().bfloat16()
    path = save_phatgoose(experts, tmp_path / "best.pt", **{"encoder.embed_tokens.weight": rounded})
    assert len(import_checkpoint(open_checkpoint(path, NAMES), tmp_path / "pool", base)) == 3


def test_sites_of_another_base_are_refused(experts: list[Tensors], base: OfficialBase, tmp_path: Path) -> None:
    renamed = [{key.replace("block.0", "block.5"): value for key, value in e.items()} for e in experts]
    path = save_phatgoose(renamed, tmp_path / "best.pt")
    with pytest.raises(BaseModelError, match=r"block\.5.*no such module"):
        import_checkpoint(open_checkpoint(path, NAMES), tmp_path / "pool", base)


def test_an_existing_pool_is_left_alone(experts: list[Tensors], base: OfficialBase, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "mine").write_text("mine")
    with pytest.raises(PoolError, match="existing"):
        import_checkpoint(checkpoint, tmp_path / "pool", base)
    assert left_behind(tmp_path / "pool") == ["mine"]


def test_an_interrupted_import_leaves_nothing(experts: list[Tensors], base: OfficialBase, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    checkpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(checkpoint, tmp_path / "pool", base, report=interrupt)
    assert left_behind(tmp_path, "glider") == []


@pytest.mark.parametrize(
    ("vectors", "message"),
    [({"p3xsum": 1, "p3yelp": 1}, "none for p3agnews"), ({"p3xsum": 1, "p3yelp": 2, "p3agnews": 1}, "2 for p3yelp")],
)
def test_embeddings_that_do_not_fit_are_refused(
    vectors: dict[str, int], message: str, experts: list[Tensors], base: OfficialBase, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    embeddings = {name: torch.randn(rows, 768) for name, rows in vectors.items()}
    with pytest.raises(ExpertError, match=message):
        import_checkpoint(checkpoint, tmp_path / "pool", base, embeddings=embeddings)
    pool = import_checkpoint(
        checkpoint,
        tmp_path / "pool",
        base,
        embeddings={**embeddings, "p3yelp": torch.randn(1, 768)},
        without=["p3agnews"],
    )
    assert pool.names == ["p3xsum", "p3yelp"]


def test_only_experts_of_the_checkpoint_can_be_left_out(experts: list[Tensors], base: OfficialBase, tmp_path: Path):
    checkpoint: OfficialCheckpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    for without in (["p3sciq"], NAMES):
        with pytest.raises(ExpertError):
            import_checkpoint(checkpoint, tmp_path / "pool", base, without=without)
