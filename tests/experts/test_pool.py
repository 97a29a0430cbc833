"""A pool on disk: what opening checks, what it leaves unread, and that nothing is ever half done."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from glider.errors import ExpertError, GliderError, PoolError, RouterError
from glider.experts.base_identity import identify
from glider.experts.card import EmbedderIdentity
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Calibration, Pool
from glider.inference.base_model import BaseModel, load_base

Q = "model.layers.0.self_attn.q_proj"

Edit = Callable[..., None]


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
    llama: BaseModel,
    random_expert: Callable[..., Expert],
    embedder_identity: EmbedderIdentity,
) -> Path:
    """A pool of ex0 and ex1, with the directory of ex2 beside them."""
    pool = Pool.create(tmp_path_factory.mktemp("pristine") / "pool", llama.identity)
    for i in range(3):
        random_expert(pool.path / f"ex{i}", llama, seed=i, embedder=embedder_identity, sites=[Q])
    return pool.add("ex0").add("ex1").path


@pytest.fixture
def path(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a sound pool, free to be damaged."""
    return shutil.copytree(pristine, tmp_path / "pool")


def state(path: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file of a pool."""
    files = [file for file in path.rglob("*") if file.is_file()]
    told = {str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    return {name: what for name, what in told.items() if name != ".pool.lock"}  # which some versions of filelock touch


def others(of: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    return {name: what for name, what in of.items() if name != "pool.json"}


def refused(path: Path, error: type[GliderError], *parts: str) -> str:
    """The message of the error that opening raises, which must name all `parts`."""
    with pytest.raises(error) as raised:
        Pool.open(path)
    for part in parts:
        assert part in str(raised.value)
    return str(raised.value)


def refused_member(path: Path, error: type[GliderError], *parts: str, name: str = "ex2") -> None:
    """Adding `name` raises an error that names all `parts`, and changes no byte of the pool."""
    before = state(path)
    pool = Pool.open(path)
    with pytest.raises(error) as raised:
        pool.add(name)
    for part in parts:
        assert part in str(raised.value)
    assert state(path) == before
    assert Pool.open(path).names == ["ex0", "ex1"]


def edit_records(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    index = json.loads((path / "pool.json").read_text("utf8"))
    change(index["experts"])
    (path / "pool.json").write_text(json.dumps(index), "utf8")


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_pool_opens_in_the_order_of_its_index(path: Path):
    pool = Pool.open(path)
    assert pool.names == ["ex0", "ex1"]
    assert [expert.name for expert in pool] == ["ex0", "ex1"]
    assert len(pool) == 2
    assert pool.sites == [Q]
    assert pool["ex1"].directory == path / "ex1"
    pool.verify()


def test_adding_touches_nothing_but_the_index(path: Path):
    before = state(path)
    assert Pool.open(path).add("ex2").names == ["ex0", "ex1", "ex2"]
    after = state(path)
    assert others(after) == others(before)
    assert after["pool.json"] != before["pool.json"]
    Pool.open(path).verify()


def test_removing_touches_nothing_but_the_index(path: Path):
    before = state(path)
    assert Pool.open(path).remove("ex0").names == ["ex1"]
    assert others(state(path)) == others(before)
    assert Pool.open(path).names == ["ex1"]


def test_removing_and_adding_again_comes_back_to_the_same_index(path: Path):
    before = (path / "pool.json").read_bytes()
    Pool.open(path).remove("ex1").add("ex1")
    assert (path / "pool.json").read_bytes() == before


def test_a_calibration_is_kept_with_the_index(path: Path):
    calibration = Calibration(p=0.7, source="held-in queries")
    before = state(path)
    index = Pool.open(path).calibrate("examples", calibration).index
    assert (index.signal, index.calibrations) == ("examples", {"examples": calibration})
    assert Pool.open(path).calibrate("ensemble", calibration, default=False).index.signal == "examples"
    assert Pool.open(path).add("ex2").index.calibrations["examples"] == calibration
    assert others(state(path)) == others(before)


def test_the_first_described_expert_names_the_embedder(
    llama: BaseModel, tmp_path: Path, random_expert: Callable[..., Expert], embedder_identity: EmbedderIdentity
):
    pool = Pool.create(tmp_path / "pool", llama.identity)
    random_expert(pool.path / "a", llama, sites=[Q])
    random_expert(pool.path / "b", llama, sites=[Q], embedder=embedder_identity)
    assert pool.add("a").index.embedder is None
    assert Pool.open(pool.path).add("b").index.embedder == embedder_identity


def test_opening_reads_no_tensor(path: Path):
    flip_last_byte(path / "ex1" / "adapter_model.safetensors")
    pool = Pool.open(path)
    with pytest.raises(ExpertError) as raised:
        pool.verify()
    assert "ex1" in str(raised.value)
    assert "adapter_model.safetensors" in str(raised.value)


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_file_of_another_hash_fails_verification(path: Path, file: str):
    if file.endswith(".json"):
        content = (path / "ex1" / file).read_text("utf8")
        assert content.endswith("}\n")
        (path / "ex1" / file).write_text(content[:-1] + " ", "utf8")
    else:
        flip_last_byte(path / "ex1" / file)
    with pytest.raises(ExpertError) as raised:
        Pool.open(path).verify()
    assert "ex1" in str(raised.value)
    assert file in str(raised.value)


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_missing_file_of_a_member_is_named(path: Path, file: str):
    (path / "ex1" / file).unlink()
    refused(path, PoolError, "ex1", file, "no such file")


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_truncated_file_of_a_member_is_named(path: Path, file: str):
    os.truncate(path / "ex1" / file, 20)
    refused(path, PoolError, "ex1", file, "20 bytes")


def test_a_member_whose_directory_vanished_is_named(path: Path):
    shutil.rmtree(path / "ex0")
    refused(path, PoolError, "ex0")


def test_a_directory_without_an_index_is_no_pool(tmp_path: Path):
    refused(tmp_path, PoolError, "pool.json", str(tmp_path))


def test_a_file_is_no_pool(path: Path):
    refused(path / "pool.json", PoolError, "pool.json")


@pytest.mark.parametrize("damage", [b"", b'{"format": 1', b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_index_is_named(path: Path, damage: bytes):
    (path / "pool.json").write_bytes(damage)
    refused(path, PoolError, str(path / "pool.json"))


@pytest.mark.parametrize(
    "change",
    [{"format": 0}, {"format": 3}, {"flavour": "sweet"}, {"base": {}}, {"calibrations": {"examples": {"q": 1}}}],
)
def test_an_index_of_no_known_format_is_refused(path: Path, edit_json: Edit, change: dict[str, Any]):
    edit_json(path / "pool.json", **change)
    refused(path, PoolError, str(path / "pool.json"), next(iter(change)))


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "", "a/b", "a\\b", "ex0\n", ".hidden", "x" * 200])
def test_a_name_that_leaves_the_pool_is_refused(path: Path, name: str):
    shutil.copytree(path / "ex0", path.parent / "x")
    edit_records(path, lambda records: records[0].update(name=name))
    refused(path, PoolError, "pool.json", "experts.0.name")


def test_a_name_that_leaves_the_pool_cannot_be_added(path: Path):
    shutil.copytree(path / "ex2", path.parent / "ex2")
    refused_member(path, GliderError, "../ex2", name="../ex2")


def test_a_record_of_a_foreign_file_is_refused(path: Path):
    edit_records(path, lambda records: records[0]["files"].update({"../../secret": {"sha256": "0" * 64, "size": 0}}))
    refused(path, PoolError, "ex0", "secret")


def test_a_record_that_leaves_out_a_file_is_refused(path: Path):
    edit_records(path, lambda records: records[1]["files"].pop("glider.safetensors"))
    refused(path, PoolError, "ex1", "glider.safetensors")


def test_an_expert_recorded_twice_is_refused(path: Path):
    """It would count double wherever the experts of a pool are weighed against each other."""
    edit_records(path, lambda records: records.append(records[0]))
    refused(path, PoolError, "ex0")


def test_an_expert_of_another_name_than_its_directory_is_refused(path: Path):
    (path / "ex2").rename(path / "ex3")
    refused_member(path, PoolError, "ex2", "ex3", name="ex3")


def test_a_member_cannot_be_added_again(path: Path):
    refused_member(path, PoolError, "ex1", name="ex1")


def test_an_absent_expert_cannot_be_added(path: Path):
    refused_member(path, ExpertError, "ex9", "card.json", name="ex9")


def test_an_unknown_expert_cannot_be_removed(path: Path):
    before = state(path)
    with pytest.raises(PoolError, match="ex0, ex1") as raised:
        Pool.open(path).remove("ex2")
    assert "ex2" in str(raised.value)
    assert state(path) == before


def test_a_pool_is_not_made_over_another(path: Path, llama: BaseModel):
    before = state(path)
    with pytest.raises(PoolError, match="existing"):
        Pool.create(path, llama.identity)
    assert state(path) == before


def test_a_fresh_pool_is_empty(tmp_path: Path, llama: BaseModel):
    pool = Pool.create(tmp_path / "new" / "pool", llama.identity)
    assert len(pool) == 0
    assert pool.sites == []
    pool.verify()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "glider.safetensors"])
def test_an_expert_that_is_not_finite_cannot_be_added(path: Path, edit_tensors: Edit, file: str, value: float):
    edit_tensors(path / "ex2" / file, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value))
    refused_member(path, ExpertError, "ex2", file)


@pytest.mark.parametrize("changed", [{"gamma": float("nan")}, {"gamma": 1e39}, {"beta": -1e39}, {"p": float("inf")}])
def test_constants_out_of_bounds_are_refused(path: Path, edit_json: Edit, changed: dict):
    stored = {"p": 0.5, "source": "held back", **changed}
    edit_json(path / "pool.json", calibrations={"examples": stored})
    with pytest.raises(PoolError, match=rf"{next(iter(changed))}|no JSON"):  # NaN and infinity are none
        Pool.open(path)


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_an_incomplete_expert_cannot_be_added(path: Path, file: str):
    (path / "ex2" / file).unlink()
    refused_member(path, ExpertError, "ex2", file)


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_truncated_expert_cannot_be_added(path: Path, file: str):
    os.truncate(path / "ex2" / file, 40)
    refused_member(path, ExpertError, "ex2", file)


def test_an_expert_for_another_base_cannot_be_added(path: Path, edit_json: Edit, llama: BaseModel):
    torch.manual_seed(5)
    other = identify(LlamaForCausalLM(llama.model.config), "other-llama")
    edit_json(path / "ex2" / "card.json", base=other.model_dump(mode="json"))
    refused_member(path, PoolError, "ex2", "other-llama", "tiny-llama", other.hash, llama.identity.hash)


def test_a_pool_moved_to_another_base_is_refused(path: Path, edit_json: Edit, llama: BaseModel):
    other = llama.identity.model_copy(update={"model_id": "other-llama", "config_hash": "0" * 16})
    edit_json(path / "pool.json", base=other.model_dump(mode="json"))
    refused(path, PoolError, "ex0", "other-llama", "tiny-llama")


@pytest.mark.parametrize("change", [{"embedder": "other-model"}, {"prefix": "search: "}, {"probe": [0.5] * 8}], ids=str)
def test_an_expert_of_another_embedder_cannot_be_added(
    path: Path, edit_json: Edit, embedder_identity: EmbedderIdentity, change: dict[str, Any]
):
    edit_json(path / "ex2" / "card.json", embedder={**embedder_identity.model_dump(mode="json"), **change})
    refused_member(path, PoolError, "ex2", embedder_identity.embedder)


def test_an_expert_of_another_width_cannot_be_added(path: Path, edit_tensors: Edit):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.{Q}.lora_B.weight"] = torch.zeros(48, 4)

    edit_tensors(path / "ex2" / "adapter_model.safetensors", widen)
    refused_member(path, PoolError, "ex2", "ex0", Q, "32 -> 48", "32 -> 32")


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}], ids=str)
def test_an_adapter_that_is_not_plain_lora_cannot_be_added(path: Path, edit_json: Edit, setting: dict[str, Any]):
    edit_json(path / "ex2" / "adapter_config.json", **setting)
    refused_member(path, ExpertError, "ex2", "adapter_config.json", next(iter(setting)))


def test_a_member_damaged_meanwhile_leaves_no_half_done_add(path: Path):
    """Either the add is refused and the index is as before, or it is done."""
    pool = Pool.open(path)
    index = (path / "pool.json").read_bytes()
    os.truncate(path / "ex0" / "card.json", 10)
    try:
        names = pool.add("ex2").names
    except GliderError:
        assert (path / "pool.json").read_bytes() == index
    else:
        assert names == ["ex0", "ex1", "ex2"]


def test_a_broken_member_can_be_removed_by_a_pool_opened_before(path: Path):
    pool = Pool.open(path)
    shutil.rmtree(path / "ex0")
    assert pool.remove("ex0").names == ["ex1"]


def test_a_router_that_needs_gates_names_every_expert_without(
    path: Path, llama: BaseModel, random_expert: Callable[..., Expert], embedder_identity: EmbedderIdentity
):
    random_expert(path / "bare", llama, sites=[Q], gates=False, embedder=embedder_identity)
    random_expert(path / "nude", llama, sites=[Q], gates=False, embedder=embedder_identity)
    pool = Pool.open(path).add("bare").add("nude")
    pool.require(instructions=True)
    with pytest.raises(RouterError, match="bare, nude") as raised:
        pool.require(gates=True)
    assert "ex0" not in str(raised.value)


def test_one_missing_gate_is_enough_to_refuse(path: Path, edit_tensors: Edit):
    edit_tensors(path / "ex2" / "glider.safetensors", lambda tensors: tensors.pop(f"{Q}.gate"))
    with pytest.raises(RouterError, match="ex2"):
        Pool.open(path).add("ex2").require(gates=True)


def test_a_router_that_needs_instructions_names_every_expert_without(
    path: Path, llama: BaseModel, random_expert: Callable[..., Expert]
):
    random_expert(path / "mute", llama, sites=[Q])
    pool = Pool.open(path).add("mute")
    pool.require(gates=True)
    with pytest.raises(RouterError, match="mute"):
        pool.require(gates=True, instructions=True)
