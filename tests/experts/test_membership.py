"""What joins a pool under which name, and what a pool is good for while one of its experts is broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glider.errors import ExpertError, GliderError, GliderWarning, PoolError
from glider.experts.expert import Expert
from glider.experts.gains import GAINS_FILE
from glider.experts.index import BESIDE_EXPERTS
from glider.experts.membership import add_expert
from glider.experts.pool import Pool
from glider.experts.router_files import FOLDER
from glider.experts.trust import SIGNATURE_FILE
from glider.inference.base_model import BaseModel, load_base
from glider.inference.spec import ModelSpec, load
from glider.layers.attach import attach
from glider.routing.base import routers
from glider.sharing.places import MODEL_CARD_FILE

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
IDS = torch.tensor([[40, 71, 99, 5, 200, 13]])


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture
def make(llama: BaseModel, random_expert: Callable[..., Expert]) -> Callable[..., Expert]:
    return lambda path, **settings: random_expert(path, llama, **{"sites": [Q, UP], **settings})


@pytest.fixture
def path(tmp_path: Path, llama: BaseModel, make: Callable[..., Expert]) -> Path:
    """A pool of a and b."""
    pool = Pool.create(tmp_path / "pool", llama.identity)
    for seed, name in enumerate("ab"):
        make(pool.path / name, seed=seed)
        pool = pool.add(name)
    return pool.path


def grow(path: Path, content: bytes = b" ") -> None:
    """Change a file of an expert by its size."""
    with path.open("ab") as file:
        file.write(content)


def change(path: Path) -> None:
    """Change a file of an expert within its size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_an_expert_joins_under_another_name(path: Path, make: Callable[..., Expert], glider: Callable[..., tuple]):
    make(path / "c", seed=3)
    assert glider("pool", "add", path, "c", "--as", "news")[0] == 0
    pool = Pool.open(path)
    assert pool.names == ["a", "b", "news"]
    assert pool["news"].directory == path / "c"
    pool.verify()


def test_an_expert_from_elsewhere_is_copied_in(
    path: Path, make: Callable[..., Expert], glider: Callable[..., tuple], tmp_path: Path, llama: BaseModel
):
    stranger = make(tmp_path / "other" / "a", seed=3)
    before = {file.name: file.read_bytes() for file in stranger.directory.iterdir()}
    code, _, error = glider("pool", "add", path, stranger.directory)
    assert code == 2
    assert "--as" in error
    assert glider("pool", "add", path, stranger.directory, "--as", "theirs")[0] == 0
    pool = Pool.open(path)
    pool.verify()
    assert pool.names == ["a", "b", "theirs"]
    assert pool["theirs"].card.name == "theirs"
    assert {file.name: file.read_bytes() for file in stranger.directory.iterdir()} == before
    ours, theirs = pool["theirs"].factors(Q), stranger.factors(Q)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_the_first_expert_of_a_pool_may_come_from_elsewhere(
    make: Callable[..., Expert], glider: Callable[..., tuple], tmp_path: Path
):
    expert = make(tmp_path / "other" / "a", seed=3)
    assert glider("pool", "add", tmp_path / "new", expert.directory)[0] == 0
    assert Pool.open(tmp_path / "new").names == ["a"]


def test_a_name_that_is_taken_changes_nothing(path: Path, make: Callable[..., Expert], tmp_path: Path):
    make(path / "c", seed=3)
    make(tmp_path / "e", seed=4)
    before = (path / "pool.json").read_bytes()
    for directory, name in (("c", "a"), (tmp_path / "e", "b"), (path / "c", "b"), ("a", "b")):
        with pytest.raises(PoolError, match="a new"):
            add_expert(path, directory, name)
        with pytest.raises(PoolError, match="a new"):
            Pool.open(path).add(directory, name)
    assert (path / "pool.json").read_bytes() == before
    assert {entry.name for entry in path.iterdir() if entry.is_dir()} == {"a", "b", "c"}


