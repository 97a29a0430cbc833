"""No step follows a link that lies where glider works: whoever made the pool does not say what is written elsewhere."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from glider.contribute.adopt import add_description, make_gates
from glider.contribute.build import PoolPlan, build_pool
from glider.contribute.protocol import train_expert
from glider.contribute.settings import TrainConfig
from glider.errors import ConfigError, ExpertError, GliderError, PoolError
from glider.experts.membership import add_expert, remove_expert
from glider.experts.pool import Pool
from glider.jobs.local import LocalExecutor

QUICK = TrainConfig(rank=2, steps=1, gate_steps=1, batch_size=2, validation=2)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"input": f"say {i}", "output": "x"}) + "\n" for i in range(12)), "utf8")
    return path


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A directory outside the pool that nobody may touch."""
    (tmp_path / "treasure").mkdir()
    for name in ("run.json", "lora.safetensors", "card.json", "glider.safetensors", ".pool.lock"):
        (tmp_path / "treasure" / name).write_text("gold")
    return tmp_path / "treasure"


def untouched(treasure: Path) -> bool:
    return {file.name: file.read_text() for file in treasure.iterdir()} == dict.fromkeys(
        ("run.json", "lora.safetensors", "card.json", "glider.safetensors", ".pool.lock"), "gold"
    )


@pytest.mark.parametrize("kind", ["directory", "file", "dangling"])
def test_training_does_not_work_in_a_link(
    make_pool: Any, llama_directory: Path, rows: Path, treasure: Path, kind: str
) -> None:
    """It cleared the directory that the link led to, and wrote its state there."""
    pool = make_pool(llama_directory, experts=1)
    target = {"directory": treasure, "file": treasure / "card.json", "dangling": treasure / "new"}[kind]
    (pool.path / ".new.training").symlink_to(target)
    (pool.path / ".e0.training").symlink_to(target)
    with pytest.raises(ExpertError, match="a link"):
        train_expert(rows, str(llama_directory), pool.path / "new", QUICK)
    with pytest.raises(ExpertError, match="a link"):
        make_gates(pool["e0"].directory, rows, str(llama_directory), QUICK, how="mean")
    assert untouched(treasure) and not (pool.path / "new").exists()


def test_a_state_behind_a_link_is_no_state(make_pool: Any, llama_directory: Path, rows: Path, treasure: Path) -> None:
    pool = make_pool(llama_directory, experts=1)
    work = pool.path / ".e0.training"
    work.mkdir()
    for name in ("run.json", "lora.safetensors"):
        (work / name).symlink_to(treasure / name)
    make_gates(pool["e0"].directory, rows, str(llama_directory), QUICK, how="mean")
    assert untouched(treasure)


@pytest.mark.parametrize("absolute", [True, False])
def test_describing_does_not_write_through_a_link(
    make_pool: Any, llama_directory: Path, tmp_path: Path, absolute: bool
) -> None:
    """A link within the expert's own directory is allowed; its copy led back into the directory that is replaced."""
    home = make_pool(llama_directory, experts=1)["e0"].directory
    real = home / "real.safetensors"
    (home / "glider.safetensors").rename(real)
    (home / "glider.safetensors").symlink_to(real if absolute else real.name)
    before = real.read_bytes()
    kept = os.open(real, os.O_RDONLY)
    try:
        add_description(home, "Say something else.", "all-MiniLM-L6-v2")
        assert os.pread(kept, len(before) + 1, 0) == before  # neither the old directory's file nor what lies elsewhere
    finally:
        os.close(kept)
    assert not (home / "glider.safetensors").is_symlink() and (home / "real.safetensors").read_bytes() == before


def test_what_is_no_file_beside_an_expert_is_one_error(make_pool: Any, llama_directory: Path) -> None:
    home = make_pool(llama_directory, experts=1)["e0"].directory
    os.mkfifo(home / "pipe")
    with pytest.raises(ExpertError, match="no regular file"):
        add_description(home, "Say something else.", "all-MiniLM-L6-v2")
    assert (home / "card.json").exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_lock_that_is_no_file_is_refused(make_pool: Any, llama_directory: Path, treasure: Path, kind: str) -> None:
    """A lock's file is opened for writing: a link would make or empty a file elsewhere."""
    pool = make_pool(llama_directory, experts=2)
    lock = pool.path / ".pool.lock"
    lock.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(treasure / (".pool.lock" if kind == "link" else "new"))
    changes = (lambda: pool.remove("e0"), lambda: add_expert(pool.path, "e0"), lambda: remove_expert(pool.path, "e0"))
    for change in changes:
        with pytest.raises(PoolError, match="a link or no regular file"):
            change()
    assert untouched(treasure)


