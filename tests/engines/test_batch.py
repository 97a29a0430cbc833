"""A file of prompts answered by vLLM, here and by `ray.data.llm`'s processor: the answers that transformers gives."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glider.batch.answering import AnswerSettings
from glider.batch.ray_vllm import on_ray_by_vllm
from glider.errors import ConfigError
from glider.inference.spec import ModelSpec
from glider.jobs.ray_executor import RayExecutor

from .conftest import HAS_VLLM

HAS_RAY = importlib.util.find_spec("ray") is not None
ASKED = ["say 1", "say 2 " * 9, "x" * 700, "say 3", "say four"]  # the third is longer than the context
FIELDS = ("row", "text", "finish_reason", "verdict", "expert", "fault")


def answered(words: list[Any], out: Path) -> tuple[list[dict[str, Any]], str]:
    """The answers of `glider generate`, in a process of its own beside `out`, and what it printed."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "glider", "generate", *map(str, words), "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=out.parent)
    assert ran.returncode == 1 and "1 rows without an answer" in ran.stdout, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    return [json.loads(line) for line in out.read_text("utf8").splitlines()], ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: run `make vllm-test`")
@pytest.mark.parametrize(
    "place",
    [[], pytest.param(["--executor", "ray", "--address", "local", "--files", "path"], id="ray")],
)
def test_answers_to_a_file_are_those_of_transformers(
    place: list[str], make_wide_pool: Callable[..., Any], wide_llama: Path, tmp_path: Path
) -> None:
    if place and not HAS_RAY:
        pytest.skip("needs the extra ray beside vLLM")
    rows = [json.dumps({"input": text, "id": f"q{number}"}) for number, text in enumerate(ASKED)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf8")
    pool, base = (os.path.relpath(path, tmp_path) for path in (make_wide_pool().path, wide_llama))
    words: list[Any] = ["--data", "rows.jsonl", "--pool", pool, "--base", base]  # as who works in that directory does
    words += ["--max-new-tokens", 6, "--batch-size", 2]
    expected, _ = answered(words, tmp_path / "transformers.jsonl")
    got, _ = answered([*words, "--engine", "vllm", *place], tmp_path / "vllm.jsonl")
    assert [one["row"] for one in got] == list(range(len(ASKED)))
    assert got[2]["text"] is None and got[2]["fault"]
    for one, other in zip(got, expected, strict=True):
        assert [one[name] for name in FIELDS] == [other[name] for name in FIELDS]
        assert one["alpha"] == pytest.approx(other["alpha"])
    record = json.loads((tmp_path / "vllm.jsonl.run.json").read_text("utf8"))
    assert record["settings"]["engine"] == "vllm"


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: run `make vllm-test`")
def test_a_pool_that_would_have_to_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--files path"):
        on_ray_by_vllm(RayExecutor(), ModelSpec(pool=str(tmp_path)), AnswerSettings(engine="vllm"))


def test_answers_of_transformers_keep_their_key() -> None:
    """What was answered before there was a choice of engines is known as answered."""
    assert "engine" not in AnswerSettings().content and AnswerSettings(engine="vllm").content["engine"] == "vllm"
