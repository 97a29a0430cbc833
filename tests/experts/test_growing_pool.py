"""A pool in use grows and shrinks: nobody else's file is touched, a reader keeps its snapshot until it reloads."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import GliderError, PoolError
from glider.experts.card import EmbedderIdentity
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.membership import add_expert, remove_expert
from glider.experts.pool import Calibration, Pool
from glider.inference.base_model import BaseModel, load_base
from glider.layers.attach import attach
from glider.routing.base import Router, routers

from ..commands import run_command

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
IDS = torch.tensor([[40, 71, 99, 5, 200, 13]])
MakeExpert = Callable[..., Expert]


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture
def make(llama: BaseModel, random_expert: MakeExpert, embedder_identity: EmbedderIdentity) -> MakeExpert:
    """`make(path, seed=1, **settings)`: a whole expert with a gate at every site."""
    return lambda path, **settings: random_expert(
        path, llama, **{"sites": [Q, UP], "embedder": embedder_identity, **settings}
    )


@pytest.fixture
def path(tmp_path: Path, llama: BaseModel, make: MakeExpert) -> Path:
    """A pool of a, b and c, with the directory of d beside them."""
    pool = Pool.create(tmp_path / "pool", llama.identity)
    for seed, name in enumerate("abcd"):
        make(pool.path / name, seed=seed)
    for name in "abc":
        pool = pool.add(name)
    return pool.path


@pytest.fixture
def glider(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`glider("pool", "rename", ...)` runs the command in this process, which must end well; returns its stdout."""

    def run(*arguments: object) -> str:
        result = run_command(arguments, monkeypatch, capsys)
        assert result.code == 0, result.err
        return result.out

    return run


def another_base(llama: BaseModel) -> dict[str, Any]:
    return llama.identity.model_copy(update={"config_hash": "0" * 16}).model_dump(mode="json")


def state(path: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, time and inode of every file but the index and the lock."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in ("pool.json", ".pool.lock")]
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in files
    }


@torch.inference_mode()
def logits(pool: Pool, llama: BaseModel, router: str | Router = "phatgoose") -> torch.Tensor:
    attached = attach(llama.model, pool, routers.create(router) if isinstance(router, str) else router)
    try:
        return llama.model(IDS).logits
    finally:
        attached.detach()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda pool: pool.add("d"), ["a", "b", "c", "d"]),
        (lambda pool: pool.remove("b"), ["a", "c"]),
        (lambda pool: pool.rename("b", "z"), ["a", "z", "c"]),
        (lambda pool: (add_expert(pool.path, "d"), pool.reload())[1], ["a", "b", "c", "d"]),
        (lambda pool: pool.calibrate("examples", Calibration(p=0.5, source="x")), ["a", "b", "c"]),
    ],
    ids=["add", "remove", "rename", "put", "calibrate"],
)
def test_a_change_writes_nothing_but_the_index(path: Path, change: Callable[[Pool], Pool], names: list[str]):
    before, index = state(path), (path / "pool.json").read_bytes()
    assert change(Pool.open(path)).names == names
    assert state(path) == before
    assert (path / "pool.json").read_bytes() != index
    reopened = Pool.open(path)
    assert reopened.names == names
    reopened.verify()


@pytest.mark.parametrize(
    "change", [lambda pool: pool.add("d"), lambda pool: pool.remove("b"), lambda pool: pool.rename("b", "z")]
)
def test_a_reader_keeps_its_snapshot_until_it_reloads(path: Path, llama: BaseModel, change: Callable[[Pool], Pool]):
    """The reader has not read a tensor yet when another handle changes the pool."""
    wanted = logits(Pool.open(path), llama)
    reader = Pool.open(path)
    changed = change(Pool.open(path))
    assert reader.names == ["a", "b", "c"]
    assert torch.equal(logits(reader, llama), wanted)
    assert reader.reload().names == changed.names
    assert reader.names == ["a", "b", "c"]


def test_a_reader_that_is_in_use_survives_the_replacement_of_an_expert(path: Path, llama: BaseModel, make: MakeExpert):
    reader = Pool.open(path)
    wanted = logits(reader, llama)
    make(path / "b", seed=9)
    add_expert(path, "b")
    assert sorted(reader.reload().names) == ["a", "b", "c"]
    assert torch.equal(logits(reader, llama), wanted)
    assert not torch.allclose(logits(reader.reload(), llama), wanted)


def test_a_reader_attached_to_a_model_is_not_disturbed(path: Path, llama: BaseModel):
    reader = Pool.open(path)
    attached = attach(llama.model, reader, routers.create("phatgoose"))
    with torch.inference_mode():
        before = llama.model(IDS).logits
        Pool.open(path).remove("a")
        assert torch.equal(llama.model(IDS).logits, before)
    attached.detach()


def test_reload_tells_of_a_pool_that_is_gone(path: Path):
    reader = Pool.open(path)
    shutil.rmtree(path)
    with pytest.raises(PoolError, match=r"pool\.json"):
        reader.reload()


