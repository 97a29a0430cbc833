"""The published checkpoints: both layouts read alike, anything else refused, nothing half imported."""

import json
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import T5ForConditionalGeneration
from typer.testing import CliRunner

from glider.cli.import_official import import_official
from glider.contribute.published_format import (
    NOMIC,
    T0_TASKS,
    OfficialCheckpoint,
    OfficialExpert,
    open_checkpoint,
    read_embeddings,
)
from glider.contribute.published_import import OfficialBase, import_checkpoint
from glider.errors import BaseModelError, ExpertError, GliderError, PoolError, RouterError
from glider.experts.card import EmbedderIdentity
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.layers.attach import attach
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose

NAMES = ("p3xsum", "p3agnews", "p3yelp")
Tensors = dict[str, torch.Tensor]


def modules(model: Any) -> dict[str, torch.nn.Linear]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: module for name, module in linear.items() if name != "lm_head"}


def random_experts(model: Any, count: int = 3, rank: int = 2, unit_gates: bool = False) -> list[Tensors]:
    """Experts as GLIDER's files hold them, without embed_tokens."""
    chance = torch.Generator().manual_seed(7)
    experts = []
    for _ in range(count):
        tensors = {}
        for site, module in modules(model).items():
            gate = torch.randn(module.in_features, generator=chance)
            prefix = f"base_model.model.{site}"
            tensors[f"{prefix}.lora_A.default.weight"] = torch.randn(rank, module.in_features, generator=chance)
            tensors[f"{prefix}.lora_B.default.weight"] = torch.randn(module.out_features, rank, generator=chance)
            tensors[f"{prefix}.lora_gate.default"] = gate / gate.norm() if unit_gates else gate
        experts.append(tensors)
    return experts


def save_glider(experts: Sequence[Tensors], directory: Path, names: Sequence[str] = NAMES) -> Path:
    directory.mkdir()
    for name, tensors in zip(names, experts, strict=True):
        torch.save(tensors, directory / f"{name}_best.pt")
    return directory


def as_phatgoose(experts: Sequence[Tensors]) -> Tensors:
    renamed = {"lora_A.default.weight": "expert_lora.layer1", "lora_B.default.weight": "expert_lora.layer2"}
    renamed["lora_gate.default"] = "router.expert_embeddings"
    tensors = {}
    for number, expert in enumerate(experts):
        for key, value in expert.items():
            site, dot, part = key.removeprefix("base_model.model.").partition(".lora_")
            assert dot
            value = value if "gate" in part else value.T.contiguous()
            tensors[f"{site}._addons.{renamed['lora_' + part]}__{number}"] = value
    return tensors


def save_phatgoose(experts: Sequence[Tensors], file: Path, **more: torch.Tensor) -> Path:
    torch.save({**as_phatgoose(experts), **more}, file)
    return file


@pytest.fixture(scope="module")
def model(t5_directory: Path) -> T5ForConditionalGeneration:
    return load_base(str(t5_directory)).model


@pytest.fixture(scope="module")
def base(model: Any, t5_directory: Path) -> OfficialBase:
    return OfficialBase.of(model, t5_directory.name)


@pytest.fixture
def experts(model: Any) -> list[Tensors]:
    return random_experts(model)


def left_behind(directory: Path, *known: str) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name not in known)


def same(one: OfficialExpert, other: OfficialExpert) -> bool:
    assert one.name == other.name and one.rank == other.rank
    assert list(one.lora) == list(other.lora) and list(one.gates) == list(other.gates)
    pairs = [(one.lora[key], other.lora[key]) for key in one.lora]
    pairs += [(one.gates[key], other.gates[key]) for key in one.gates]
    return all(torch.equal(*pair) for pair in pairs)


def test_published_order() -> None:
    assert len(set(T0_TASKS)) == 36
    assert (T0_TASKS[0], T0_TASKS[3], T0_TASKS[-1]) == ("p3agnews", "p3samsum", "p3dbpedia14")


