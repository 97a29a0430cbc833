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

    The probe is compared with a tolerance, since a hash of it would differ between machines whose arithmetic differs in
    the last bit.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    embedder: str = Field(description="Name of the embedder.")
    prefix: str = Field(default="", description="Text put before every text that is embedded. Default: none.")
    dimension: int = Field(gt=0, description="Numbers of a vector.")
    probe: tuple[float, ...] = Field(
        description="First numbers of a fixed sentence's embedding. Empty: unknown, as of vectors that came "
        "without their embedder; then name, prefix and dimension alone are compared."
    )

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

    input: str = Field(description="Input of the pair.")
    output: str = Field(description="Output of the pair.")


class DescriptionOrigin(Config):
    """Who wrote a description."""

    describer: str = Field(description="Name of the describer.")
    prompt: str | None = Field(default=None, description="Name of its prompt, with the version. Null: unknown.")


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

    format: Literal[1] = Field(default=1, description="Number of the format.")
    name: str = Field(pattern=NAME, description="Name of the expert, which is its directory's.")
    task: str = Field(description="Name of the task.")
    description: str | None = Field(default=None, description="One sentence naming the task. Null: nobody wrote one.")
    described_by: DescriptionOrigin | None = Field(
        default=None, description="Who wrote the description. Null: the contributor."
    )
    examples: tuple[Example, ...] = Field(default=(), description="Rows of the training data. Default: none are shown.")
    licence: str | None = Field(default=None, description="SPDX identifier of the licence. Null: none is named.")
    base: BaseIdentity = Field(description="Identity of the base model.")
    prompt: PromptFormat = Field(description="Form in which prompts are put to the expert.")
    embedder: EmbedderIdentity | None = Field(
        default=None, description="What embedded the description. Null: it is not embedded."
    )
    training: dict[str, Any] = Field(default={}, description="How it was trained: settings, hashes, versions.")
    metrics: dict[str, float] = Field(default={}, description="Scores, by name.")

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