def test_a_linked_pool_directory_of_an_expert_is_replaced_not_written_into(
    make_pool: Any, llama_directory: Path, treasure: Path
) -> None:
    pool = make_pool(llama_directory, experts=1)
    home = pool["e0"].directory
    outside = Path(shutil.move(home, treasure.parent / "e0"))
    home.symlink_to(outside)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    with pytest.raises(GliderError):
        Pool.open(pool.path)
    add_description(home, "Say something else.", "all-MiniLM-L6-v2")
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before and not home.is_symlink()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_build_does_not_work_in_a_link(
    make_pool: Any, llama_directory: Path, treasure: Path, tmp_path: Path, depth: int
) -> None:
    """It deleted the directories that `.making/NAME` led to."""
    pool = make_pool(llama_directory, experts=1)
    (treasure / "hoard").mkdir()
    (treasure / "hoard" / "coin").write_text("gold")
    entry = {"name": "new", "adapter": str(pool["e0"].directory)}
    plan = PoolPlan.model_validate({"base": str(llama_directory), "experts": [entry]})
    (job,) = plan.jobs(tmp_path, pool.path)
    link = (job.work.parents[2], job.work.parents[1], job.work.parent, job.work)[depth]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(treasure)
    (result,) = build_pool(plan, tmp_path, pool.path, LocalExecutor())
    assert result.status == "failed" and "a link" in result.message
    assert (treasure / "hoard" / "coin").read_text() == "gold" and len(list(treasure.iterdir())) == 6
    assert Pool.open(pool.path).names == ["e0"]
    link.unlink()
    (result,) = build_pool(plan, tmp_path, pool.path, LocalExecutor())
    assert result.status == "done" and Pool.open(pool.path).names == ["e0", "new"]


def test_a_link_beside_what_a_build_makes_is_removed_and_not_followed(
    make_pool: Any, llama_directory: Path, treasure: Path, tmp_path: Path
) -> None:
    pool = make_pool(llama_directory, experts=1)
    entry = {"name": "new", "adapter": str(pool["e0"].directory)}
    plan = PoolPlan.model_validate({"base": str(llama_directory), "experts": [entry]})
    (job,) = plan.jobs(tmp_path, pool.path)
    job.work.parents[1].mkdir(parents=True)
    (job.work.parents[1] / "other").symlink_to(treasure)
    (result,) = build_pool(plan, tmp_path, pool.path, LocalExecutor())
    assert result.status == "done" and untouched(treasure) and not (pool.path / ".making").exists()


def test_the_lock_of_a_build_is_no_link(make_pool: Any, llama_directory: Path, treasure: Path, tmp_path: Path) -> None:
    pool = make_pool(llama_directory, experts=1)
    (pool.path / ".writer.lock").unlink(missing_ok=True)
    (pool.path / ".writer.lock").symlink_to(treasure / "card.json")
    entry = {"name": "new", "adapter": str(pool["e0"].directory)}
    plan = PoolPlan.model_validate({"base": str(llama_directory), "experts": [entry]})
    with pytest.raises(ConfigError, match="a link"):
        list(build_pool(plan, tmp_path, pool.path, LocalExecutor()))
    assert untouched(treasure)


def test_building_again_removes_nothing_behind_a_link(
    make_pool: Any, llama_directory: Path, rows: Path, treasure: Path, tmp_path: Path
) -> None:
    """An expert that needed nothing more was cleared from `.making`: behind a link a directory of its name went."""
    plan = PoolPlan(base=str(llama_directory), experts=({"name": "new", "data": rows, "config": QUICK.content},))  # pyright: ignore
    pool = tmp_path / "built"
    assert [result.status for result in build_pool(plan, tmp_path, pool, LocalExecutor())] == ["done"]
    (treasure.parent / "home" / "new").mkdir(parents=True)
    treasure.rename(treasure.parent / "home" / "new" / "treasure")
    (pool / ".making").symlink_to(treasure.parent / "home")
    assert [result.status for result in build_pool(plan, tmp_path, pool, LocalExecutor())] == ["unchanged"]
    assert untouched(treasure.parent / "home" / "new" / "treasure")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="directories are held by Linux's own names")
@pytest.mark.parametrize("level", [".new.training", ".making", ".making/new"])
def test_a_link_that_is_put_in_the_way_of_a_training_leads_it_nowhere(
    llama_directory: Path, rows: Path, treasure: Path, tmp_path: Path, level: str
) -> None:
    """Another user of the pool's directory swapped them at the first step: the state was written where the link led."""
    pool = tmp_path / "built"
    pool.mkdir()

    def swap(*told: object) -> None:
        if not (pool / "aside").exists():
            (pool / level).rename(pool / "aside")
            (pool / level).symlink_to(treasure)

    if level == ".new.training":
        with pytest.raises(OSError, match=r"new\.training"):
            train_expert(rows, str(llama_directory), pool / "new", QUICK, report=swap)
        assert (pool / "new").is_dir()
    else:
        plan = PoolPlan(base=str(llama_directory), experts=({"name": "new", "data": rows, "config": QUICK.content},))  # pyright: ignore
        (result,) = build_pool(plan, tmp_path, pool, LocalExecutor(), swap)
        assert result.status == "failed" and "making" in result.message
    assert untouched(treasure)


def test_a_lock_that_is_another_name_of_a_file_is_refused(
    make_pool: Any, llama_directory: Path, treasure: Path
) -> None:
    """Older versions of filelock empty what they lock."""
    pool = make_pool(llama_directory, experts=2)
    (pool.path / ".pool.lock").unlink(missing_ok=True)
    (pool.path / ".pool.lock").hardlink_to(treasure / "card.json")
    with pytest.raises(PoolError, match="the lock"):
        remove_expert(pool.path, "e0")
    assert untouched(treasure)
