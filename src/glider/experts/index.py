"""`pool.json`: a pool's experts, records of their files when they joined, and the calibrations."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from glider.config import Config, faults, repeated
from glider.errors import PoolError
from glider.experts.base_identity import BaseIdentity
from glider.experts.card import NAME, EmbedderIdentity, require_format
from glider.experts.thresholds import Thresholds
from glider.files.disk import write_json
from glider.files.json_text import LARGEST_JSON, MOST_MEMBERS, parse_json
from glider.files.opening import read_bytes

BACKGROUND_FILE = "background.safetensors"  # of a pool that has strangers of its own
POOL_FILE = "pool.json"
BESIDE_EXPERTS = frozenset(  # what else lies in a pool's directory, in small letters
    (POOL_FILE, f"{POOL_FILE}.sig", BACKGROUND_FILE, "gains.json", "routers", "readme.md")
)
FORMAT = 2  # since 2 with digests of the single tensors
_LARGEST_CONSTANT = 1e6
_LARGEST_ROUTER = 1 << 33  # bytes
_LARGEST_FILE = 1 << 50  # bytes


class FileRecord(Config):
    """Record of an expert's file when the expert joined."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file.")
    size: int = Field(ge=0, le=_LARGEST_FILE, description="Size of the file in bytes.")
    tensors: str | None = Field(
        default=None, description="Digest of the file's header and of every tensor. Null: a file recorded by format 1."
    )


class ExpertRecord(Config):
    """One expert of a pool. Its directory has its name, unless it was renamed: then the files stay in place."""

    name: str = Field(pattern=NAME, description="Name of the expert.")
    directory: str | None = Field(
        None, pattern=NAME, description="Directory inside the pool, where the expert was renamed. Default: its name."
    )
    files: dict[str, FileRecord] = Field(description="Record of each file of the expert, by the file's name.")

    @property
    def home(self) -> str:
        """The directory inside the pool that holds the expert."""
        return self.directory or self.name


class Calibration(Config):
    """The constants of alpha = gamma * [max global > p] + beta for one global signal, and how good they are."""

    model_config = ConfigDict(allow_inf_nan=False)

    p: float = Field(
        ge=-_LARGEST_CONSTANT,
        le=_LARGEST_CONSTANT,
        description="Threshold of the highest global score, above which alpha is gamma + beta.",
    )
    gamma: float = Field(
        100.0, ge=-_LARGEST_CONSTANT, le=_LARGEST_CONSTANT, description="What is added to alpha above p."
    )
    beta: float = Field(3.0, ge=-_LARGEST_CONSTANT, le=_LARGEST_CONSTANT, description="Alpha up to p.")
    auc: float | None = Field(
        default=None,
        description="Area under the ROC curve of the highest score, between queries with and without their expert in "
        "the pool. Null: not measured.",
    )
    balanced_accuracy: float | None = Field(
        default=None, description="Balanced accuracy of p, between the same queries. Null: not measured."
    )
    queries: int | None = Field(
        default=None, description="Held-back queries, each scored with and without its expert. Null: not measured."
    )
    experts: tuple[str, ...] = Field(default=(), description="Names of the pool's experts when p was chosen.")
    source: str = Field(description="Where the constants come from, in words.")


class RouterRecord(Config):
    """A trained router: its file, the adapters that it is for, and how it was trained."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the router's file.")
    size: int = Field(ge=0, le=_LARGEST_ROUTER, description="Size of the router's file in bytes.")
    experts: dict[str, str] = Field(
        description="SHA-256 of each adapter's weights, by expert, in the order of the router's columns."
    )
    settings: dict[str, str | float] = Field(default={}, description="Settings of its training.")


class PoolIndex(Config):
    """`pool.json`, format 2; an index of format 1 is read as one without digests of tensors."""

    format: Literal[1, 2] = Field(default=FORMAT, description="Number of the format.")
    base: BaseIdentity = Field(description="Identity of the base model.")
    embedder: EmbedderIdentity | None = Field(
        default=None, description="What embedded the experts' descriptions. Null: no expert has one."
    )
    signal: str | None = Field(
        default=None, description="Global signal where the caller names none. Null: instruction."
    )
    calibrations: dict[str, Calibration] = Field(default={}, description="Calibration of each global signal, by name.")
    verdicts: Thresholds | None = Field(
        default=None, description="Thresholds of the verdicts. Null: the pool is not calibrated, and has no verdicts."
    )
    routers: dict[Annotated[str, Field(pattern=NAME)], RouterRecord] | None = Field(
        default=None, description="Trained routers, by kind. Null: none was trained."
    )
    experts: tuple[ExpertRecord, ...] = Field(default=(), description="Experts of the pool, in order.")


def read_pool_file(path: Path) -> bytes:
    """The bytes of a pool's index; raises `PoolError` if there is no readable one."""
    file = path / POOL_FILE
    try:
        return read_bytes(file, LARGEST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        raise PoolError(
            f"a pool directory with {POOL_FILE}",
            f"{path} without it" if path.exists() else f"{path}, which is not there",
            "Give the directory of a pool; `glider init` plans one.",
        ) from None
    except (ValueError, OSError) as fault:
        raise PoolError(f"JSON in {file}", str(fault), "Build the pool again; the file is damaged.") from fault


def parsed_index(content: bytes, file: Path) -> PoolIndex:
    """The index of this content, read from `file`; raises `PoolError` naming every fault."""
    try:
        value = parse_json(content, MOST_MEMBERS)
        require_format(value, FORMAT, "a pool", file, PoolError)
        index = PoolIndex.model_validate(value)
    except ValidationError as fault:
        raise PoolError(
            f"a pool of format {FORMAT} or older in {file}", faults(fault), "Build the pool again."
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise PoolError(f"JSON in {file}", str(fault), "Build the pool again; the file is damaged.") from fault
    for names in ([record.name for record in index.experts], [record.home for record in index.experts]):
        if twice := repeated(names):
            got = f"{', '.join(twice[:5])} twice" + (f", and {len(twice) - 5} more" if len(twice) > 5 else "")
            raise PoolError(f"every expert once in {file}", got, "Build the pool again.")
    return index


def require_home(home: str, others: Iterable[str] = ()) -> None:
    """Raise `PoolError` for an expert's new directory that has the name of something else in a pool, or that of another
    expert but for capital letters: some file systems take these for one."""
    if home.lower() in BESIDE_EXPERTS:
        got = f"{home}, which is a name of the pool's own files"
        raise PoolError("another name of an expert's directory", got, "Choose another name.")
    if alike := [other for other in others if other != home and other.lower() == home.lower()]:
        got = f"{home} beside {alike[0]}, which are one name for some file systems"
        raise PoolError("another name of an expert's directory", got, "Choose another name.")


def write_index(path: Path, index: PoolIndex) -> PoolIndex:
    """Write an index into a pool's directory, in the newest format; returns it as written."""
    index = index.model_copy(update={"format": FORMAT})
    write_json(path / POOL_FILE, dump(index))
    return index


def dump(index: PoolIndex) -> dict[str, Any]:
    """The JSON of an index."""
    return index.model_dump(mode="json", exclude_none=True)
