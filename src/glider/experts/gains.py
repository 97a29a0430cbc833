"""`gains.json` of a pool: the measured gain of each expert over the base alone, on the expert's own task.

It lies beside the index and is not part of it: measuring needs no new signature, and nothing depends on it. Gains are
stored by the content of an adapter, so that they follow a renamed adapter and never apply to a replaced one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from glider.config import Config, faults
from glider.errors import PoolError
from glider.experts.index import PoolIndex
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Pool
from glider.files.disk import write_json
from glider.files.json_text import read_json

GAINS_FILE = "gains.json"


class Gain(Config):
    """Mean scores, between 0 and 1, of the same rows by the base and by the expert alone."""

    metric: str
    rows: int = Field(gt=0)
    base: float = Field(ge=0, le=1)
    alone: float = Field(ge=0, le=1)
    low: float | None = Field(None, ge=-1, le=1)  # 95 % interval of the difference
    high: float | None = Field(None, ge=-1, le=1)

    @property
    def difference(self) -> float:
        """The expert's gain."""
        return self.alone - self.base


class _Gains(Config):
    format: Literal[1] = 1
    adapters: dict[str, Gain] = {}  # by the sha256 of the adapter's weights


def read_gains(path: Path, index: PoolIndex) -> dict[str, Gain]:
    """The gains of a pool's experts as they are now; raises `PoolError` for a malformed file."""
    gains = _read(path / GAINS_FILE).adapters
    return {name: gains[adapter] for name, adapter in _adapters(index).items() if adapter in gains}


def store_gains(pool: Pool, gains: Mapping[str, Gain]) -> None:
    """Store the gains of these experts, and keep those of the pool's others."""
    adapters = _adapters(pool.index)
    present = {adapters[name]: gain for name, gain in (read_gains(pool.path, pool.index) | dict(gains)).items()}
    write_json(pool.path / GAINS_FILE, _Gains(adapters=present).model_dump(mode="json", exclude_none=True))


def _adapters(index: PoolIndex) -> dict[str, str]:
    return {record.name: record.files[ADAPTER_WEIGHTS_FILE].sha256 for record in index.experts}


def _read(path: Path) -> _Gains:
    try:
        return _Gains.model_validate(read_json(path))
    except FileNotFoundError:
        return _Gains()
    except ValidationError as fault:
        raise PoolError(f"gains in {path}", faults(fault), "Remove the file, or measure again.") from fault
    except (ValueError, RecursionError) as fault:
        raise PoolError(f"JSON in {path}", str(fault), "Remove the file, or measure again.") from fault