def test_a_rename_changes_no_score(path: Path, llama: BaseModel):
    wanted, alone = logits(Pool.open(path), llama), logits(Pool.open(path), llama, "single:b")
    renamed = Pool.open(path).rename("b", "z")
    for pool in (renamed, renamed.reload()):
        assert torch.equal(logits(pool, llama), wanted)
        assert torch.equal(logits(pool, llama, "single:z"), alone)
        assert pool["z"].directory == path / "b"
    with pytest.raises(PoolError, match="'b'"):
        renamed["b"]


def test_renaming_back_gives_the_same_index(path: Path):
    before = (path / "pool.json").read_bytes()
    Pool.open(path).rename("b", "z").rename("z", "b")
    assert (path / "pool.json").read_bytes() == before


@pytest.mark.parametrize("new", ["a", "", ".", "..", "../x", "x/y", ".hidden", "x" * 200, "a\n"])
def test_a_bad_new_name_changes_nothing(path: Path, new: str):
    before, index = state(path), (path / "pool.json").read_bytes()
    with pytest.raises(PoolError):
        Pool.open(path).rename("b", new)
    assert (state(path), (path / "pool.json").read_bytes()) == (before, index)


def test_a_renamed_expert_cannot_join_twice(path: Path):
    renamed = Pool.open(path).rename("b", "z")
    with pytest.raises(PoolError, match="b, which is in the pool"):
        renamed.add("b")
    assert renamed.remove("z").add("b").names == ["a", "c", "b"]


def test_putting_an_unchanged_expert_writes_nothing(path: Path):
    before, written = (path / "pool.json").read_bytes(), (path / "pool.json").stat().st_mtime_ns
    add_expert(path, "b")
    assert Pool.open(path).names == ["a", "b", "c"]
    assert ((path / "pool.json").read_bytes(), (path / "pool.json").stat().st_mtime_ns) == (before, written)


def test_putting_a_changed_expert_renews_its_record_alone(path: Path, make: MakeExpert):
    make(path / "b", seed=9, rank=2)
    with pytest.raises(PoolError, match="expert b"):
        Pool.open(path)
    before = state(path)
    add_expert(path, "b")
    pool = Pool.open(path)
    assert state(path) == before
    pool.verify()
    assert {expert.name: expert.layout.rank for expert in pool} == {"a": 4, "b": 2, "c": 4}


def test_putting_a_broken_expert_leaves_the_others(path: Path, edit_tensors: Callable[..., None]):
    edit_tensors(path / "b" / "glider.safetensors", lambda tensors: tensors[f"{Q}.gate"].fill_(float("nan")))
    with pytest.raises(GliderError, match="b"):
        add_expert(path, "b")
    pool = Pool.open(path)
    assert [name for name in pool.names if name != "b"] == ["a", "c"]


def test_putting_an_expert_of_other_widths_changes_nothing(
    path: Path, make: MakeExpert, edit_tensors: Callable[..., None]
):
    """Such a pool could not be opened again. One that is broken already does not stand in the way."""
    make(path / "wide", seed=9)
    key = f"base_model.model.{UP}.lora_B.weight"
    edit_tensors(path / "wide" / "adapter_model.safetensors", lambda tensors: tensors.update({key: torch.ones(50, 4)}))
    os.truncate(path / "a" / "card.json", 10)
    index = (path / "pool.json").read_bytes()
    with pytest.raises(PoolError, match=r"32 -> 48 at .*up_proj, as in b; got 32 -> 50 in wide"):
        add_expert(path, "wide")
    assert (path / "pool.json").read_bytes() == index
    add_expert(path, "d")
    remove_expert(path, "a")
    assert Pool.open(path).names == ["b", "c", "d"]


@pytest.mark.parametrize("add", [add_expert, lambda path, directory: Pool.open(path).add(directory)])
def test_an_expert_from_elsewhere_that_is_refused_is_not_copied(
    add: Callable[[Path, Path], object],
    path: Path,
    tmp_path: Path,
    llama: BaseModel,
    make: MakeExpert,
    edit_tensors: Callable[..., None],
    edit_json: Callable[..., None],
):
    """Its copy stood in the way of the same command once the expert was mended."""
    other, wide = tmp_path / "other", tmp_path / "wide"
    make(other, seed=9), make(wide, seed=9)
    edit_json(other / "card.json", base=another_base(llama))
    key = f"base_model.model.{UP}.lora_B.weight"
    edit_tensors(wide / "adapter_model.safetensors", lambda tensors: tensors.update({key: torch.ones(50, 4)}))
    before = state(path)
    for directory, fault in ((other, "made for"), (wide, "32 -> 50 in wide")):
        with pytest.raises(PoolError, match=fault):
            add(path, directory)
        assert state(path) == before
    make(other, seed=9)
    add(path, other)
    assert Pool.open(path).names == ["a", "b", "c", "other"]