def test_both_layouts_hold_the_same_experts(experts: list[Tensors], tmp_path: Path) -> None:
    by_file = open_checkpoint(save_glider(experts, tmp_path / "glider"), NAMES)
    at_once = open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"), NAMES)
    assert (by_file.layout, at_once.layout) == ("glider", "phatgoose")
    assert by_file.names == at_once.names == NAMES
    assert all(same(one, other) for one, other in zip(by_file.experts(), at_once.experts(), strict=True))


def test_files_are_taken_in_the_order_of_their_names(experts: list[Tensors], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    assert list(checkpoint.names) == sorted(NAMES)
    assert [expert.name for expert in checkpoint.experts(without=["p3xsum"])] == ["p3agnews", "p3yelp"]


def test_one_file_is_one_expert(experts: list[Tensors], tmp_path: Path) -> None:
    file = save_glider(experts, tmp_path / "glider") / "p3yelp_best.pt"
    assert open_checkpoint(file).names == ("p3yelp",)
    assert open_checkpoint(file, ["mine"]).names == ("mine",)


def test_a_file_of_36_experts_has_the_published_order(tmp_path: Path) -> None:
    part = {"A": torch.ones(1, 4), "B": torch.ones(4, 1), "gate": torch.ones(4)}
    site = "base_model.model.encoder.x"
    keys = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "gate": "lora_gate.default"}
    experts = [{f"{site}.{keys[p]}": number * value for p, value in part.items()} for number in range(36)]
    checkpoint = open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"))
    read = {expert.name: float(expert.gates["encoder.x"][0]) for expert in checkpoint.experts()}
    assert tuple(read) == T0_TASKS
    assert read["p3samsum"] == 3


def test_files_from_before_torch_1_6_are_read_too(experts: list[Tensors], tmp_path: Path) -> None:
    directory = save_glider(experts, tmp_path / "glider")
    new, old = directory / "p3xsum_best.pt", tmp_path / "p3xsum_best.pt"
    torch.save(experts[0], old, _use_new_zipfile_serialization=False)
    assert same(next(open_checkpoint(old).experts()), next(open_checkpoint(new).experts()))


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


def test_embeddings_of_one_and_of_two_wordings(tmp_path: Path) -> None:
    one, two = torch.randn(768), torch.randn(2, 768)
    torch.save({"p3yelp": one, "bbsnarks": two}, tmp_path / "nomic.pt")
    read = read_embeddings(tmp_path / "nomic.pt")
    assert torch.equal(read["p3yelp"], one[None]) and torch.equal(read["bbsnarks"], two)


@pytest.mark.parametrize(
    "bad", [torch.randn(767), torch.randn(1, 2, 768), torch.full((768,), torch.nan), torch.ones(())]
)
def test_other_embeddings_are_refused(bad: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"p3yelp": bad}, tmp_path / "nomic.pt")
    with pytest.raises(ExpertError, match=r"p3yelp of shape"):
        read_embeddings(tmp_path / "nomic.pt")


def drop(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[next(key for key in reversed(tensors) if part in key)]

    return change


def put(key: str, value: Any) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({key: value})


Q = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("lora_gate"), "no gate"),
        (drop("lora_A"), "no LoRA factor A"),
        (drop("lora_B"), "no LoRA factor B"),
        (put(f"{Q}.lora_gate.default", torch.ones(31)), r"gate \(31,\)"),
        (put(f"{Q}.lora_A.default.weight", torch.ones(3, 32)), r"A \(3, 32\)"),
        (put(f"{Q}.lora_gate.default", torch.ones(32, dtype=torch.int64)), "int64"),
        (put(f"{Q}.lora_gate.default", torch.eye(32).to_sparse()), "sparse"),
        (put(f"{Q}.base_layer.weight", torch.ones(32, 32)), "base_layer"),
        (put(f"{Q}.lora_A.other.weight", torch.ones(2, 32)), "lora_A.other"),
        (put(f"{Q}._addons.expert_lora.layer1__x", torch.ones(2, 32)), "layer1__x"),
        (put("epoch", 3), "'epoch': int"),
    ],
)
def test_another_layout_is_refused(
    change: Callable[[dict], None], message: str, experts: list[Tensors], base: OfficialBase, tmp_path: Path
) -> None:
    """The fault is in the last expert, and the first ones leave nothing behind."""
    change(experts[2])
    directory = save_glider(experts, tmp_path / "glider", ("a", "b", "c"))
    with pytest.raises(ExpertError, match=message) as refused:
        import_checkpoint(open_checkpoint(directory), tmp_path / "pool", base)
    assert "c_best.pt" in str(refused.value)
    assert left_behind(tmp_path, "glider") == []


