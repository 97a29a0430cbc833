"""Every router's training goes on where it was broken off and ends with the same file, or begins anew."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.contribute.router_statistics import halving, losses_of
from glider.contribute.train_router import train_router, trainable
from glider.errors import TrainingError
from glider.experts.membership import remove_expert
from glider.experts.pool import Pool
from glider.experts.router_files import router_path
from glider.inference.base_model import BaseModel
from glider.jobs.saving import saving_every

from .rows import rows_of, settings

KINDS = sorted(trainable())
Told = list[tuple[str, int, int]]


@pytest.fixture(autouse=True)
def saved_always() -> Iterator[None]:
    """States are saved after each step."""
    with saving_every(1):
        yield


def trained(base: BaseModel, pool: Pool, kind: str, stop: int | None = None, **more: Any) -> Told:
    """What was told of a training, which is broken off when it has told `stop` steps."""
    told: Told = []

    def report(what: str, done: int, all_: int) -> None:
        told.append((what, done, all_))
        if len(told) == stop:
            raise KeyboardInterrupt

    rows = more.pop("rows_of", rows_of())
    if stop is None:
        train_router(base, pool, kind, rows, settings(**more), report)
    else:
        with pytest.raises(KeyboardInterrupt):
            train_router(base, pool, kind, rows, settings(**more), report)
    return told


def state_of(pool: Pool, kind: str) -> Path:
    file = router_path(pool.path, kind)
    return file.parent / f".{file.name}.training" / "state.safetensors"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("ariadne", "joint") else pytest.mark.slow) for kind in KINDS]
)
def test_training_that_was_broken_off_ends_with_the_same_bits(base: BaseModel, pool: Pool, kind: str) -> None:
    whole = trained(base, pool, kind)
    stages = dict.fromkeys(what for what, _, _ in whole)
    assert [told for told in whole if told[0] == whole[-1][0]][-1][1] == whole[-1][2], "all of it is told as done"
    file = router_path(pool.path, kind)
    wanted = file.read_bytes()
    ends = [max(i for i, told in enumerate(whole, 1) if told[0] == stage) for stage in stages]
    for stop in sorted({1, len(whole) // 2, *ends}):
        file.unlink()
        assert trained(base, pool.reload(), kind, stop) == whole[:stop]
        assert not file.exists()
        assert trained(base, pool.reload(), kind) == whole[stop - 1 :], "what was saved is not done again"
        assert file.read_bytes() == wanted, f"broken off at {whole[stop - 1]}"


@pytest.mark.slow
def test_it_may_be_broken_off_again_and_again(base: BaseModel, pool: Pool) -> None:
    """Each time two items are told: the one that was not saved, and the next."""
    whole = trained(base, pool, "vq")
    wanted = router_path(pool.path, "vq").read_bytes()
    router_path(pool.path, "vq").unlink()
    for done in range(len(whole) - 1):
        assert trained(base, pool, "vq", 2) == whole[done : done + 2]
    trained(base, pool, "vq")
    assert router_path(pool.path, "vq").read_bytes() == wanted


def other_rows(base: BaseModel, pool: Pool, grow: Callable[..., Pool], directory: Path) -> tuple[Pool, dict[str, Any]]:
    return pool, {"rows_of": rows_of(9)}


def other_seed(base: BaseModel, pool: Pool, grow: Callable[..., Pool], directory: Path) -> tuple[Pool, dict[str, Any]]:
    return pool, {"seed": 3}


def other_expert(
    base: BaseModel, pool: Pool, grow: Callable[..., Pool], directory: Path
) -> tuple[Pool, dict[str, Any]]:
    remove_expert(pool.path, "e2")
    return grow(Pool.open(pool.path), directory, "e2", seed=9), {}


def other_precision(
    base: BaseModel, pool: Pool, grow: Callable[..., Pool], directory: Path
) -> tuple[Pool, dict[str, Any]]:
    base.model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    return pool, {}


@pytest.mark.parametrize("kind", ["joint", "seqr"])
@pytest.mark.parametrize(
    "change",
    [
        other_expert,
        *(pytest.param(change, marks=pytest.mark.slow) for change in (other_rows, other_seed, other_precision)),
    ],
)
def test_a_training_of_something_else_begins_anew(
    base: BaseModel, pool: Pool, kind: str, change: Callable[..., Any], grow_pool, llama_directory: Path
) -> None:
    """An expert that was made anew under its old name had the state of the old one."""
    trained(base, pool, kind, 3)
    assert state_of(pool, kind).exists()
    changed, more = change(base, pool, grow_pool, llama_directory)
    told = trained(base, changed, kind, **more)
    assert told[0][1] == 1
    file = router_path(pool.path, kind)
    got = file.read_bytes()
    file.unlink()
    trained(base, changed, kind, **more)
    assert file.read_bytes() == got


@pytest.mark.parametrize("damage", ["cut", "other", "link"])
@pytest.mark.parametrize("kind", ["vq", "joint", "lorauter"])
def test_a_state_that_cannot_be_read_is_refused(
    base: BaseModel, pool: Pool, tmp_path: Path, kind: str, damage: str, edit_tensors
) -> None:
    trained(base, pool, kind, 3)
    state = state_of(pool, kind)
    content = state.read_bytes()
    if damage == "cut":
        state.write_bytes(content[:-1])
    elif damage == "other":
        edit_tensors(state, lambda tensors: tensors.clear())
    else:
        (tmp_path / "elsewhere").write_bytes(content)
        state.unlink()
        state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((TrainingError, OSError), match=r"state\.safetensors") as told:
        train_router(base, pool, kind, rows_of(), settings())
    assert damage == "link" or f"Remove {state.parent}" in str(told.value)
    assert not router_path(pool.path, kind).exists()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_so_many_losses_are_asked_for(count: int) -> None:
    asked: list[str] = []
    halving([str(i) for i in range(count)], [0] * 8, lambda name, rows: len(asked.append(name) or asked))  # pyright: ignore[reportArgumentType]
    assert len(asked) == losses_of(count)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from glider.contribute.train_router import train_router
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.jobs.saving import saving_every
from rows import rows_of, settings

base, pool, kind, last = sys.argv[1:]
told = []

def report(*step):
    print(*step, flush=True)
    told.append(step)
    if len(told) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

with saving_every(1):
    train_router(load_base(base), Pool.open(Path(pool)), kind, rows_of(), settings(), report)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stop"), [("vq", 30), ("seqr", 9), ("ariadne", 4), ("lorauter", 8), ("task-moe", 5)])
def test_a_killed_training_ends_with_the_same_bits(
    pool: Pool, base: BaseModel, llama_directory: Path, kind: str, stop: int
) -> None:
    """Names have another order in the sets of each process."""
    whole = trained(base, pool, kind)
    file = router_path(pool.path, kind)
    wanted = file.read_bytes()
    file.unlink()

    def run(last: int) -> tuple[int, list[str]]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        command = [sys.executable, "-c", KILLED, llama_directory, pool.path, kind, str(last)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        return ran.returncode, ran.stdout.splitlines()

    assert run(stop) == (-signal.SIGKILL, [" ".join(map(str, told)) for told in whole[:stop]])
    assert not file.exists()
    assert run(0) == (0, [" ".join(map(str, told)) for told in whole[stop - 1 :]])
    assert file.read_bytes() == wanted
