"""A name says what its value is; a participle (`found`, `kept_files`) says only what was done with it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import glider

SAYS_NOTHING = frozenset(("found", "own", "told", "kept", "wanted", "chosen", "asked", "made", "given"))
_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar
PUBLIC = {  # known to callers and to files, by these names
    ("errors.py", "wanted"),
    ("report/global_scores.py", "own"),
    ("report/global_scores.py", "best_without_own"),
    ("report/global_scores.py", "above_without_own"),
    ("report/routing_map.py", "own"),
}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a module gives, with their lines: of variables, parameters, functions, classes and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, _NAMED) and node.name:
            yield node.name, node.lineno


def says_nothing(name: str) -> bool:
    return any(part.lower() in SAYS_NOTHING for part in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))


def test_what_is_counted():
    tree = ast.parse(
        "def told(own, *_kept): self.found = [given for given in x]\nclass Chosen: made = 1\nasked_text = x.wanted\n"
        "class KeptFiles: MOST_TOLD, owner, maker, found_at2 = x.asked"
    )
    counted = {name for name, _ in names(tree) if says_nothing(name)}
    assert counted == {
        *("told", "own", "_kept", "found", "given", "Chosen", "made"),
        *("asked_text", "KeptFiles", "MOST_TOLD", "found_at2"),
    }


def test_no_value_is_named_by_a_participle():
    home = Path(glider.__file__).parent
    nameless = [
        f"{path.relative_to(home)}:{line} {name}"
        for path in sorted(home.rglob("*.py"))
        for name, line in names(ast.parse(path.read_text("utf8")))
        if says_nothing(name) and (path.relative_to(home).as_posix(), name) not in PUBLIC
    ]
    assert not nameless, f"{len(nameless)}: " + ", ".join(nameless[:20])