def test_a_missing_gate_in_one_file_of_all_is_refused(experts: list[Tensors], base: OfficialBase, tmp_path: Path):
    tensors = as_phatgoose(experts)
    del tensors["encoder.block.0.layer.0.SelfAttention.q._addons.router.expert_embeddings__1"]
    torch.save(tensors, tmp_path / "best.pt")
    with pytest.raises(ExpertError, match=r"gate at encoder.*SelfAttention.q of expert p3agnews") as refused:
        import_checkpoint(open_checkpoint(tmp_path / "best.pt", NAMES), tmp_path / "pool", base)
    assert "no gate" in str(refused.value)
    assert left_behind(tmp_path, "best.pt") == []


def test_a_number_left_out_is_refused(experts: list[Tensors], tmp_path: Path) -> None:
    tensors = {key.replace("__1", "__7"): value for key, value in as_phatgoose(experts).items()}
    torch.save(tensors, tmp_path / "best.pt")
    with pytest.raises(ExpertError, match="none numbered 1"):
        open_checkpoint(tmp_path / "best.pt", NAMES)


@pytest.mark.parametrize("order", [None, NAMES[:2], ("a", "a", "b"), ("a", "b", "../c"), ("a", "b", "")])
def test_an_order_that_does_not_fit_is_refused(order: Any, experts: list[Tensors], tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="order"):
        open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"), order)


@pytest.mark.parametrize("order", [NAMES[:2], (*NAMES[:2], "p3sciq")])
def test_an_order_that_does_not_fit_the_files_is_refused(order: Any, experts: list[Tensors], tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="order"):
        open_checkpoint(save_glider(experts, tmp_path / "glider"), order)


class Exploding:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_anything_else_is_not_run(zipped: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a_best.pt"
    if zipped:
        torch.save({"x": Exploding(mark)}, file)
    else:
        file.write_bytes(pickle.dumps({"x": Exploding(mark)}))
    with pytest.raises(ExpertError, match="nothing but tensors") as refused:
        open_checkpoint(file)
    assert not mark.exists()
    assert "weights_only" not in str(refused.value) and refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 and no more", b"\x80\x02}q\x00.", b"text\n", b"version https://git-lfs.github.com/spec/v1\n"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a_best.pt").write_bytes(content)
    with pytest.raises(ExpertError, match=r"a_best\.pt"):
        next(open_checkpoint(tmp_path).experts())


def test_a_truncated_file_is_refused(experts: list[Tensors], tmp_path: Path) -> None:
    file = save_phatgoose(experts, tmp_path / "best.pt")
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ExpertError, match=r"best\.pt"):
        open_checkpoint(file, NAMES)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (torch.zeros(1).expand(1 << 17, 1 << 17), "no larger than their file"),
        (torch.empty(1 << 20, 1 << 20, device="meta"), "nothing but tensors"),
    ],
)
def test_a_tensor_larger_than_its_file_is_refused(value: torch.Tensor, wanted: str, tmp_path: Path) -> None:
    """The first one is four bytes in the file and 64 GB as soon as it is copied."""
    torch.save({"base_model.model.x.lora_A.default.weight": value}, tmp_path / "a_best.pt")
    for read in (open_checkpoint, read_embeddings):
        with pytest.raises(ExpertError, match=rf"{wanted}.* in .*a_best\.pt"):
            read(tmp_path / "a_best.pt")