def test_the_command_adds_none_where_one_is_of_another_base(
    path: Path,
    tmp_path: Path,
    llama: BaseModel,
    make: MakeExpert,
    edit_json: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    make(tmp_path / "other", seed=9)
    edit_json(tmp_path / "other" / "card.json", base=another_base(llama))
    assert run_command(("pool", "add", path, "d", tmp_path / "other"), monkeypatch, capsys).code == 2
    assert Pool.open(path).names == ["a", "b", "c"]


def test_a_stale_handle_changes_the_pool_as_it_is_now(path: Path):
    one, other = Pool.open(path), Pool.open(path)
    one.remove("a")
    assert other.add("d").names == ["b", "c", "d"]
    assert one.rename("b", "z").names == ["z", "c", "d"]
    with pytest.raises(PoolError, match="'a'"):
        other.remove("a")


ADDING = """
import sys
from glider.experts.pool import Pool
path, *names = sys.argv[1:]
pool = Pool.open(path)
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    pool = pool.add(name)
"""


def test_two_processes_that_add_at_once_lose_nothing(path: Path, make: MakeExpert):
    """Both hold the same old snapshot and start at the same signal."""
    names = [f"{side}{i}" for i in range(6) for side in "lr"]
    for seed, name in enumerate(names):
        make(path / name, seed=seed)
    before, processes = state(path), []
    for side in "lr":
        mine = [name for name in names if name.startswith(side)]
        command = [sys.executable, "-c", ADDING, str(path), *mine]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    pool = Pool.open(path)
    assert sorted(pool.names) == sorted(["a", "b", "c", *names])
    pool.verify()
    assert state(path) == before


def test_an_expert_for_a_held_out_task_joins_without_retraining(
    path: Path, llama: BaseModel, make: MakeExpert, embedder_identity: EmbedderIdentity
):
    """Other sites and another rank than its neighbours: their files stay, and alone they compute what they did."""
    alone = {name: logits(Pool.open(path), llama, f"single:{name}") for name in "abc"}
    before = state(path)
    make(path / "new", seed=9, rank=7, sites=[Q, "model.layers.1.self_attn.o_proj"])
    pool = Pool.open(path).add("new")
    after = state(path)
    assert {name: what for name, what in after.items() if not name.startswith("new/")} == before
    for name, wanted in alone.items():
        torch.testing.assert_close(logits(pool, llama, f"single:{name}"), wanted, rtol=1e-5, atol=1e-5)
    routers.create("glider").prepare(pool)
    assert pool.index.embedder == embedder_identity


def test_removing_makes_the_pool_as_if_the_expert_had_never_been(path: Path, llama: BaseModel):
    wanted = logits(Pool.open(path), llama)
    grown = Pool.open(path).add("d")
    assert not torch.allclose(logits(grown, llama), wanted)
    assert torch.equal(logits(grown.remove("d"), llama), wanted)
    assert sorted(file.name for file in (path / "d").iterdir()) == sorted(EXPERT_FILES)


def test_a_removal_that_cannot_be_written_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    index, names = (path / "pool.json").read_bytes(), sorted(path.iterdir())
    pool = Pool.open(path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(json, "dumps", full)
        pool.remove("a")
    assert (path / "pool.json").read_bytes() == index
    assert sorted(path.iterdir()) == names
    assert pool.names == Pool.open(path).names == ["a", "b", "c"]


def test_the_commands_add_remove_and_rename(path: Path, glider: Callable[..., str]):
    before = state(path)
    assert "4 experts" in glider("pool", "add", path, "d")
    assert "3 experts" in glider("pool", "remove", path, "a")
    assert "z" in glider("pool", "rename", path, "b", "z")
    assert Pool.open(path).names == ["z", "c", "d"]
    assert [row["name"] for row in json.loads(glider("pool", "ls", path, "--json"))["experts"]] == ["z", "c", "d"]
    assert state(path) == before


def test_the_commands_take_up_an_expert_that_was_described_inside_the_pool(
    path: Path, make: MakeExpert, glider: Callable[..., str]
):
    """A router asks for what a member lacks; once it has it, the pool must take it up again."""
    make(path / "bare", seed=5, embedder=None)
    glider("pool", "add", path, "bare")
    glider("expert", "describe", path / "bare", "Say x.")
    glider("pool", "add", path, "bare")
    pool = Pool.open(path)
    assert sorted(pool.names) == ["a", "b", "bare", "c"]
    assert pool["bare"].instruction is not None
    pool.verify()


def test_the_command_removes_an_expert_that_is_broken(path: Path, glider: Callable[..., str]):
    """The error that opening raises says how."""
    os.truncate(path / "b" / "card.json", 10)
    with pytest.raises(PoolError, match="glider pool remove"):
        Pool.open(path)
    glider("pool", "remove", path, "b")
    assert Pool.open(path).names == ["a", "c"]
