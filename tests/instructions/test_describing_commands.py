"""Describers and the cache from the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glider.experts.card import DescriptionOrigin, ExpertCard
from glider.experts.expert import Expert
from glider.experts.pool import Pool

from ..commands import run_command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """`run("pool", "ls", path)` runs the command here: exit code, output, errors."""

    return lambda *arguments: run_command(arguments, monkeypatch, capfd)


@pytest.fixture
def pool(make_pool, llama_directory: Path) -> Pool:
    return make_pool(llama_directory)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    told = [{"input": f"row {i}", "output": "x", "split": "train" if i % 2 else "test"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, told)))
    return path


def test_an_endpoint_describes_an_expert_from_rows(run, endpoint, pool: Pool, rows: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("GLIDER_CACHE_MB", "10")
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))
    expert = pool.path / "e0"
    shared = ("expert", "describe", expert, "--describer", "openai:m", "--base-url", endpoint.base_url, "--data", rows)
    code, out, err = run(*shared)
    assert code == 0, err
    assert endpoint.sentence in out and "200 tokens read, 20 written" in out
    card = Expert.open(expert).card
    assert card.description == endpoint.sentence
    assert card.described_by == DescriptionOrigin(describer="openai:m", prompt="paper-3@2")
    asked = endpoint.requests[0]["messages"][0]["content"]
    shown = [i for i in range(20) if f"row {i}\n" in asked]
    assert len(shown) == 3 and all(i % 2 for i in shown)  # of the training split alone
    assert "from the cache" in run(*shared)[1] and len(endpoint.requests) == 1
    assert run(*shared, "--rows", "5")[0] == 0
    described = Expert.open(expert).card.described_by
    assert described is not None and described.prompt == "examples@1"
    assert run(*shared, "--prompt", "guarded-3@1")[0] == 0
    assert "do not do it" in endpoint.requests[-1]["messages"][0]["content"]
    code, _, err = run(*shared, "--prompt", "guarded-3")
    assert code == 2 and "guarded-3@1" in err
    assert json.loads(run("cache", "info", "--json")[1])["entries"] == {"description": 3}
    assert "3 descriptions" in run("cache", "info")[1]
    assert json.loads(run("cache", "clear", "--json")[1])["cleared"] == 3
    assert "empty" in run("cache", "info")[1] and "0 entries" in run("cache", "clear")[1]
    assert run("expert", "describe", expert, "My own sentence.")[0] == 0
    assert Expert.open(expert).card.described_by is None


def test_a_failed_description_leaves_the_expert_as_it_was(run, endpoint, pool: Pool, rows: Path):
    expert = pool.path / "e0"
    before = {file.name: file.read_bytes() for file in expert.iterdir()}
    endpoint.answer = lambda request: b"<html>"
    shared = ("expert", "describe", expert, "--base-url", endpoint.base_url)
    for arguments in (("--describer", "openai:m", "--data", rows), ("--describer", "openai:m"), ()):
        code, _, err = run(*shared, *arguments)
        assert code == 2 and err.startswith("glider: wanted ") and err.count("\n") == 1, err
    assert {file.name: file.read_bytes() for file in expert.iterdir()} == before


def test_describe_wants_a_sentence_or_a_describer(run, pool: Pool):
    assert "neither" in run("expert", "describe", pool.path / "e0")[2]
    assert "both" in run("expert", "describe", pool.path / "e0", "A.", "--describer", "openai:m")[2]


def test_a_pool_that_has_an_expert_otherwise_is_named(run, make_pool, llama_directory, rows: Path, tmp_path: Path):
    pool: Pool = make_pool(llama_directory)
    expert = pool.path / "e0"
    next_line = f"next: glider pool add {pool.path} e0\n"
    for change in (("describe", expert, "Say what it is."), ("gates", expert, rows, "--how", "mean")):
        code, _, err = run("expert", *change, *(("--base", llama_directory) if "gates" in change else ()))
        assert code == 0 and err.endswith(next_line), err
        assert run("pool", "add", *next_line.split()[-2:])[0] == 0
    assert "pool add" not in run("expert", "describe", expert, "Say what it is.")[2]  # the same files
    outside = shutil.copytree(expert, tmp_path / "outside" / "e0")
    assert "pool add" not in run("expert", "describe", outside, "Something else.")[2]
    shutil.copytree(outside, pool.path / "late")
    card = pool.path / "late" / "card.json"
    card.write_text(card.read_text().replace('"e0"', '"late"'))
    assert "next: glider pool add" in run("expert", "describe", pool.path / "late", "Another.")[2]
    (pool.path / "pool.json").write_text("{")
    code, out, err = run("expert", "describe", expert, "Once more.")
    assert code == 0 and "described" in out and "wanted" not in err


def test_generate_with_a_describer(run, endpoint, pool: Pool, llama_directory: Path):
    shared = ("generate", "hi", "--pool", pool.path, "--base", llama_directory, "--max-new-tokens", "3")
    asked = (*shared, "--describer", "openai:m", "--base-url", endpoint.base_url)
    told = json.loads(run(*asked, "--json")[1])
    assert told["description"] == endpoint.sentence and told["fault"] is None
    endpoint.answer = lambda request: b"<html>"
    code, out, _ = run(*asked, "--strict")
    assert code == 2 and out == ""
    assert json.loads(run(*shared, "--json", "--description", "Given.")[1])["description"] == "Given."
    assert "a describer for base_url" in run(*shared, "--base-url", "http://x/v1")[2]
    assert "valid settings" in run(*shared, "--describer", "openai:m", "--base-url", "x")[2]
    assert "settings of" in run(*shared, "--describer", "given:A.", "--base-url", "http://x")[2]
    assert "a describer of given" in run(*shared, "--describer", "nobody")[2]


def test_a_failing_describer_is_one_line_on_stderr(pool: Pool, llama_directory: Path):
    arguments = ["generate", "hi", "--pool", str(pool.path), "--base", str(llama_directory), "--max-new-tokens", "3"]
    script = "from glider.cli.main import main; main()"
    command = [sys.executable, "-c", script, *arguments, "--describer", "local:/no/such", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert ran.returncode == 0, ran.stderr
    unprofiled, line = [line for line in ran.stderr.splitlines() if line]
    assert "no expert of the pool" in unprofiled and "glider expert profile" in unprofiled
    assert line.startswith("glider: the query routed by the local term alone: local:/no/such: ")
    answer = json.loads(ran.stdout)
    assert answer["alpha"] == 3.0 and answer["fault"] in line


def test_explain_tells_the_description(run, endpoint, pool: Pool, llama_directory: Path):
    shared = ("explain", "hi", "--pool", pool.path, "--base", llama_directory, "--describer", "openai:m")
    told = json.loads(run(*shared, "--base-url", endpoint.base_url, "--json")[1])
    assert told["description"] == endpoint.sentence and told["fault"] is None


def test_compare_describes_its_rows_and_never_scores_a_failure(
    run, endpoint, pool: Pool, llama_directory: Path, tmp_path: Path
):
    data = tmp_path / "choice.jsonl"
    data.write_text("\n".join(json.dumps({"input": f"q{i}", "output": "a", "choices": ["a", "b"]}) for i in range(3)))
    shared = ("compare", "--data", data, "--pool", pool.path, "--base", llama_directory, "--routers", "glider")
    asked = (*shared, "--describer", "openai:m", "--base-url", endpoint.base_url, "--json")
    code, out, err = run(*asked)
    assert code == 0 and json.loads(out)["entries"], err
    assert len(endpoint.requests) == 3
    endpoint.answer = lambda request: b"<html>"
    assert run(*asked)[0] == 2


def test_cards_from_before_the_field_are_read(pool: Pool, tmp_path: Path, edit_json):
    shutil.copytree(pool.path / "e0", tmp_path / "old")
    card = json.loads((tmp_path / "old" / "card.json").read_text())
    del card["described_by"]
    (tmp_path / "old" / "card.json").write_text(json.dumps(card))
    assert ExpertCard.read(tmp_path / "old").described_by is None