@pytest.mark.parametrize("zipped", [True, False])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4), kept=st.floats(0, 1)
)
@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_checkpoint_is_read_or_refused(
    zipped: bool, changes: list[tuple[float, bytes]], kept: float, tmp_path: Path
) -> None:
    """Bytes written over at any place, the end cut off; anything but a `GliderError` comes out."""
    part = {"A.default.weight": torch.ones(1, 4), "B.default.weight": torch.ones(4, 1), "gate.default": torch.ones(4)}
    tensors = {f"base_model.model.encoder.x.lora_{key}": value for key, value in part.items()}
    file = tmp_path / "a_best.pt"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    content = bytearray(file.read_bytes())
    for where, more in changes:
        at = int(where * len(content))
        content[at : at + len(more)] = more
    file.write_bytes(content if kept > 0.5 else content[: int(2 * kept * len(content))])
    for read in (lambda: list(open_checkpoint(file).experts()), lambda: read_embeddings(file)):
        with suppress(GliderError):
            read()


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ExpertError, match=r"<task>_best\.pt"):
        open_checkpoint(tmp_path)


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


def test_an_unknown_probe_matches_by_name_prefix_and_dimension() -> None:
    known = NOMIC.model_copy(update={"probe": (0.1, 0.2)})
    assert NOMIC.matches(known) and known.matches(NOMIC) and NOMIC.matches(NOMIC)
    for change in ({"embedder": "other"}, {"prefix": "q: "}, {"dimension": 767}):
        other: EmbedderIdentity = known.model_copy(update=change)
        assert not NOMIC.matches(other) and not other.matches(NOMIC)


@pytest.fixture
def command() -> Callable[..., Any]:
    """`command(*arguments)` runs the command by itself; a `GliderError` comes through."""
    app = typer.Typer()
    app.command()(import_official)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, GliderError):
            raise result.exception
        return result

    return run


def test_command(command: Callable[..., Any], experts: list[Tensors], t5_directory: Path, tmp_path: Path) -> None:
    path = save_phatgoose(experts, tmp_path / "best.pt")
    torch.save({name: torch.randn(768) for name in NAMES}, tmp_path / "nomic.pt")
    (tmp_path / "says.json").write_text(json.dumps({"p3yelp": "Rate a review."}))
    (tmp_path / "order.txt").write_text("\n".join(NAMES) + "\n")
    options = ["--base", t5_directory, "--embeddings", tmp_path / "nomic.pt", "--descriptions", tmp_path / "says.json"]
    options += ["--dtype", "bfloat16", "--licence", "MIT", "--without", "p3agnews"]
    for number, order in enumerate((",".join(NAMES), tmp_path / "order.txt")):
        pool = tmp_path / f"pool{number}"
        ran = command(path, "--pool", pool, "--order", order, *options)
        assert ran.exit_code == 0, ran.output
        assert "2 experts" in ran.output and "trained gates" in ran.output
        opened = Pool.open(pool)
        assert opened.names == ["p3xsum", "p3yelp"]
        assert opened["p3yelp"].card.description == "Rate a review." and opened["p3yelp"].card.licence == "MIT"
        assert opened["p3yelp"].factors(opened.sites[0])[0].dtype == torch.bfloat16


def test_command_refuses(command: Callable[..., Any], experts: list[Tensors], t5_directory: Path, tmp_path: Path):
    path, pool = save_phatgoose(experts, tmp_path / "best.pt"), tmp_path / "pool"
    for arguments, message in (
        ([path, "--pool", pool], "--order"),
        ([path, "--pool", tmp_path], "existing"),
        ([path, "--pool", pool, "--order", ",".join(NAMES), "--descriptions", path], "JSON"),
        ([path, "--pool", pool, "--order", ",".join(NAMES), "--descriptions", tmp_path / "no"], "no such file"),
    ):
        with pytest.raises(GliderError, match=message):
            command(*arguments, "--base", t5_directory)
    assert left_behind(tmp_path, "best.pt") == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory of a part of a run is Linux's")
