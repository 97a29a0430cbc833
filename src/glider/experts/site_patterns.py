"""An adapter's own ranks and alphas: patterns to values, resolved as PEFT resolves them, in time that is bounded.

PEFT takes the first pattern that `re.match` finds at the end of a site's name. Python's `re` may take longer at a
stranger's expression than the universe has left. Two ways lead to the same answer here:

- a name, as PEFT itself writes them (`model.layers.0.self_attn.q_proj`, `^model\\.layers\\.0`), with dots that fit any
  character: compared at its length, all names of one form at once, so that 700 patterns cost no more than one;
- any other expression by RE2, whose time is linear in the text.

What the two engines read differently is refused, and so is what neither PEFT nor Python would take.
"""

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import re2

LONGEST_PATTERN = 256  # characters
MOST_PATTERNS = 20_000
MOST_EXPRESSIONS = 1000  # patterns that are no names
_MOST_WORK = 300_000_000  # steps of RE2's slowest engine over all sites: less than a second
_LARGEST_PROGRAM = 2000  # instructions of an expression
_MEMORY = 1 << 20  # bytes of an expression
_CALL = 250  # steps that asking at all is worth
_NAME = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.\-])+")
# POSIX classes, {,n}, {01}, flags in the middle: RE2 and Python read them differently, or one Python otherwise than
# the next
_AMBIGUOUS = re.compile(r"\[[:.=]|\{(?:,|0[0-9]|[0-9]+,0[0-9])|\(\?[a-zA-Z-]*\)")


class BadPattern(ValueError):
    """A pattern that cannot be used; the message says why."""


@dataclass(frozen=True)
class _Expression:
    place: int
    compiled: Any


class SitePatterns:
    """Patterns in their order, and which of them a site's name fits first. Raises `BadPattern`."""

    def __init__(self, patterns: Mapping[str, Any]):
        if len(patterns) > MOST_PATTERNS:
            raise BadPattern(f"{len(patterns)} patterns, where {MOST_PATTERNS} are the most")
        self._names: dict[tuple[int, tuple[int, ...], bool], dict[str, int]] = {}
        self._expressions: list[_Expression] = []
        self._values = list(patterns.values())
        self._known: dict[str, Any] = {}
        self._work = 0
        for place, pattern in enumerate(patterns):
            if len(pattern) > LONGEST_PATTERN:
                raise BadPattern(f"a pattern of {len(pattern)} characters, where {LONGEST_PATTERN} are the most")
            if _NAME.fullmatch(pattern):
                self._take_name(pattern, place)
            else:
                self._expressions.append(_Expression(place, _compiled(pattern)))
        if len(self._expressions) > MOST_EXPRESSIONS:
            raise BadPattern(f"{len(self._expressions)} expressions, where {MOST_EXPRESSIONS} are the most")

    def value(self, site: str, default: Any) -> Any:
        """The value of the first pattern that the site fits, or the default."""
        if site not in self._known:
            place = self._first(site)
            self._known[site] = default if place is None else self._values[place]
        return self._known[site]

    def _take_name(self, pattern: str, place: int) -> None:
        whole, name = pattern.startswith("^"), pattern.removeprefix("^")
        letters, holes = [], []
        for part in re.findall(r"\\.|.", name):
            if part == ".":
                holes.append(len(letters))
            letters.append("\0" if part == "." else part[-1])
        form = self._names.setdefault((len(letters), tuple(holes), whole), {})
        form.setdefault("".join(letters), place)

    def _first(self, site: str) -> int | None:
        places = []
        for (length, holes, whole), names in self._names.items():
            self._charge(_CALL + length)
            start = len(site) - length
            if start < 0 or (start > 0 and (whole or site[start - 1] != ".")):
                continue
            letters = list(site[start:])
            for hole in holes:
                letters[hole] = "\0"
            if (place := names.get("".join(letters))) is not None:
                places.append(place)
        first = min(places, default=None)
        if self._expressions and not site.isascii():
            raise BadPattern(f"the site {site!r}, which engines read differently")
        for expression in self._expressions:  # in the order of their places
            if first is not None and expression.place > first:
                break
            self._charge(_CALL + expression.compiled.programsize * (len(site) + 1))
            if expression.compiled.fullmatch(site):
                return expression.place
        return first

    def _charge(self, steps: int) -> None:
        self._work += steps
        if self._work > _MOST_WORK:
            raise BadPattern("patterns that take too long at so many sites")


def endings(sites: Iterable[str]) -> set[str]:
    """The names by which a list of modules may name one of these sites: its own, and what stands behind a dot of it."""
    names = set()
    for site in sites:
        parts = site.split(".")
        names |= {".".join(parts[begin:]) for begin in range(len(parts))}
    return names


def named_sites(sites: Collection[str], names: Iterable[str]) -> set[str]:
    """The sites that a list of modules names, in time that grows with both, and not with their product."""
    known = set(names)
    return {site for site in sites if not known.isdisjoint(endings([site]))}


def whole_matches(pattern: str, sites: Collection[str]) -> set[str]:
    """Sites whose whole name an expression fits, as PEFT reads `target_modules` that are no list.

    Raises `BadPattern` for one that is not read in bounded time, or not by both engines alike.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"a pattern of {len(pattern)} characters, where {LONGEST_PATTERN} are the most")
    compiled = _compiled(pattern, within="")
    if odd := next((site for site in sites if not site.isascii()), None):
        raise BadPattern(f"the site {odd!r}, which engines read differently")
    if sum(_CALL + compiled.programsize * (len(site) + 1) for site in sites) > _MOST_WORK:
        raise BadPattern("a pattern that takes too long at so many sites")
    return {site for site in sites if compiled.fullmatch(site)}


def _compiled(pattern: str, within: str = r"(?:.*\.)?") -> Any:
    """The expression as RE2 reads it, if Python reads it too, and the same; `within` may stand before it."""
    if not pattern.isascii() or _AMBIGUOUS.search(pattern):
        raise BadPattern(f"{pattern!r}, which engines read differently")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)  # by itself: within PEFT's brackets an unbalanced one would mean something else
    except (re.error, OverflowError, RecursionError, ValueError) as fault:
        raise BadPattern(f"{pattern!r}: {fault}") from fault
    options = re2.Options()
    options.log_errors, options.never_capture, options.max_mem = False, True, _MEMORY
    try:
        compiled = re2.compile(f"{within}(?:{pattern})", options)
    except re2.error as fault:
        reason = fault.args[0].decode("utf8", "replace") if isinstance(fault.args[0], bytes) else str(fault)
        raise BadPattern(f"{pattern!r}, no expression of linear time: {reason}") from fault
    if compiled.programsize > _LARGEST_PROGRAM:
        raise BadPattern(f"{pattern!r}, which is too large an expression")
    return compiled
