"""YAML of plans and run files, bounded like JSON: a page of it may otherwise stand for gigabytes.

Anchors may be used again, as `<<: *defaults`, but what they stand for is counted each time. A name that stands twice in
a mapping is refused: the parser would take the last one, and leave out the others without a word. libyaml parses where
it is there. Numbers are short, since Python prints no long one, not even in an error.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glider.config import faults
from glider.errors import ConfigError
from glider.files.opening import UnfitFile, read_text

LARGEST_YAML = 1 << 20  # bytes
MOST_NODES = 100_000
DEEPEST = 64
_LONGEST_NUMBER = 300  # characters; a longer integer is larger than any float
_NAMELESS = 'in "<unicode string>", '  # what the parser calls a text that it was given
_NUMBER = re.compile(r"[-+]?[0-9.][0-9A-Fa-fxob_:.+-]*")


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of plain values. `ValueError` says what is wrong with it; `OSError` where there is none."""
    import yaml

    text = read_text(path, LARGEST_YAML)
    try:
        _check(text)
        return yaml.load(text, _loader())  # (a safe one)
    except (yaml.YAMLError, OverflowError, RecursionError) as fault:
        raise UnfitFile(" ".join(str(fault).replace(_NAMELESS, "").split())) from fault
    except (LookupError, AttributeError) as fault:  # the parser's own, at `!!bool maybe` or `!!timestamp soon`
        raise UnfitFile("a value that does not fit its tag") from fault


@contextmanager
def faults_of_plan(file: str, plan: str, page: str, path: Path) -> Iterator[None]:
    """Make a `ConfigError` of what goes wrong while settings are read from a YAML file.

    Arguments:
        file: What the file is, with an article: "a run file".
        plan: What its content is, with an article: "a run".
        page: The page of the documentation that describes its form.
        path: The file.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{file} at {path}", "no such file", "Check the path.") from None
    except ValidationError as fault:
        raise ConfigError(f"{plan} in {path}", faults(fault), f"See {page} for the form.") from fault
    except (OSError, ValueError) as fault:
        raise ConfigError(f"YAML in {path}", str(fault), "Mend the file.") from fault


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check(text: str) -> None:
    """Count depth and nodes by events, before anything is built of them."""
    import yaml

    depth = count = 0
    sizes: dict[str, int] = {}  # by anchor
    inside: list[_Open] = []
    for event in yaml.parse(text, Loader=_loader()):
        if inside and isinstance(event, yaml.NodeEvent):
            inside[-1].take(event.value if isinstance(event, yaml.ScalarEvent) else None)
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, MOST_NODES)  # unknown, or of a value that holds itself
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            plain = event.implicit[0] or event.tag not in (None, "!")
            if plain and len(event.value) > _LONGEST_NUMBER and _NUMBER.fullmatch(event.value):
                raise UnfitFile(f"a number of {len(event.value)} characters")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            names = set() if isinstance(event, yaml.MappingStartEvent) else None
            inside.append(_Open(event.anchor, count, names))
            sizes.pop(event.anchor or "", None)
            count, depth = count + 1, depth + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = inside.pop()
            depth -= 1
            if closed.anchor is not None:
                sizes[closed.anchor] = count - closed.before
        if count >= MOST_NODES:
            raise UnfitFile(f"{MOST_NODES} values or more, or one that holds itself")
        if depth > DEEPEST:
            raise UnfitFile("too deep nesting")


@dataclass
class _Open:
    """A collection whose end is still to come."""

    anchor: str | None
    before: int  # values counted before it
    names: set[str] | None  # of a mapping
    at_name: bool = True  # what comes next, in a mapping

    def take(self, text: str | None) -> None:
        """A value of it begins; `text` is a scalar's. Raises `UnfitFile` for a name that stands twice."""
        if self.names is None:
            return
        if self.at_name and text is not None:
            if text in self.names:
                raise UnfitFile(f"the name {text[:60]!r} twice")
            self.names.add(text)
        self.at_name = not self.at_name
