"""The package of `examples/plugin`, installed: everything that it registers is found by its entry points, and works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that has the package."""
    place = tmp_path_factory.mktemp("installed")
    how = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place)]
    source = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", *how, str(source)], check=True)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def glider(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-m", "glider", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_everything_is_found_and_works(installed, pool_with_profiles, llama_directory: Path) -> None:
    pool = pool_with_profiles(experts=2)
    names = {row["name"] for row in json.loads(glider(installed, "routers", "--json"))}
    assert {"nearest", "glider+distance"} <= names
    signals = json.loads(glider(installed, "routers", "--signals", "--json"))
    assert "known-words" in {row["name"] for row in signals}
    model = ("--pool", pool.path, "--base", llama_directory, "--max-new-tokens", "3", "--json")
    (used,) = [json.loads(glider(installed, "generate", "the e0 of it", *model, "--router", "nearest"))["usage"]]
    assert sum(used.values()) == pytest.approx(1, abs=1e-3)
    guided = ("--router", "glider+distance", "--global", "known-words", "--no-abstain")
    scores = json.loads(glider(installed, "generate", "the e0", *model, *guided))["global_scores"]
    assert scores["e0"] > scores["e1"]
    glider(installed, "expert", "describe", pool.path / "e0", "Say what it is.", "--embedder", "hashed-words")
    card = json.loads((pool.path / "e0" / "card.json").read_text())
    assert (card["embedder"]["embedder"], card["embedder"]["dimension"]) == ("hashed-words", 256)
    told = glider(
        installed, "expert", "describe", pool.path / "e1", "--describer", "common-words", "--data", rows(pool.path)
    )
    assert "common-words" in told


def rows(place: Path) -> Path:
    file = place / "rows.jsonl"
    file.write_text('{"input": "a long text", "output": "b"}\n' * 4)
    return file


def test_the_page_names_every_group_there_is() -> None:
    from glider.instructions.describers import describers
    from glider.instructions.embedders import embedders
    from glider.routing.base import routers
    from glider.routing.local_scores.base import local_scores
    from glider.routing.signals.base import signals

    page = (EXAMPLE.parents[1] / "docs" / "extending.md").read_text("utf8")
    settings = (EXAMPLE / "pyproject.toml").read_text("utf8")
    for registry in (routers, local_scores, signals, embedders, describers):
        assert f"| `{registry.group}` |" in page and f'"{registry.group}"' in settings
