"""What a result's file must hold for a table or a report to be made of it, whoever wrote it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from glider.config import faults

Score = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_ROUNDING = 1e-6  # of a mean
Guess = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class _Row(_Part):
    place: Annotated[int, Field(ge=0, le=1 << 53)]
    score: Score
    expert: str | None = None
    verdict: str | None = None


class _Fault(_Part):
    message: str


class _Task(_Part):
    split: str | None = None


class _Setting(_Part):
    base: str
    dtype: str
    task: _Task


class _Hashes(_Part):
    pool: str
    data: str


class _Head(_Part):
    key: str
    router: str
    set: str
    task: str
    config: _Setting
    hashes: _Hashes
    versions: dict[str, str]


class _Failed(_Head):
    fault: _Fault


class _Finished(_Head):
    guess: Guess | None
    rows: int | None = None  # how many there were
    score: Score | None = None  # their mean
    results: Annotated[list[_Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_row_once(self) -> "_Finished":
        if len({row.place for row in self.results}) < len(self.results):
            raise ValueError("a row twice")
        if self.rows is not None and self.rows != len(self.results):
            raise ValueError(f"{len(self.results)} rows, where {self.rows} were")
        mean = sum(row.score for row in self.results) / len(self.results)
        if self.score is not None and abs(self.score - mean) > _ROUNDING:
            raise ValueError(f"a score of {self.score:g}, where the mean of its rows is {mean:g}")
        return self


def require_cell(record: dict[str, Any]) -> None:
    """Raise `ValueError` that names the first faults of a cell's record, finished or failed."""
    try:
        (_Failed if "fault" in record else _Finished).model_validate(record)
    except ValidationError as fault:
        raise ValueError(faults(fault)) from fault
