"""The programs of `examples` do what they say, on a tiny base."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glider.calibration.automatic import calibrated

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_app_answers(pool_with_profiles, llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from fastapi.testclient import TestClient

    pool = calibrated(pool_with_profiles(experts=2))
    monkeypatch.setenv("BASE", str(llama_directory))
    monkeypatch.setenv("POOL", str(pool.path))
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLES / "fastapi_app.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_app", module)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        told = client.post("/answer", json={"prompt": "the e0 of it", "max_new_tokens": 4}).json()
        assert set(told["scores"]) == {"e0", "e1"} and told["text"]
        bare = client.post("/answer", json={"prompt": "the e0 of it", "max_new_tokens": 4, "verdict": "base"}).json()
        assert not bare["experts"]
        refused = client.post("/answer", json={"prompt": "x" * 2000, "max_new_tokens": 4})
        assert refused.status_code == 400 and "wanted" in refused.json()["detail"]
        assert set(client.get("/experts").json()) == {"e0", "e1"}


@pytest.mark.slow
def test_a_pool_is_handed_to_vllm(tmp_path: Path) -> None:
    """The real arguments, to a `vllm` that tells its own: tests/engines has the real one serve such a line."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in {"vllm": 'printf "%s\\n" "$@"', "glider": f'exec "{sys.executable}" -m glider "$@"'}.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([EXAMPLES / "vllm_serve.sh", *words], env=environment, capture_output=True, text=True)

    ran = run("some/base", "demo", "--port", "8123")
    words = ran.stdout.split("\n")
    assert words[:4] == ["serve", "some/base", "--load-format", "glider"], ran.stderr
    assert words[-3:-1] == ["--port", "8123"] and "--enable-lora" in words
    refused = run("some/base", str(tmp_path))
    assert refused.returncode == 2 and "wanted a pool directory" in refused.stderr and not refused.stdout
    assert run("some/base").returncode != 0


@pytest.mark.slow
def test_adapters_are_evaluated(random_expert, llama_directory: Path, tmp_path: Path) -> None:
    from glider.inference.base_model import load_base

    (tmp_path / "rows").mkdir()
    for seed, (name, words) in enumerate({"tone": "thank you friend", "trivia": "which river mountain"}.items()):
        adapter = random_expert(tmp_path / "adapters" / name, load_base(str(llama_directory)), rank=2, seed=seed)
        for file in ("card.json", "glider.safetensors"):
            (adapter.directory / file).unlink()
        rows = [{"input": f"{words} {name}{i}", "output": f"a{i % 2}"} for i in range(230)]
        (tmp_path / "rows" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, EXAMPLES / "evaluate_my_adapters.py", tmp_path / "adapters", tmp_path / "rows"]
    command += [
        "--base",
        llama_directory,
        "--out",
        tmp_path / "pool",
        "--gate-steps",
        "1",
        "--routers",
        "base,arrow,glider",
    ]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 adapters, 92 rows that nothing was made of" in ran.stdout
    assert "glider" in ran.stdout and "beside the base" in ran.stdout
