"""YAML of plans and run files, bounded like JSON: a page of it may otherwise stand for gigabytes.

Anchors may be used again, as `<<: *defaults`, but what they stand for is counted each time.
"""

from pathlib import Path
from typing import Any

from glider.files.opening import UnfitFile, read_text

LARGEST_YAML = 1 << 20  # bytes
MOST_NODES = 100_000
DEEPEST = 64


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of plain values. `ValueError` says what is wrong with it; `OSError` where there is none."""
    import yaml

    text = read_text(path, LARGEST_YAML)
    try:
        _check(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, OverflowError, RecursionError) as fault:
        raise UnfitFile(" ".join(str(fault).split())) from fault


def _check(text: str) -> None:
    """Count depth and nodes by events, before anything is built of them."""
    import yaml

    depth = count = 0
    sizes: dict[str, int] = {}  # by anchor
    inside: list[tuple[str | None, int]] = []  # anchors of the collections that are open, and the count before each
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, MOST_NODES)  # unknown, or of a value that holds itself
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, count))
            sizes.pop(event.anchor or "", None)
            count, depth = count + 1, depth + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = inside.pop()
            depth -= 1
            if anchor is not None:
                sizes[anchor] = count - before
        if count >= MOST_NODES:
            raise UnfitFile(f"{MOST_NODES} values or more, or one that holds itself")
        if depth > DEEPEST:
            raise UnfitFile("too deep nesting")
