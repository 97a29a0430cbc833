"""Every command and program of the guides, and of pages that show a few, runs: in its order, on a tiny base."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import glider
from glider.cli.main import main
from glider.evaluation.run_plan import RunPlan
from glider.inference.base_model import load_base
from glider.report.report_plan import ReportPlan

DOCS = Path(__file__).parents[2] / "docs"
BUDGET = ["--steps", "2", "--gate-steps", "1", "--rank", "2", "--max-tokens", "80"]
DEFAULTS = "defaults: {rank: 2, steps: 2, gate_steps: 1, max_tokens: 80}\n"
WORDS = {"tone": "thank you friend", "trivia": "which river mountain"}
LOADS = (["generate"], ["explain"], ["compare"], ["pool", "check"])  # commands that look for the pool's base

Run = Callable[[str], None]


@pytest.fixture
def run(llama_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(text)` runs the commands of a text's `sh` blocks, in the working directory."""

    def commands(text: str) -> None:
        lines = "".join(re.findall(r"^ *```sh\n(.*?)```", text, re.S | re.M)).splitlines()
        lines = [line for line in (re.sub(r"(^|\s)#.*", "", one).strip() for one in lines) if line]
        assert lines
        for line in lines:
            words = shlex.split(line.replace("smollm2-135m", str(llama_directory)))
            assert words[0] == "glider", line
            if words[1:3] == ["expert", "train"]:
                words += BUDGET
            if any(words[1 : 1 + len(noun)] == noun for noun in LOADS) or {"calibrate", "--data"} <= set(words):
                words += ["--base", str(llama_directory)]
            if Path("pool.yaml").exists() and words[1] == "init":
                words.append("--force")
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code in (0, None), f"{line}: {capsys.readouterr().err}"
            if words[1] == "init":
                plan = Path(words[words.index("--out") + 1] if "--out" in words else "pool.yaml")
                text = re.sub(r"^defaults: .*\n", "", plan.read_text(), flags=re.M)  # minutes, which are too many
                plan.write_text(text.replace("experts:\n", DEFAULTS + "experts:\n", 1))

    return commands


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path, random_expert) -> Path:
    """A directory with what the guides say that the reader has."""
    place = tmp_path_factory.mktemp("guides")
    (place / "rows").mkdir()
    for name, words in WORDS.items():
        rows = [{"input": f"{words} {name}{i} {words.split()[i % 3]}", "output": f"a{i % 2}"} for i in range(180)]
        (place / "rows" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    requests = [{"input": f"please write letter {i}"} for i in range(180)]  # with no answer, as production.md has them
    (place / "everyday.jsonl").write_text("\n".join(map(json.dumps, requests)))
    for seed, name in enumerate(("tone", "trivia")):
        adapter = random_expert(place / "adapters" / name, load_base(str(llama_directory)), rank=2, seed=seed)
        for file in ("card.json", "glider.safetensors"):
            (adapter.directory / file).unlink()
    return place


@pytest.fixture
def here(pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which a test works."""
    place = shutil.copytree(pages, tmp_path / "guides")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def pool(pages: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`my-pool`, which the first guide makes; made once."""
    if not (pages / "my-pool").exists():
        monkeypatch.chdir(pages)
        first = "".join(re.findall(r"^```sh\n.*?```", page("guides/adapters.md"), re.S | re.M)[:1])
        run(first)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf8")


def program(text: str, base: Path) -> str:
    """The programs of a page as one."""
    code = "\n".join(re.findall(r"^```python\n(.*?)```", text, re.S | re.M))
    return code.replace('"smollm2-135m"', repr(str(base)))


def test_i_have_adapters(pool: None, here: Path, run: Run) -> None:
    run(page("guides/adapters.md"))
    assert json.loads((here / "my-pool" / "gains.json").read_text())["adapters"]


def test_i_have_data(here: Path, run: Run) -> None:
    run(page("guides/data.md"))
    assert glider.Pool.open(here / "second-pool").names == ["tone", "trivia"]


def test_i_have_a_base_in_production(pool: None, here: Path, run: Run) -> None:
    run(page("guides/production.md"))
    assert (here / "my-pool" / "background.safetensors").exists()


def test_in_your_code(pool: None, here: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    exec(program(page("guides/code.md"), llama_directory), names)
    assert len(names["answers"]) == 3 and names["bare"] is names["loaded"].model
    assert "friendly" in capsys.readouterr().out


def test_i_use_transformers(pool: None, here: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    exec(program(page("guides/transformers.md"), llama_directory).replace('"BASE"', repr(str(llama_directory))), names)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert names["bare"] is names["base"] and set(names["answer"].global_scores) == {"tone", "trivia"}
    assert capsys.readouterr().out.count("thank you so much") == 2


@pytest.mark.slow
def test_i_use_lm_eval(pool: None, here: Path, run: Run) -> None:
    run(page("guides/lm_eval.md"))
    for place, router in (("routed", "glider"), ("bare", "base")):
        (file,) = Path(place).rglob("results_*.json")
        told = json.loads(file.read_text())
        assert set(told["results"]) == {"tone", "trivia"} and told["config"]["glider"]["router"]["router"] == router


def test_verdicts(pool: None, here: Path, llama_directory: Path) -> None:
    code = program(page("verdicts.md"), llama_directory)
    assert code.count('glider.load(pool="demo"') == 2
    code = code.replace('glider.load(pool="demo"', f'glider.load({str(llama_directory)!r}, "my-pool"')
    names: dict = {"glider": glider}
    exec(code, names)
    assert names["answer"].verdict in ("stranger", "unsure", "fits")


def test_global_signals(pool: None, here: Path, run: Run, llama_directory: Path) -> None:
    text = page("global_signals.md")
    run(text.replace("POOL", "my-pool").replace("tasks/{name}", "rows/{name}"))
    names: dict = {"glider": glider, "pool": "my-pool"}
    exec(program(text, llama_directory), names)
    assert names["model"].experts == ["tone", "trivia"]


def test_which_models(pool: None, here: Path, llama_directory: Path) -> None:
    model = glider.load(str(llama_directory), "my-pool")
    inputs = model.tokenizer(["thank you", "go away now"], return_tensors="pt", padding=True)
    exec(program(page("models.md"), llama_directory), {"model": model, "Query": glider.Query, "inputs": inputs})


def test_measurements(pool: None, here: Path, llama_directory: Path) -> None:
    names: dict = {"model": glider.load(str(llama_directory), "my-pool"), "prompts": ["thank you", "go away"]}
    exec(program(page("measurements.md"), llama_directory), names)
    assert len(names["answers"]) == 2


def test_the_files_of_the_page_are_a_run_and_a_report() -> None:
    *runs, report = re.findall(r"^```yaml\n(.*?)```", page("evaluation.md"), re.S | re.M)
    assert [len(RunPlan.model_validate(yaml.safe_load(run)).routers) for run in runs] == [2, 7]
    assert set(ReportPlan.model_validate(yaml.safe_load(report)).tables) == {"table1", "table2", "table3"}


def test_the_readmes_plan_is_made(here: Path, run: Run) -> None:
    (block,) = [one for one in re.findall(r"```sh\n.*?```", page("../README.md"), re.S) if "glider init" in one]
    assert "glider pool build pool.yaml --out my-pool" in block  # the pages of the guides build such plans
    run(block.replace("glider serve", "# glider serve").replace("glider pool build", "# glider pool build"))
    assert Path("pool.yaml").exists()


def test_the_commands_to_start_with_are_the_readmes() -> None:
    readme = (DOCS.parent / "README.md").read_text("utf8")
    for line in "".join(re.findall(r"```sh\n(.*?)```", page("index.md"), re.S)).splitlines():
        assert line in readme, line


def test_the_first_screen_is_one() -> None:
    assert len((DOCS.parent / "README.md").read_text("utf8").splitlines()) < 100
