"""A script of benchmarks or of reproductions tells a user's mistake in a line, as the commands do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(file for place in ("benchmarks", "reproduce") for file in (ROOT / place).rglob("*.py"))


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_script_ends_with_an_exit_code(file: Path) -> None:
    for node in ast.parse(file.read_text("utf8")).body:
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            calls = {ast.unparse(call) for call in ast.walk(node) if isinstance(call, ast.Call)}
            wrapped = "exit_code" in file.read_text("utf8") and not calls.isdisjoint({"main()", "exit_code(main)"})
            assert wrapped or "main" not in ast.unparse(node).replace("__main__", "")


def test_a_pool_that_is_not_there_is_a_line(shared: Path) -> None:
    """It was a traceback."""
    command = [sys.executable, "benchmarks/harm.py", "/not/there"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: wanted a pool directory") and ended.stderr.count("\n") == 1