def test_many_experts_need_the_memory_of_one(tmp_path: Path) -> None:
    """Peak memory of importing two experts of 32 MB, and of six from one file: less than half of one more.

    Not by `getrusage`, whose peak begins with that of the process that started this one.
    """
    script = """
        import re, sys
        from pathlib import Path
        import peft, torch
        from glider.experts.base_identity import BaseIdentity
        from glider.contribute.published_format import open_checkpoint
        from glider.contribute.published_import import OfficialBase, import_checkpoint

        here, sites = Path(sys.argv[1]), ("encoder.a", "encoder.b")
        base = OfficialBase(BaseIdentity(model_id="m", config_hash="c", weight_hashes={}), torch.ones(2, 2),
                            {site: (4096, 4096) for site in sites})

        def memory(field):
            return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

        def growth(count):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is used now
            before = memory("VmRSS")
            names = [f"e{i}" for i in range(count)]
            import_checkpoint(open_checkpoint(here / f"{count}.pt", names), here / f"pool{count}", base)
            return memory("VmHWM") - before

        growth(1)  # whatever is loaded or kept once
        print(growth(2), growth(6))
    """
    for count in (1, 2, 6):
        tensors = {}
        for number in range(count):
            for site in ("encoder.a", "encoder.b"):
                prefix = f"{site}._addons."
                tensors[f"{prefix}expert_lora.layer1__{number}"] = torch.randn(4096, 500)
                tensors[f"{prefix}expert_lora.layer2__{number}"] = torch.randn(500, 4096)
                tensors[f"{prefix}router.expert_embeddings__{number}"] = torch.randn(4096)
        torch.save(tensors, tmp_path / f"{count}.pt")
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    two, six = map(float, subprocess.check_output(command, text=True).split())
    assert six < two + 16, (two, six)
    assert six < 4 * 32, (two, six)


def _pickled(file: Path, content: bytes) -> Path:
    """An archive as torch writes it, with this pickle in place of its own."""
    torch.save({"t": torch.ones(768)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, content if name.endswith("data.pkl") else part)
    return file


_PAIRS = b"X\x01\x00\x00\x00a" + b"2\x86" * 60  # of pairs of pairs: hashed, or written out, for ever


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\nbytearray\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.",
        b"ctorch\nTensor\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.",
        b"ccollections\nCounter\nX\x05\x00\x00\x00aaaaa\x85R.",
        b"ccollections\nOrderedDict\n](X\x01\x00\x00\x00aK\x01\x86e\x85R.",
        b"}" + _PAIRS + b"K\x01s.",
        b"}(" + _PAIRS + b"K\x01u.",
        b"(" + _PAIRS + b"K\x01d.",
        b"\x8f(" + _PAIRS + b"\x90.",
        b"}(" + b"".join(b"X\x06\x00\x00\x00%06dK\x01" % number for number in range(200_000)) + b"u.",
    ],
    ids=["bytes", "tensor", "counter", "copies", "key", "keys", "old keys", "set", "names"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_grows_or_never_ends_is_refused(content: bytes, zipped: bool, tmp_path: Path) -> None:
    """What runs no code may still fill the memory, or take for ever: in torch's own reader all of these do."""
    file, whole = tmp_path / "a_best.pt", b"\x80\x02" + content
    if zipped:
        _pickled(file, whole)
    else:
        file.write_bytes(whole)
    for read in (open_checkpoint, read_embeddings):
        with pytest.raises(ExpertError, match="nothing but tensors"):
            read(file)


def test_an_archive_that_readers_read_unlike_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a_best.pt"
    torch.save({"t": torch.ones(768)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/DATA.PKL", b"\x80\x02}.")
    with pytest.raises(ExpertError, match="another archive"):
        read_embeddings(file)


def test_many_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """A hundred names of the whole file were a hundred copies of it."""
    one = torch.ones(64, 768)
    torch.save({f"t{number}": one for number in range(100)}, tmp_path / "t.pt")
    with pytest.raises(ExpertError, match="no larger than their file"):
        read_embeddings(tmp_path / "t.pt")
    torch.save({f"t{number}": one for number in range(3)}, tmp_path / "t.pt")
    assert len(read_embeddings(tmp_path / "t.pt")) == 3


def test_a_checkpoint_from_before_archives_is_read(tmp_path: Path) -> None:
    names = {"base_model.model.encoder.a" + key: value for key, value in _one_site().items()}
    torch.save(names, tmp_path / "a_best.pt", _use_new_zipfile_serialization=False)
    (expert,) = open_checkpoint(tmp_path / "a_best.pt").experts()
    assert torch.equal(expert.gates["encoder.a"], names["base_model.model.encoder.a.lora_gate.default"])


def _one_site() -> Tensors:
    shapes = {".lora_A.default.weight": (2, 4), ".lora_B.default.weight": (4, 2), ".lora_gate.default": (4,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}
