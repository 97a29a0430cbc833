"""The miniature: its files fit together, its experts are whole, and a cell of its results comes out again."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from glider.contribute.build import PoolPlan, build_pool
from glider.demo.pool import DEMO_POOL
from glider.evaluation.run_plan import RunPlan
from glider.experts.expert import Expert
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Calibration, Pool
from glider.experts.sites import GATE
from glider.jobs.local import LocalExecutor
from glider.report.report_plan import ReportPlan

MINI = Path(__file__).parents[2] / "reproduce" / "mini"
RUNS = [RunPlan.read(path) for path in sorted(MINI.glob("*.yaml")) if path.name != "pool.yaml"]
CELLS = sorted((MINI / "results").glob("*/*/*.json"))


def labels(run: RunPlan) -> set[str]:
    return {plan if isinstance(plan, str) else plan.label for plan in run.routers}


@pytest.mark.parametrize("content", ["7", "[]", '{"title": "no cell"}', '{"results": 3}', "{", '{"fault": {}}'])
def test_what_is_kept_of_results_is_of_whole_cells(tmp_path: Path, content: str) -> None:
    """A damaged cell was a traceback."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_bytes(CELLS[0].read_bytes())
    (tmp_path / "results" / "b.json").write_text(content)
    command = [sys.executable, str(MINI / "keep.py"), str(tmp_path / "results"), str(tmp_path / "kept")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / "kept" / "a.json").read_bytes() == CELLS[0].read_bytes()
    if content in ("7", "[]", '{"title": "no cell"}'):
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1 cells\n", "")
    else:
        assert ran.returncode == 2 and ran.stderr.startswith("error: wanted a result in ") and "b.json" in ran.stderr


def test_every_cell_is_one_of_the_runs_and_has_a_score() -> None:
    assert CELLS
    known = {(label, name) for run in RUNS for label in labels(run) for name in run.sets}
    guesses: dict[tuple[str, str], set[float | None]] = {}
    for path in CELLS:
        told = json.loads(path.read_text("utf8"))
        assert (told["router"], told["set"]) in known, path
        guesses.setdefault((told["hashes"]["data"], told["config"]["task"]["split"]), set()).add(told["guess"])
        assert told["score"] == pytest.approx(sum(row["score"] for row in told["results"]) / told["rows"])
        assert not {"gold", "prediction", "choices"} & {name for row in told["results"] for name in row}

    assert all(len(several) == 1 for several in guesses.values())  # of the whole split, whatever the rows


def test_three_draws_of_more_rows_differ_in_their_seed_alone() -> None:
    """What would decide between the routers that are compared most."""
    draws = [yaml.safe_load((MINI / f"forty-{seed}.yaml").read_text("utf8")) for seed in range(3)]
    for seed, draw in enumerate(draws):
        for router in draw["routers"]:
            name, _, number = router["name"].rpartition("-")
            assert int(number) == seed
            router["name"] = name
        assert draw.pop("seed") == seed
    assert draws[0] == draws[1] == draws[2]
    assert {name: one["rows"] for name, one in draws[0]["sets"].items()} == {
        **{"near": 40, "held-in": 40},
        **{"held-out": 20, "bbl": 20},
    }
    routers = [router["router"] for router in draws[0]["routers"]]
    assert sorted(routers) == ["arrow", "base", "glider", "glider", "loraretriever", "phatgoose", "spectr"]


