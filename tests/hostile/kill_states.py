"""What is on disk before and after a killed command, told so that old and new can be compared."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from glider.errors import GliderError
from glider.experts.expert import Expert
from glider.experts.gains import read_gains
from glider.experts.pool import POOL_FILE, Pool


def pool_state(root: Path, name: str = "pool") -> object:
    """All of a pool that its owner cares for."""
    path = root / name
    if not (path / POOL_FILE).exists():
        return None
    pool = Pool.open(path)
    pool.verify()
    return {
        "experts": {expert.name: expert_digest(expert) for expert in pool},
        "calibrations": sorted(pool.index.calibrations),
    }


def expert_state(root: Path, name: str = "reviews") -> object:
    """All of an expert, or None where there is none."""
    try:
        expert = Expert.open(root / "pool" / name)
    except GliderError as fault:
        if not any(text in str(fault) for text in ("which is not there", "without it")):  # the state before
            raise
        return None
    expert.verify()
    return expert_digest(expert)


def expert_digest(expert: Expert) -> str:
    card = expert.card.model_dump(mode="json")
    told = {"description": card["description"], "gates": "gates" in card["training"], "examples": card["examples"]}
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(expert.vectors.items()):
        content.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    for site in expert.sites:
        for factor in expert.factors(site):
            content.update(factor.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def file_state(*names: str) -> Callable[[Path], object]:
    """Which of these files there are; what they hold is random, and must be whole."""

    def state(root: Path) -> object:
        for name in names:
            assert not (root / name).exists() or (root / name).read_text().endswith("\n"), name
        return [name for name in names if (root / name).exists()]

    return state


def files_state(folder: str) -> Callable[[Path], object]:
    """What each file of a folder holds."""

    def state(root: Path) -> object:
        files = sorted(file for file in (root / folder).rglob("*") if file.is_file() and ".partial" not in str(file))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return state


def new_state(root: Path) -> object:
    return expert_state(root, "new")


def pulled_state(root: Path) -> object:
    return pool_state(root, "pulled")


def imported_state(root: Path) -> object:
    return pool_state(root, "imported")


def results_state(root: Path) -> object:
    return {str(file.relative_to(root)): json.loads(file.read_text())["score"] for file in root.glob("out/*/*/*.json")}


def routers_state(root: Path) -> object:
    """A pool, and what its trained routers hold."""
    pool = Pool.open(root / "pool")
    pool.verify()
    return pool_state(root), {kind: record.sha256 for kind, record in (pool.index.routers or {}).items()}


def gains_state(root: Path) -> object:
    """What is known of the experts' gains."""
    pool = Pool.open(root / "pool")
    return {name: gain.alone for name, gain in read_gains(pool.path, pool.index).items()}


def answers_state(root: Path) -> object:
    """The answers to a file of prompts, all or none."""
    file = root / "answers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else None


def served_state(root: Path) -> object:
    """A pool that is served, and an adapter beside it."""
    return pool_state(root), expert_digest(Expert.open(root / "pool" / "extra"))
