"""The card: the description of an expert."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from glider.config import Config, faults
from glider.errors import ExpertError, GliderError
from glider.experts.base_identity import BaseIdentity
from glider.experts.prompt_format import PromptFormat
from glider.files.json_text import parse_json
from glider.files.opening import read_bytes

CARD_FILE = "card.json"
FORMAT = 1
LARGEST_CARD = 4 << 20  # bytes
MOST_MEMBERS = 20_000
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # of an expert, and so of a directory: no way out of it
PROBE_TOLERANCE = 0.01


class EmbedderIdentity(Config):
    """The embedder that made an instruction embedding; vectors of another embedder cannot be compared with it.

    `probe` holds the first coordinates of the embedding of a fixed sentence. They are compared with a tolerance, since
    a hash of them would differ between machines whose arithmetic differs in the last bit. An empty probe is unknown
    (vectors that came without their embedder): such an identity matches by name, prefix and dimension alone.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    embedder: str
    prefix: str = ""
    dimension: int = Field(gt=0)
    probe: tuple[float, ...]

    def matches(self, other: "EmbedderIdentity | None") -> bool:
        """Whether both make the same vectors."""
        if other is None or (self.embedder, self.prefix, self.dimension) != (
            other.embedder,
            other.prefix,
            other.dimension,
        ):
            return False
        if not self.probe or not other.probe:
            return True
        return len(self.probe) == len(other.probe) and all(
            abs(mine - theirs) < PROBE_TOLERANCE for mine, theirs in zip(self.probe, other.probe, strict=True)
        )


class Example(Config):
    """One input-output pair of the expert's task."""

    input: str
    output: str


class DescriptionOrigin(Config):
    """Who wrote a description: the describer's name, and the prompt's with its version."""

    describer: str
    prompt: str | None = None


class ExpertCard(Config):
    """`card.json`, format 1: what an expert is for, and where it comes from.

    Arguments:
        name: The expert's name, which is its directory's.
        task: Name of the task.
        description: One sentence naming the task; None where nobody wrote one.
        described_by: Who wrote it; None for a person.
        examples: Rows of the training data.
        licence: SPDX identifier.
        base: Identity of the base model.
        prompt: The form in which prompts were put to it.
        embedder: What embedded the description.
        training: How it was trained: settings, hashes, versions.
        metrics: Scores by name.

    Raises: `ExpertCard.read` raises `ExpertError` naming the file and the field.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    task: str
    description: str | None = None
    described_by: DescriptionOrigin | None = None  # None: the contributor
    examples: tuple[Example, ...] = ()
    licence: str | None = None
    base: BaseIdentity
    prompt: PromptFormat
    embedder: EmbedderIdentity | None = None
    training: dict[str, Any] = {}
    metrics: dict[str, float] = {}

    @classmethod
    def read(cls, directory: Path) -> "ExpertCard":
        """Read `directory/card.json`; raises `ExpertError` naming the file and every fault."""
        return cls.parsed(read_card(directory), directory / CARD_FILE)

    @classmethod
    def parsed(cls, content: bytes, path: Path) -> "ExpertCard":
        """The card of this content, read from `path`; raises as `read`."""
        try:
            value = parse_json(content, MOST_MEMBERS)
            require_format(value, FORMAT, "a card", path, ExpertError)
            return cls.model_validate(value)
        except ValidationError as fault:
            raise ExpertError(
                f"a card of format 1 in {path}", faults(fault), "Mend the card or get the expert anew."
            ) from fault
        except (ValueError, RecursionError) as fault:
            raise ExpertError(f"JSON in {path}", str(fault), "Get the expert anew; the file is damaged.") from fault


def read_card(directory: Path) -> bytes:
    """The bytes of a directory's card; raises `ExpertError` if there is no readable one."""
    path = directory / CARD_FILE
    try:
        return read_bytes(path, LARGEST_CARD)
    except FileNotFoundError:
        got = f"{directory} without it" if directory.exists() else f"{directory}, which is not there"
        raise ExpertError(f"an expert directory with {CARD_FILE}", got, _remedy(directory)) from None
    except (ValueError, OSError) as fault:
        raise ExpertError(f"JSON in {path}", str(fault), "Get the expert anew; the file is damaged.") from fault


def _remedy(directory: Path) -> str:
    """What to do about a directory without a card; an expert that its pool renamed lies under its first name."""
    from glider.experts.index import POOL_FILE, parsed_index, read_pool_file

    try:
        pool = parsed_index(read_pool_file(directory.parent), directory.parent / POOL_FILE)
    except GliderError:
        pool = None
    for record in () if pool is None else pool.experts:
        if record.name == directory.name != record.home:
            return f"It was renamed: its files are in {directory.parent / record.home}."
    return "Make experts with `glider expert train` or `glider expert import`."


def require_format(value: Any, newest: int, kind: str, path: Path, error: type[GliderError]) -> None:
    """Raise `error` for a file that a newer glider wrote, which this one must not guess at."""
    number = value.get("format") if isinstance(value, dict) else None
    if type(number) is int and number > newest:
        expected = f"{kind} of format {newest} or older in {path}"
        raise error(expected, f"format {number}, by a newer glider", "Upgrade: pip install --upgrade glider-moe")
