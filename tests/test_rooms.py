"""Rooms import what lies below them, as docs/design.md says; what a function takes from above is listed here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import glider

HOME = Path(glider.__file__).parent
ORDER = (  # each imports only those before it
    *("printable", "errors", "config", "terminal", "progress", "shapes", "registry", "files", "data", "experts"),
    *("sharing", "demo", "routing", "instructions", "verdicts", "calibration", "layers", "inference", "testing"),
    *("base_model", "jobs", "contribute", "evaluation", "report", "serve", "engines", "batch", "cli", "__main__"),
)
WITHIN_FUNCTIONS = {  # why a function looks up
    ("experts/pool.py", "verdicts"): "a pool's own background is opened when it is asked for",
    ("routing/base.py", "verdicts"): "a type alone",
    ("routing/preparation.py", "verdicts"): "preparing a router for a calibrated pool makes its judge",
    ("instructions/embedders.py", "inference"): "a tokenizer is bounded as a base's is",
    ("instructions/local_describer.py", "inference"): "its model is loaded as a base is",
    ("evaluation/cells.py", "engines"): "--engine vllm",
}


def imports() -> Iterator[tuple[str, str, str, bool]]:
    """Path, room, the room that it imports, and whether the module does so itself, not a function of it."""
    for path in sorted(HOME.rglob("*.py")):
        place = path.relative_to(HOME)
        tree = ast.parse(path.read_text("utf8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                modules = [f"{node.module}.{one.name}" for one in node.names]
            elif isinstance(node, ast.Import):
                modules = [one.name for one in node.names]
            else:
                continue
            room = place.parts[0].removesuffix(".py")
            for module in modules:
                owner, _, other = module.partition(".")
                other = other.partition(".")[0]
                if owner == "glider" and other in ORDER and other != room != "__init__":
                    yield place.as_posix(), room, other, node in tree.body


def test_no_room_imports_one_above() -> None:
    upward = {
        (path, above) for path, room, above, whole in imports() if whole and not ORDER.index(above) < ORDER.index(room)
    }
    assert not upward


def test_what_functions_take_from_above_is_listed() -> None:
    upward = {(path, above) for path, room, above, _ in imports() if ORDER.index(above) > ORDER.index(room)}
    assert upward == WITHIN_FUNCTIONS.keys()
