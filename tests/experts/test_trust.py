"""Whose signature a pool must carry: every way in can require one, and what is used is what was checked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glider
from glider.data.rows import read_rows
from glider.demo.pool import DEMO_POOL
from glider.errors import ConfigError, GliderError, PoolError
from glider.evaluation.compare import compare
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.expert import EXPERT_FILES
from glider.experts.index import BACKGROUND_FILE
from glider.experts.membership import add_expert, remove_expert
from glider.experts.pool import Pool
from glider.experts.thresholds import Thresholds
from glider.experts.trust import SIGNATURE_FILE, TRUSTED_KEYS_VARIABLE, UNSIGNED
from glider.inference.spec import ModelSpec, open_pool
from glider.routing.methods.multitask import Multitask
from glider.sharing.signature import generate_keys, sign_pool
from glider.verdicts.background import Background

from ..commands import CommandResult

pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory of two pairs: `mine` and `theirs`."""
    (tmp_path / "keys").mkdir()
    for name in ("mine", "theirs"):
        generate_keys(tmp_path / "keys" / name, tmp_path / "keys" / f"{name}.pub")
    return tmp_path / "keys"


@pytest.fixture
def pool(make_pool, llama_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_pool(llama_directory).path, tmp_path / "signed"))


@pytest.fixture
def data(tmp_path: Path, llama_directory: Path) -> Path:
    """Rows of a task; the base model is beside them."""
    (tmp_path / "base").symlink_to(llama_directory)
    rows = [{"input": "2+2", "output": "4", "choices": ["4", "5"], "split": "test"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return tmp_path / "rows.jsonl"


def evaluated(pool: Path, key: Path, data: Path) -> object:
    sets = {"all": {"tasks": [data.name]}}
    plan = RunPlan.model_validate({"pool": str(pool), "require_key": str(key), "routers": ["phatgoose"], "sets": sets})
    return Run(plan, data.parent, data.parent / "out")


WAYS: dict[str, Callable[[Path, Path, Path], object]] = {
    "open": lambda pool, key, data: Pool.open(pool, key),
    "open_pool": lambda pool, key, data: open_pool(pool, key),
    "load": lambda pool, key, data: glider.load(base_beside(data), pool, require_key=key, router="phatgoose"),
    "beside": lambda pool, key, data: beside(pool, key, data),
    "over": lambda pool, key, data: ModelSpec(pool=str(pool), require_key=str(key)).open_pool(),
    "compare": lambda pool, key, data: next(
        compare(pool, read_rows(data), ["phatgoose"], base=base_beside(data), require_key=key)
    ),
    "evaluate": evaluated,
    "put": lambda pool, key, data: add_expert(pool, "e0", require_key=key),
    "discard": lambda pool, key, data: remove_expert(pool, "e0", require_key=key),
}


def beside(pool: Path, key: Path, data: Path) -> object:
    """As a second pool of a server."""
    first = ModelSpec(base=base_beside(data), pool=str(pool), router="phatgoose").load()
    try:
        return ModelSpec(pool=str(pool), require_key=key, router="phatgoose").beside(first)
    finally:
        first.detach()


def base_beside(data: Path) -> str:
    return str(data.with_name("base"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["never signed", "signature deleted", "another's", "changed since"])
def test_no_way_in_takes_a_pool_that_the_key_did_not_sign(
    pool: Path, keys: Path, data: Path, way: str, fault: str
) -> None:
    if fault != "never signed":
        sign_pool(pool, keys / ("theirs" if fault == "another's" else "mine"))
    if fault == "signature deleted":
        (pool / SIGNATURE_FILE).unlink()
    if fault == "changed since":
        (pool / "pool.json").write_bytes((pool / "pool.json").read_bytes() + b" ")
    before = (pool / "pool.json").read_bytes()
    with pytest.raises(PoolError, match=r"no such file|another key's signature"):
        WAYS[way](pool, keys / "mine.pub", data)
    assert (pool / "pool.json").read_bytes() == before


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_takes_a_pool_that_the_key_signed(pool: Path, keys: Path, data: Path, way: str) -> None:
    sign_pool(pool, keys / "mine")
    made = WAYS[way](pool, keys / "mine.pub", data)
    if isinstance(made, glider.RoutedModel) and way != "beside":
        made.detach()


def test_any_of_several_trusted_keys_will_do(pool: Path, keys: Path) -> None:
    sign_pool(pool, keys / "mine")
    both = keys / "trusted.pem"
    both.write_bytes(b"# ours\n" + (keys / "theirs.pub").read_bytes() + (keys / "mine.pub").read_bytes())
    assert len(Pool.open(pool, both)) == 3
    both.write_bytes((keys / "theirs.pub").read_bytes() * 2)
    with pytest.raises(PoolError, match="another key's signature"):
        Pool.open(pool, both)
    both.write_bytes(b"# nobody yet\n")
    with pytest.raises(ConfigError, match="Ed25519PublicKey"):
        Pool.open(pool, both)


def test_the_variable_asks_for_a_signature_wherever_nobody_names_a_key(
    pool: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(keys / "mine.pub"))
    for way in (lambda: Pool.open(pool), lambda: glider.load(pool=pool), lambda: open_pool(pool)):
        with pytest.raises(PoolError, match="a signed pool"):
            way()
    sign_pool(pool, keys / "mine")
    assert Pool.open(pool).reload().names == Pool.open(pool, UNSIGNED).names
    assert len(open_pool("demo")) == len(Pool.open(DEMO_POOL, UNSIGNED))  # it came with the package
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(keys / "missing"))
    with pytest.raises(ConfigError, match="missing"):
        Pool.open(pool)


def test_a_reload_asks_for_the_same_key(pool: Path, keys: Path) -> None:
    sign_pool(pool, keys / "mine")
    opened = Pool.open(pool, keys / "mine.pub")
    smaller = opened.remove("e0")  # by us, and not signed yet
    with pytest.raises(PoolError, match="changed since it was signed"):
        smaller.reload()
    sign_pool(pool, keys / "mine")
    assert smaller.reload().names == smaller.names


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_files_that_changed_are_refused_as_they_are_opened_or_read(pool: Path, keys: Path, file: str) -> None:
    """The checks of a required key do not wait for `verify`."""
    sign_pool(pool, keys / "mine")
    path = pool / "e1" / file
    content = bytearray(path.read_bytes())
    place = content.rindex(b"a") if path.suffix == ".json" else len(content) - 1
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(GliderError, match="e1"):
        opened = Pool.open(pool, keys / "mine.pub")["e1"]
        for site in opened.sites:
            opened.factors(site)
        _ = opened.vectors


def test_what_is_swapped_after_the_check_is_not_used(pool: Path, keys: Path) -> None:
    sign_pool(pool, keys / "mine")
    opened = Pool.open(pool, keys / "mine.pub")
    site = opened.sites[0]
    right = opened["e1"].factors(site)[0].clone()
    path = pool / "e1" / "adapter_model.safetensors"
    shutil.copyfile(pool / "e2" / "adapter_model.safetensors", path)  # written over in place
    with pytest.raises(GliderError, match="unchanged"):
        opened["e1"].factors(site)
    assert not torch.equal(right, opened["e2"].factors(site)[0])


COMMANDS = {
    "ls": ("pool", "ls", "POOL"),
    "show": ("pool", "show", "POOL"),
    "verify": ("pool", "verify", "POOL"),
    "add": ("pool", "add", "POOL", "e0"),
    "remove": ("pool", "remove", "POOL", "e0"),
    "rename": ("pool", "rename", "POOL", "e0", "new"),
    "calibrate": ("pool", "calibrate", "POOL"),
    "check": ("pool", "check", "POOL", "--data", "{name}.jsonl"),
    "push": ("pool", "push", "POOL", "me/pool"),
    "generate": ("generate", "hello", "--pool", "POOL"),
    "explain": ("explain", "hello", "--pool", "POOL"),
    "compare": ("compare", "--data", "DATA", "--pool", "POOL"),
    "scores": ("report", "scores", "--pool", "POOL", "--json"),
    "routing": ("report", "routing", "--pool", "POOL", "--data", "DATA", "--out", "OUT.png"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_pool_has_the_flag(
    pool: Path, keys: Path, data: Path, command: str, glider: Callable[..., CommandResult]
) -> None:
    places = {"POOL": str(pool), "DATA": str(data), "OUT.png": str(data.parent / "out.png")}
    arguments = [places.get(argument, argument) for argument in COMMANDS[command]]
    told = glider(*arguments, "--key", keys / "mine.pub")
    assert told.code == 2 and told.err.count("\n") == 1, told.err
    assert "wanted a signed pool" in told.err and SIGNATURE_FILE in told.err


def test_a_run_file_names_its_key_relative_to_itself(pool: Path, keys: Path, data: Path) -> None:
    sign_pool(pool, keys / "mine")
    run = evaluated(pool, Path("keys/mine.pub"), data)
    assert isinstance(run, Run) and run.bench.require_key == str(keys / "mine.pub")


def test_a_pool_that_must_be_signed_takes_in_no_expert_from_elsewhere(pool: Path, keys: Path, tmp_path: Path) -> None:
    """A served pool takes experts while it runs."""
    sign_pool(pool, keys / "mine")
    stranger = shutil.copytree(pool / "e0", tmp_path / "e0")
    assert Pool.open(pool).with_expert(stranger, "other").names[-1] == "other"
    with pytest.raises(PoolError, match="from elsewhere"):
        Pool.open(pool, keys / "mine.pub").with_expert(stranger, "other")
    Multitask(str(stranger)).prepare(Pool.open(pool))
    with pytest.raises(PoolError, match="from elsewhere"):
        Multitask(str(stranger)).prepare(Pool.open(pool, keys / "mine.pub"))


def test_the_background_of_a_pool_is_the_one_that_was_signed(make_pool, llama_directory: Path, keys: Path) -> None:
    pool = make_pool(llama_directory)
    background = Background.of([["what time is it"], ["boil an egg"]], 2)
    background.save(pool.path / BACKGROUND_FILE)
    pool = pool.set_verdicts(Thresholds(stranger=0.0, fits=1.0), background)
    sign_pool(pool.path, keys / "mine")
    opened = Pool.open(pool.path, keys / "mine.pub")
    opened.verify()
    Background.of([["another"]], 1).save(pool.path / BACKGROUND_FILE)
    with pytest.raises(PoolError, match="another file"):
        opened.verify()
    (pool.path / BACKGROUND_FILE).unlink()
    os.mkfifo(pool.path / BACKGROUND_FILE)
    with pytest.raises(PoolError, match="no regular file"):
        opened.verify()


def test_what_changed_since_it_was_verified_is_not_signed(pool: Path, keys: Path) -> None:
    opened = Pool.open(pool, UNSIGNED)
    opened.verify()
    opened.remove(opened.names[0])  # by another process
    with pytest.raises(PoolError, match="changed meanwhile"):
        sign_pool(pool, keys / "mine", opened.index)
    assert not (pool / SIGNATURE_FILE).exists()
    sign_pool(pool, keys / "mine", Pool.open(pool, UNSIGNED).index)
