"""The commands and the program of docs/cluster.md run, in their order: on this machine, and on a Ray cluster of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.experts.pool import Pool

from ..jobs.conftest import add_node, cluster  # noqa: F401
from .snippets import ROOT, blocks, glide, lines, page

PAGE = page("cluster.md")
SCRIPT = ROOT / "examples" / "ray_build.sh"
QUICK = {"rank": 2, "steps": 2, "gate_steps": 1, "batch_size": 4, "validation": 4}
NO_GPU = " --device cuda --gpus-per-job 1"


@pytest.fixture
def here(llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for granted: a plan of two experts, their rows, and prompts."""
    monkeypatch.chdir(tmp_path)
    experts = [{"name": name, "data": f"{name}.jsonl"} for name in ("one", "two")]
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text("".join(f'{{"input": "say {i}", "output": "{name}"}}\n' for i in range(16)))
    Path("plan.yaml").write_text(yaml.safe_dump({"base": str(llama_directory), "defaults": QUICK, "experts": experts}))
    Path("rows.jsonl").write_text("".join(f'{{"input": "say {i}"}}\n' for i in range(3)))
    tasks = {"tasks": ["one.jsonl", "two.jsonl"]}
    run = {"pool": "pool", "base": str(llama_directory), "rows": 2, "routers": ["base", "phatgoose"]}
    Path("run.yaml").write_text(yaml.safe_dump({**run, "split": "train", "sets": {"own": tasks}}))
    return tmp_path


@pytest.mark.slow
def test_builds_on_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    local = [line for line in lines(PAGE) if line.startswith("glider") and "ray" not in line]
    assert len(local) == 2
    for line in local:
        shutil.rmtree("pool", ignore_errors=True)
        glide(line, monkeypatch, capsys)
        assert sorted(Pool.open("pool").names) == ["one", "two"]  # in the order in which they end


def test_the_guide_shows_commands_of_the_page() -> None:
    shown = lines(page("guides/ray.md"))
    assert len(shown) == 5 and set(shown) <= set(lines(PAGE))


@pytest.mark.cluster
def test_the_script_builds_and_checks_a_pool(here: Path, cluster: Any, add_node: Callable[[], Any]) -> None:  # noqa: F811
    add_node()
    (here / "bin").mkdir()
    (here / "bin" / "glider").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m glider "$@"\n')
    (here / "bin" / "glider").chmod(0o755)
    environment = {**os.environ, "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)

    built = run("plan.yaml", "pool", "--address", cluster.address)
    assert built.returncode == 0, built.stderr
    assert "2 experts are as they were when they joined" in built.stdout
    assert sorted(Pool.open("pool").names) == ["one", "two"]
    Path("two.jsonl").write_text("no rows")
    failed = run("plan.yaml", "other", "--address", cluster.address)
    assert failed.returncode == 1 and "joined" not in failed.stdout and Pool.open("other").names == ["one"]
    assert run("plan.yaml").returncode != 0


@pytest.mark.cluster
@pytest.mark.short
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:Tip.*:FutureWarning", "ignore::DeprecationWarning")
def test_the_same_on_ray(
    here: Path,
    llama_directory: Path,
    add_node: Callable[[], Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_node()
    there = [line.replace(NO_GPU, "") for line in lines(PAGE) if line.startswith("glider") and "--executor ray" in line]
    assert len(there) == 4
    for line in there:
        # these experts are not described, which the default router asks for
        more = ["--base", llama_directory, "--router", "phatgoose"] if "generate" in line else []
        glide(line, monkeypatch, capsys, *more)
    assert sorted(Pool.open("pool").names) == ["one", "two"]
    assert len([json.loads(line)["text"] for line in Path("answers.jsonl").read_text().splitlines()]) == 3
    assert len(list(Path("results").rglob("one.json"))) == 2
    first, serving = blocks(PAGE, "python")
    exec(first, {})
    assert "one" in capsys.readouterr().out
    compile(serving, "cluster.md", "exec")  # it starts replicas of vLLM, which want a GPU
