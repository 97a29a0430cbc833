"""Results in the form that `glider evaluate` writes, with scores of the test's choosing."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

WriteCell = Callable[..., Path]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The directory that `write_cell` writes to."""
    return tmp_path / "results"


@pytest.fixture
def write_cell(results: Path) -> WriteCell:
    """`write_cell(router, set, task, scores)`: one cell; `guess` (None: open answers), or a `fault`."""

    def write(
        router: str,
        where: str,
        task: str,
        scores: Sequence[float] = (),
        *,
        guess: float | None = 0.5,
        data: str = "",
        first: int = 0,
        fault: str | None = None,
        key: str = "",
        folder: str = "",
    ) -> Path:
        told = {
            "format": 1,
            "key": key or hashlib.sha256(f"{router}{where}{task}{scores}".encode()).hexdigest(),
            "router": router,
            "set": where,
            "task": task,
        }
        if fault is not None:
            told["fault"] = {"type": "DataError", "message": fault}
        else:
            told["score"], told["guess"] = sum(scores) / len(scores), guess
            told["results"] = [
                {
                    "id": i,
                    "place": first + i,
                    "prediction": "x",
                    "gold": [f"answer {i}"],
                    "score": score,
                    "choices": None if guess is None else [-1.0, -1.0],
                    "seconds": 0.1,
                    "expert": None,
                    "alpha": None,
                }
                for i, score in enumerate(scores)
            ]
        told["config"] = {"base": "tiny", "dtype": "float32", "task": {"split": "test"}}
        told["hashes"] = {"pool": "ab" * 32, "base": "cd", "data": data or f"{where}/{task}"}
        told["versions"] = {"torch": "2"}
        path = results / folder / router / where / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
        return path

    return write