@pytest.mark.parametrize("name", [*sorted(BESIDE_EXPERTS), "Routers", "README.md"])
def test_an_expert_takes_no_place_of_the_pools_own_files(path: Path, make: Callable[..., Expert], name: str):
    """An expert `routers` was built anew over the trained routers, `pool.json` made a pool that none opens."""
    before = (path / "pool.json").read_bytes()
    if not (path / name).exists():
        make(path / name, seed=3)
        with pytest.raises(PoolError, match=r"a name of the pool's own files"):
            add_expert(path, name)
    outside = make(path.parent / "c", seed=4)
    with pytest.raises(PoolError, match=r"a name of the pool's own files|which is there"):
        add_expert(path, outside.directory, name)
    assert (path / "pool.json").read_bytes() == before


def test_names_that_are_one_for_some_file_systems_are_refused(path: Path, make: Callable[..., Expert]):
    make(path / "A", seed=3)
    with pytest.raises(PoolError, match="A beside a, which are one name"):
        add_expert(path, "A")
    assert Pool.open(path).names == ["a", "b"]


def test_the_names_of_a_pools_own_files_are_all_known():
    assert {SIGNATURE_FILE, GAINS_FILE, FOLDER, MODEL_CARD_FILE.lower()} <= BESIDE_EXPERTS


def test_one_name_for_several_experts_is_refused(path: Path, glider: Callable[..., tuple]):
    assert glider("pool", "add", path, "a", "b", "--as", "x")[0] == 2


@pytest.mark.parametrize("damage", [grow, change])
def test_the_others_can_be_used_while_one_is_broken(
    path: Path, llama: BaseModel, llama_directory: Path, damage: Callable[[Path], None]
):
    whole = attach(llama.model, Pool.open(path), routers.create("single:b"))
    expected = llama.model(IDS).logits
    whole.detach()
    damage(path / "a" / "adapter_model.safetensors")
    with pytest.raises(GliderError, match=r"glider pool add"):
        load(str(llama_directory), path, router="phatgoose")
    with pytest.warns(GliderWarning, match=r"b alone of .*pool, which is broken"):
        model = ModelSpec(base=str(llama_directory), pool=path, router="single:b").load()
    assert torch.equal(model.model(IDS).logits, expected)
    with pytest.raises(GliderError):
        load(str(llama_directory), path, router="single:a")


def test_ls_tells_which_expert_is_broken(path: Path, glider: Callable[..., tuple]):
    os.truncate(path / "a" / "card.json", 3)
    code, out, _ = glider("pool", "ls", path, "--json")
    first, second = json.loads(out)["experts"]
    assert code == 2
    assert "card.json" in first["fault"]
    assert second["fault"] is None
    assert second["sites"] == 2
    code, out, error = glider("pool", "ls", path)
    assert "glider: a: " in error
    assert "2 experts" in out
    assert json.loads(glider("pool", "show", path, "b")[1])["name"] == "b"
    assert glider("pool", "show", path, "a")[0] == 2


def test_a_pool_opened_for_one_expert_is_changed_as_a_whole(path: Path):
    narrow = Pool.open(path, only=["b"])
    assert narrow.names == ["b"]
    assert narrow.rename("b", "c").names == ["a", "c"]
    assert Pool.open(path).names == ["a", "c"]
    with pytest.raises(PoolError, match="an expert of the pool"):
        Pool.open(path, only=["z"])


def test_an_expert_that_is_none_is_refused_before_it_is_copied(path: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", tmp_path / "nowhere", "nothing"):
        with pytest.raises((PoolError, ExpertError)):
            add_expert(path, directory)
    assert {entry.name for entry in path.iterdir() if entry.is_dir()} == {"a", "b"}


@pytest.mark.parametrize("command", [["ls"], ["show"], ["show", "b"]], ids=" ".join)
def test_looking_at_a_pool_needs_no_torch(path: Path, command: list[str]):
    script = (
        "import sys\nsys.argv = sys.argv[1:]\nfrom glider.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    arguments = ["glider", "pool", command[0], str(path), *command[1:]]
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
