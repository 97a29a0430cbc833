"""States of a router's training that somebody else laid there: one error, before anything is computed with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from glider.contribute.states import write_state
from glider.contribute.train_router import train_router
from glider.errors import TrainingError
from glider.experts.pool import Pool
from glider.experts.router_files import router_path
from glider.files.headers import header_at
from glider.files.opening import opened
from glider.inference.base_model import BaseModel
from glider.jobs.saving import saving_every

from .rows import Q, rows_of, settings

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, Any], Any]


def forge(file: Path, change: Change) -> None:
    """Change the tensors and the progress of a state, and give it the digest that it then has."""
    with opened(file) as descriptor:
        progress = json.loads(header_at(descriptor).metadata["progress"])
    tensors = safetensors.torch.load(file.read_bytes())
    changed = change(tensors, progress)
    progress = progress if changed is None else changed
    write_state(file, tensors, progress)


def broken_off(base: BaseModel, pool: Pool, kind: str, stop: int) -> Path:
    """The state of a training that is broken off when it has told so many steps."""
    told = []

    def report(*progress: Any) -> None:
        told.append(progress)
        if len(told) == stop:
            raise KeyboardInterrupt

    with saving_every(1), pytest.raises(KeyboardInterrupt):
        train_router(base, pool, kind, rows_of(), settings(), report)
    (state,) = (router_path(pool.path, kind).parent / f".{kind}.safetensors.training").glob("*.safetensors")
    return state


def put(name: str, tensor: torch.Tensor) -> Change:
    """A state with another tensor of that name."""
    return lambda tensors, progress: tensors.update({name: tensor})


def without(name: str) -> Change:
    """A state without the tensor of that name."""
    return lambda tensors, progress: tensors.__delitem__(name)


FORGED: list[tuple[str, int, Change]] = [
    ("joint", 2, put(f"now.{Q}", torch.zeros(1))),  # was spread over the whole parameter, without a word
    ("joint", 2, put(f"best.{Q}", torch.zeros(3, 32, 1))),
    ("joint", 2, put(f"exp_avg.{Q}", torch.zeros(5))),
    ("joint", 2, put(f"exp_avg_sq.{Q}", torch.full((3, 32), torch.nan))),
    ("joint", 2, put(f"now.{Q}", torch.full((3, 32), torch.inf))),
    ("joint", 2, without(f"exp_avg.{Q}")),
    ("joint", 2, put("other", torch.zeros(1))),
    ("joint", 2, lambda _, progress: {**progress, "step": "a"}),
    ("joint", 2, lambda _, progress: {**progress, "step": -3}),
    ("joint", 2, lambda _, progress: {**progress, "step": 10**30}),
    ("joint", 2, lambda _, progress: {**progress, "seconds": float("nan")}),
    ("joint", 2, lambda _, progress: {**progress, "validation": [["a", "b"]]}),
    ("joint", 2, lambda _, progress: {**progress, "more": 1}),
    ("vq", 3, lambda _, progress: [99, 0]),
    ("vq", 3, lambda _, progress: [3, 0]),
    ("vq", 3, lambda _, progress: [1, -1]),
    ("vq", 3, lambda _, progress: [1, 10**6]),
    ("vq", 3, lambda _, progress: [True, 1.5]),
    ("vq", 3, put(f"list.{Q}", torch.zeros(4, 31))),
    ("vq", 3, put(f"list.{Q}", torch.full((4, 32), torch.nan))),
    ("vq", 3, put(f"list.{Q}", torch.full((4, 32), 3e38))),
    ("vq", 3, put(f"list.{Q}", torch.zeros(100_000, 32))),
    ("vq", 40, put(f"tensor.sizes.{Q}", torch.ones(2))),
    ("vq", 40, put(f"tensor.codes.{Q}", torch.ones(5, 32).double())),
    ("vq", 40, put(f"tensor.sizes.{Q}", -torch.ones(5))),
    ("vq", 40, put(f"tensor.counts.{Q}", -torch.ones(3, 5))),
    ("seqr", 3, put(f"tensor.{Q}", -torch.ones(3, 3).double())),
    ("seqr", 3, put(f"tensor.{Q}", torch.full((3, 3), torch.nan).double())),
    ("lorauter", 5, put("list./losses", torch.full((2,), torch.nan).double())),
    ("vq", 40, put("draw", torch.zeros(3, dtype=torch.uint8))),
    ("seqr", 3, put(f"tensor.{Q}", torch.ones(3, 1).double())),
    ("ariadne", 2, put("list.e0", torch.ones(3))),
    ("ariadne", 2, without("list.e0")),
    ("lorauter", 5, put("list./losses", torch.ones(1000).double())),
    ("lorauter", 5, put("list./losses", torch.ones(()).double())),
    ("lorauter", 5, put("list.e0", torch.ones(8, 384).long())),
    ("task-moe", 2, put("list.e0", torch.ones(2, 3))),
]


@pytest.mark.parametrize(("kind", "stop", "change"), FORGED, ids=[f"{i}-{one[0]}" for i, one in enumerate(FORGED)])
def test_a_forged_state_is_one_error(base: BaseModel, pool: Pool, kind: str, stop: int, change: Change) -> None:
    """Each was a traceback, or changed the router without a word."""
    state = broken_off(base, pool, kind, stop)
    forge(state, change)
    with pytest.raises(TrainingError, match=r"to begin anew") as told:
        train_router(base, pool, kind, rows_of(), settings())
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000
    assert not router_path(pool.path, kind).exists()


EDITED: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda tensor: tensor.flatten().flip(0).view(tensor.shape),
    lambda tensor: tensor + 1,
    lambda tensor: tensor * 0,
]


@pytest.mark.parametrize(("kind", "stop"), [("joint", 2), ("vq", 3), ("vq", 40), ("seqr", 3), ("ariadne", 2)])
def test_a_state_with_other_valid_values_is_refused(base: BaseModel, pool: Pool, kind: str, stop: int) -> None:
    """Codes in another order, or a sum that is larger, gave another router without a word."""
    state = broken_off(base, pool, kind, stop)
    content = state.read_bytes()
    with opened(state) as descriptor:
        metadata = header_at(descriptor).metadata
    tensors, tried = safetensors.torch.load(content), 0
    for name, tensor in sorted(tensors.items())[:: max(1, len(tensors) // 12)]:
        for edit in EDITED:
            if torch.equal(edited := edit(tensor), tensor):
                continue
            state.write_bytes(safetensors.torch.save({**tensors, name: edited}, metadata))
            with pytest.raises(TrainingError, match=r"another digest.*to begin anew"):
                train_router(base, pool, kind, rows_of(), settings())
            tried += 1
    assert tried > 3
    state.write_bytes(safetensors.torch.save(tensors, {"progress": metadata["progress"]}))
    with pytest.raises(TrainingError, match="another digest"):
        train_router(base, pool, kind, rows_of(), settings())
    state.write_bytes(content)
    train_router(base, pool, kind, rows_of(), settings())


@pytest.mark.parametrize("content", ["hole", "header", "short", "deep"])
def test_a_state_that_is_none_is_one_error(base: BaseModel, pool: Pool, content: str) -> None:
    state = broken_off(base, pool, "joint", 2)
    whole = state.read_bytes()
    if content == "hole":
        with state.open("wb") as file:
            file.truncate(1 << 33)
    elif content == "deep":
        state.write_bytes(safetensors.torch.save({"a": torch.ones(1)}, {"progress": "[" * 100_000}))
    else:
        header = b'{"a":' + b"1," * 1_000_000 + b"1}"
        state.write_bytes(whole[:-4] if content == "short" else len(header).to_bytes(8, "little") + header)
    with pytest.raises(TrainingError, match="to begin anew"):
        train_router(base, pool, "joint", rows_of(), settings())


def test_a_state_is_copied_and_not_mapped(base: BaseModel, pool: Pool) -> None:
    """Who cut a mapped one short ended the process by a signal."""
    broken_off(base, pool, "seqr", 3)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the maps of a process are known on Linux alone")
    seen = []
    train_router(
        base, pool, "seqr", rows_of(), settings(), lambda *_: seen.append("state.safetensors" in maps.read_text())
    )
    assert seen and not any(seen)