def test_what_the_experts_learnt_is_of_all_draws() -> None:
    command = [sys.executable, MINI / "gains.py", MINI / "results", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows: dict[str, dict[int, float]] = {"base": {}, "own-expert": {}}
    for name, by_place in rows.items():
        for draw in ("", "-seed1", "-seed2"):
            cell = json.loads((MINI / "results" / f"{name}{draw}" / "held-in" / "trec.json").read_text("utf8"))
            by_place |= {row["place"]: row["score"] for row in cell["results"]}
    means = {name: 100 * sum(by_place.values()) / len(by_place) for name, by_place in rows.items()}
    assert told["trec"]["rows"] == len(rows["base"]) > 20
    assert told["trec"]["gain"] == pytest.approx(means["own-expert"] - means["base"])
    assert told["gigaword"]["p"] is None and told["trec"]["p"] < 0.001 < told["commonsense_qa"]["p"]


def test_the_report_names_routers_of_the_runs() -> None:
    report: dict[str, Any] = yaml.safe_load((MINI / "results" / "report.yaml").read_text("utf8"))
    known = set().union(*map(labels, RUNS))
    for table in ReportPlan.parse(**report).tables.values():
        assert {cell for method in table.methods for cell in method.cells} <= known


def test_what_guided_the_queries_is_counted() -> None:
    command = [sys.executable, MINI / "guidance.py", MINI / "results", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cells = [json.loads(path.read_text("utf8")) for path in CELLS]
    draws = {"glider-calibrated", "glider-calibrated-seed1", "glider-calibrated-seed2"}
    by_place = {
        (cell["task"], row["place"]): row
        for cell in cells
        if cell["router"] in draws and cell["set"] == "held-in"
        for row in cell["results"]
    }
    rows = [(row, task) for (task, _), row in by_place.items()]
    own = told["glider-calibrated"]
    assert own["found"] == sum(row["expert"] == task for row, task in rows) / len(rows) and own["rows"] == len(rows)
    assert own["sure"]["held-in"] == sum(row["alpha"] == 103 for row, _ in rows) / len(rows)
    assert "quartz" in own["lost"] and told["retrieval"]["sure"] == {}


def test_likeness_of_answers_and_of_meaning_is_counted_of_kept_rows() -> None:
    command = [sys.executable, MINI / "likeness.py", MINI / "results", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["glider-text"]
    # of the pool's 20 experts three ask for a sentiment by a label, as imdb and app_reviews do; two judge paraphrases
    like = {"imdb": ("rotten_tomatoes", "amazon_polarity", "yelp_review_full"), "mrpc": ("paws", "qqp")}
    like |= {"app_reviews": like["imdb"]}
    for task, experts in like.items():
        cell = json.loads((MINI / "results" / "glider-text" / "near" / f"{task}.json").read_text("utf8"))
        assert sum(row["expert"] in experts for row in cell["results"]) > len(cell["results"]) / 2
    assert (told["both"]["tasks"], told["both"]["rows"]) == (18, 210)
    assert told["both"]["share"] > 4 * told["both"]["blind"]
    for part in told.values():
        assert 0 < part["blind"] < 1 and 0 <= part["share"] <= 1


def test_a_querys_examples_are_tried_in_the_numbers_that_a_reviewer_asked_for() -> None:
    run = RunPlan.read(MINI / "samples.yaml")
    plans = [plan for plan in run.routers if not isinstance(plan, str)]
    assert [plan.examples for plan in plans] == [1, 3, 5, 10]
    others = [plan.model_dump(exclude={"examples", "name"}) for plan in plans]
    assert all(other == others[0] for other in others)


FULL_DISK = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); "
FULL_DISK += "sys.argv, sys.stdout = sys.argv[1:], sys.stderr; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("wanted", ["mixture.jsonl", "pool"])
def test_a_full_disk_leaves_what_was_laid_out(tmp_path: Path, wanted: str) -> None:
    """The old pool was removed before the new one was whole, and both ended in a traceback."""
    tasks, work = tmp_path / "tasks" / "t0_heldin", tmp_path / "work"
    tasks.mkdir(parents=True)
    for homes in (MINI / "experts", DEMO_POOL):
        for expert in filter(Path.is_dir, homes.iterdir()):
            with gzip.open(tasks / f"{expert.name}.jsonl.gz", "wt", encoding="utf8") as file:
                file.write('{"split": "train", "input": "a", "output": "b"}\n')
    (work / "pool").mkdir(parents=True)
    (work / "pool" / "old").touch()
    (work / "mixture.jsonl").write_text("old\n", "utf8")
    more = ["--mixture"] if wanted == "mixture.jsonl" else []
    command = [sys.executable, "-c", FULL_DISK, MINI / "prepare.py", work, "--tasks", tasks.parent, *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert f"error: wanted to use {work / wanted}" in ran.stderr and "Free space" in ran.stderr
    assert (work / "mixture.jsonl").read_text("utf8") == "old\n"
    assert [file.name for file in (work / "pool").iterdir()] == ["old"]
    assert sorted(file.name for file in work.iterdir()) == ["mixture.jsonl", "pool"]


@pytest.mark.slow
def test_other_gates_leave_the_rest_of_an_expert(tmp_path: Path, llama_directory: Path) -> None:
    tasks, pool, made = tmp_path / "tasks" / "t0_heldin", tmp_path / "pool", tmp_path / "pool-gates1"
    tasks.mkdir(parents=True)
    settings = {"rank": 2, "steps": 2, "gate_steps": 2, "batch_size": 4, "validation": 4}
    experts = [{"name": name, "data": f"tasks/t0_heldin/{name}.jsonl.gz"} for name in ("one", "two")]
    for name in ("one", "two"):
        rows = [{"input": f"say {i}", "output": name} for i in range(16)]
        with gzip.open(tasks / f"{name}.jsonl.gz", "wt", encoding="utf8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    plan = PoolPlan(base=str(llama_directory), defaults=settings, experts=experts)
    assert [result.status for result in build_pool(plan, tmp_path, pool, LocalExecutor())] == ["done", "done"]
    before = Pool.open(pool)
    before.calibrate("examples", Calibration(p=0.4, source="a test"))
    command = [sys.executable, MINI / "gates.py", tmp_path, "--seed", "1", "--base", llama_directory]
    subprocess.run([*command, "--expert", "two"], check=True, capture_output=True)
    assert not (made / "pool.json").exists() and not (made / "one").exists()
    written = (made / "two" / "glider.safetensors").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True)
    assert (made / "two" / "glider.safetensors").stat().st_mtime_ns == written
    after = Pool.open(made)
    after.verify()
    assert after.names == ["one", "two"]
    assert after.index.calibrations == Pool.open(pool).index.calibrations and after.index.signal == "examples"
    for name in after.names:
        assert (made / name / ADAPTER_WEIGHTS_FILE).read_bytes() == (pool / name / ADAPTER_WEIGHTS_FILE).read_bytes()
        gates = {site + GATE for site in after[name].sites}
        changed = {key for key, vector in after[name].vectors.items() if not vector.equal(before[name].vectors[key])}
        assert changed == gates


@pytest.mark.parametrize("home", sorted((MINI / "experts").iterdir()), ids=lambda home: home.name)
def test_an_expert_is_whole_and_small(home: Path) -> None:
    expert = Expert.open(home)
    expert.verify()
    assert expert.profile is not None and all(site.has_gate for site in expert.sites.values())
    assert sum(file.stat().st_size for file in home.iterdir()) < 3e6


@pytest.mark.slow
def test_a_cell_comes_out_again(shared: Path, tmp_path: Path) -> None:
    """By the first and the third command of docs/results.md; the second, all of them, takes hours."""
    data = shared / "data"
    page = (MINI.parents[1] / "docs" / "results.md").read_text("utf8").split("```sh\n")[1]
    places = {"WORK": tmp_path, "TASKS": data / "tasks", "ELSEWHERE": tmp_path / "out"}
    places |= {"instructions.json": data / "instructions.json", "reproduce/mini/prepare.py": MINI / "prepare.py"}
    prepare, _, cell = (line.split("  #")[0] for line in page.splitlines()[:3])
    assert prepare.startswith("python ") and cell.startswith("glider evaluate ")
    for line in (prepare, cell.replace("glider", "python -m glider", 1)):
        for name, place in places.items():
            line = line.replace(name, str(place))
        subprocess.run([sys.executable, *line.split()[1:]], check=True, capture_output=True)
    place = Path("glider-text", "held-in", "trec.json")
    ours, kept = (json.loads((root / place).read_text("utf8")) for root in (tmp_path / "out", MINI / "results"))
    assert [row["id"] for row in ours["results"]] == [row["id"] for row in kept["results"]]
    assert [row["expert"] for row in ours["results"]] == [row["expert"] for row in kept["results"]]
    # another processor may round products otherwise, and turn a close choice
    assert ours["score"] == pytest.approx(kept["score"], abs=0.1)
