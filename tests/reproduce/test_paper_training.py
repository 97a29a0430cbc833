"""Section 5.1: which experts, from which rows, at what cost; and its rehearsal on made-up rows."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fullrun import plan as plan_module
from fullrun.dry_run import plan_json, print_plan
from fullrun.estimate import Assumptions
from fullrun.plan import BigBenchSource, Lengths, P3Source, Plan, PromptedSource, TrecSource, read_plan
from fullrun.readers import HubRow
from fullrun.tiny import made_up, made_up_prompts, tiny_plan
from fullrun.tiny_training import made_up_flan
from fullrun.training import FORM_TOKENS, _Fit
from fullrun.training_estimate import LLAMA_8B, activations_gb, training_memory_gb, training_tokens
from fullrun.training_plan import CategorySource, FlanSource, Training
from fullrun.training_rows import CLONE, COLUMNS, category_rows, flan_rows, task_training_rows
from fullrun.workspace import Workspace, tokenizer_of
from glider.contribute.published_format import T0_TASKS
from glider.errors import ConfigError, DataError
from glider.experts.pool import Pool
from glider.jobs.local import LocalExecutor


@pytest.fixture(scope="module")
def trainings() -> dict[str, Training]:
    return {training.name: training for training in read_plan(["all"]).trainings}


def test_the_experts_are_those_of_section_5_1(trainings: dict[str, Training]) -> None:
    assert {name: len(one.tasks) for name, one in trainings.items()} == {
        **{"t0-t5xl": 36, "t0-8b": 36},
        **{"flan-t5xl": 166, "flan-8b": 166},
    }
    assert set(trainings["t0-t5xl"].tasks) == set(T0_TASKS)
    flan = trainings["flan-t5xl"].tasks
    assert set(T0_TASKS) < set(flan) and trainings["flan-8b"].tasks == flan
    submixes = [task.submix for task in flan.values() if isinstance(task, FlanSource)]
    categories = {task.category for task in flan.values() if isinstance(task, CategorySource)}
    assert (submixes.count("flan2021"), submixes.count("dialog"), len(categories)) == (44, 4, 75)
    assert len({task.task for task in flan.values() if isinstance(task, FlanSource)}) == 48
    beside = set(flan) - set(T0_TASKS)
    assert sum(isinstance(flan[name], P3Source | PromptedSource | TrecSource) for name in beside) == 7
    assert not any(isinstance(task, BigBenchSource) for task in flan.values())


def test_the_settings_are_the_papers_and_those_of_a_large_model(trainings: dict[str, Training]) -> None:
    for name, training in trainings.items():
        settings = training.settings
        assert (settings.rank, settings.steps, settings.gate_steps, settings.learning_rate) == (16, 1000, 100, 5e-3)
        assert settings.precision == "bfloat16" and settings.accumulation > 1
        assert settings.checkpointing == name.endswith("8b") and (training.dtype == "bfloat16") == name.endswith("8b")
        assert training.most == 1000 * 16 + 64


def test_the_estimate_by_hand(trainings: dict[str, Training]) -> None:
    block = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert LLAMA_8B.base_parameters == 32 * block + 2 * 128256 * 4096 + 4096 == 8_030_261_248
    assert LLAMA_8B.lora_parameters == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432) == 41_943_040
    assert LLAMA_8B.gate_parameters == 32 * (6 * 4096 + 14336)
    eight, t5 = trainings["t0-8b"], trainings["t0-t5xl"]
    answer = max(task.assumed.target for task in eight.tasks.values())
    one = 34 * 4 * 512 * 4096 + 5 * 32 * 512**2 * 4
    kept = 32 * 2 * 4 * 512 * 4096 + one + 10 * 4 * answer * 128256
    assert activations_gb(eight) == pytest.approx(kept / 1e9)
    assert training_memory_gb(eight) == pytest.approx((2 * 8_030_261_248 + 20 * 41_943_040 + kept) / 1e9)
    block = 34 * 8 * 512 * 2048 + 5 * 32 * 512**2 * 8
    assert activations_gb(t5) == pytest.approx((48 * block + 10 * 8 * answer * 32128) / 1e9)
    lengths = [task.assumed.input + task.assumed.target for task in t5.tasks.values()]
    assert training_tokens(t5) == 1100 * 16 * sum(min(length, 512) for length in lengths)


def test_the_dry_run_tells_memory_hours_and_disk_with_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    plan = read_plan(["train/t0-8b", "train/flan-8b", "table1/phatgoose"])
    told = plan_json(plan, Assumptions(throughput=1000))
    eight = next(one for one in told["trainings"] if one["config"] == "train/t0-8b")
    assert eight["hours"] == pytest.approx(3 * eight["tokens"] / 3.6e6) and eight["passes"] == 3
    assert eight["download_gb"] == pytest.approx(16.1 + eight["data_gb"], abs=0.1)
    pools, data = told["pools"], told["data_gb"]
    shared = 4 * 2.849757184  # T5-XL is under both pools
    both = [one["pool_gb"] for one in told["trainings"]]
    expected = sum(p["download_gb"] + p["pool_gb"] for p in pools.values()) - shared + sum(data.values())
    expected += eight["download_gb"] - eight["data_gb"] + sum(both) + max(one["data_gb"] for one in told["trainings"])
    assert told["disk_gb"] == pytest.approx(expected, abs=0.3)
    print_plan(plan, Assumptions(throughput=1000))
    said = capsys.readouterr().out
    assert f"Disk, with downloads: {told['disk_gb']} GB" in said and "activations recomputed" in said
    assert eight["command"] in said and f"{eight['memory_gb']} GB of memory" in said


def test_a_wrong_number_of_tasks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("train", "training", "sets"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(plan_module, "HERE", tmp_path)
    monkeypatch.setattr("fullrun.training_plan.HERE", tmp_path)
    (tmp_path / "pools.yaml").write_text("pools: {}")
    config = {"title": "t", "base": "b", "shape": "t5-xl", "dtype": "float32", "tasks": "few", "experts": 2}
    (tmp_path / "train" / "one.yaml").write_text(json.dumps(config))
    (tmp_path / "training" / "few.yaml").write_text("tasks: {a: {source: flan, submix: dialog, task: x}}")
    with pytest.raises(ConfigError, match=r"2 tasks in training/few\.yaml; got 1"):
        read_plan(["train/one"])
    (tmp_path / "training" / "few.yaml").write_text("sets: {bbh: [one]}")
    with pytest.raises(ConfigError, match="tasks of sets"):
        read_plan(["train/one"])
    (tmp_path / "train" / "one.yaml").write_text(json.dumps({**config, "settings": {"stpes": 3}}))
    (tmp_path / "training" / "few.yaml").write_text(
        "tasks: {a: {source: flan, submix: dialog, task: x}, b: {source: natural-instructions, category: y}}"
    )
    with pytest.raises(ConfigError, match="stpes"):
        read_plan(["train/one"])


def p3(**changes: Any) -> P3Source:
    told: dict[str, Any] = {"source": "p3", "parts": ("d",), "templates": ("one", "two"), "metrics": ("accuracy",)}
    told |= {"split": ("validation",), "available": 10, "assumed": Lengths(input=1, target=1)}
    return P3Source(**{**told, **changes})


def p3_row(i: int, config: str | None, answer: str = "yes") -> HubRow:
    text = f"input {i} of {config}"
    return {"inputs_pretokenized": text, "targets_pretokenized": f"\n{answer}", "answer_choices": ["yes", "no"]}


def training_rows(task: P3Source, rows: Callable[[str | None], Sequence[HubRow]], most: int = 100) -> list[dict]:
    asked: list[tuple[str, int | None]] = []

    def fetch(name: str, config: str | None, split: str, most: int | None) -> Sequence[HubRow]:
        asked.append((split, most))
        return list(rows(config))[:most]

    told = task_training_rows(task, most, fetch, dict, lambda text, answer: f"{text} ({answer})")
    assert set(asked) == {("train", most) if task.train else ("validation", None)}
    return told


def test_training_rows_are_the_first_of_the_split_under_templates_in_turn() -> None:
    told = training_rows(p3(), lambda config: [p3_row(i, config) for i in range(30)], most=20)
    expected = {f"input {i} of d_{('one', 'two')[i % 2]} (yes)" for i in range(20)}
    assert len(told) == 20 and {row["input"] for row in told} == expected
    assert [row["input"] for row in told] != sorted(row["input"] for row in told)  # shuffled
    assert told == training_rows(p3(), lambda config: [p3_row(i, config) for i in range(30)], most=20)


def test_no_row_that_is_evaluated_is_trained_on() -> None:
    """app_reviews has a training split alone, the end of which is evaluated."""
    task = p3(train=None, last=10, max_input=None, templates=("one",))
    told = training_rows(task, lambda config: [p3_row(i, config) for i in range(30)])
    assert {row["input"] for row in told} == {f"input {i} of d_one (yes)" for i in range(20)}
    with pytest.raises(DataError, match="none in the split validation"):
        task_training_rows(p3(train=None), 9, lambda *_: [], dict, lambda text, _: text)
    with pytest.raises(DataError, match="training rows of d_one"):
        training_rows(task, lambda config: [p3_row(i, config) for i in range(10)])


def test_many_training_rows_without_their_answer_stop_the_task() -> None:
    few = [p3_row(i, None, "maybe" if i == 3 else "yes") for i in range(40)]
    assert len(training_rows(p3(), lambda _: few)) == 39
    with pytest.raises(DataError, match=r"10 of 40 without"):
        training_rows(p3(), lambda _: [p3_row(i, None, "maybe" if i < 10 else "yes") for i in range(40)])


def flan_row(name: str, i: int, kind: str = "zs_opt", **changes: Any) -> HubRow:
    return {"inputs": f" {name} {i}\n", "targets": "yes ", "task_name": name, "template_type": kind, **changes}


def test_a_submix_is_gone_through_once_for_all_of_its_tasks() -> None:
    tasks = {name: FlanSource(source="flan", submix="dialog", task=f"{name}:1") for name in ("a", "b")}
    went = 0

    def batches() -> Iterable[Sequence[HubRow]]:
        nonlocal went
        for i in range(100):
            went += 1
            yield [
                flan_row("a:1", i),
                flan_row("a:1", i, "fs_opt"),
                flan_row("b:1", i, "zs_noopt"),
                flan_row("c:1", i),
                flan_row("b:1", i, inputs="  "),
            ]

    told = flan_rows(tasks, batches(), 3, lambda text, answer: f"{text} ({answer})")
    assert told["a"] == [{"input": f"a:1 {i} (yes)", "output": "yes"} for i in range(3)]
    assert [row["input"] for row in told["b"]] == [f"b:1 {i} (yes)" for i in range(3)]
    assert went == 3  # nothing is read beyond what is needed
    tasks["d"] = FlanSource(source="flan", submix="dialog", task="d:1")
    with pytest.raises(DataError, match=r"rows of d:1; got none; there are a:1, b:1, c:1"):
        flan_rows(tasks, batches(), 3, lambda text, _: text)
    with pytest.raises(DataError, match=r"texts in inputs.*targets: None"):
        flan_rows(tasks, [[flan_row("a:1", 0, targets=None)]], 3, lambda text, _: text)
    assert set(COLUMNS) == set(flan_row("a", 0))


def write_task(folder: Path, name: str, category: str, count: int, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    instances = [{"id": str(i), "input": f"{name} {i}", "output": ["yes", "no"]} for i in range(count)]
    told = {"Categories": [category], "Definition": [f"Do {name}. "], "Instances": instances, **changes}
    (folder / f"{name}.json").write_text(json.dumps(told), "utf8")


def test_a_category_takes_as_many_rows_of_each_of_its_tasks(tmp_path: Path) -> None:
    tasks = {"maths": CategorySource(source="natural-instructions", category="Mathematics")}
    with pytest.raises(DataError, match=r"git clone --depth 1 .*natural-instructions"):
        category_rows(tasks, tmp_path, 6, lambda text, _: text)
    folder = tmp_path / "tasks"
    for name, category, count in (("task1", "Mathematics", 50), ("task2", "Mathematics", 2), ("task3", "Misc.", 50)):
        write_task(folder, name, category, count)
    told = category_rows(tasks, tmp_path, 6, lambda text, _: text)["maths"]
    texts = [row["input"] for row in told]
    assert len(texts) == 5 and sum(text.startswith("Do task2.\n\ntask2 ") for text in texts) == 2
    assert all(row["output"] == "yes" for row in told) and "task3" not in "".join(texts)
    lost = {"x": CategorySource(source="natural-instructions", category="Poems")}
    with pytest.raises(DataError, match=r"tasks of Poems.*Mathematics, Misc\."):
        category_rows(lost, tmp_path, 6, lambda text, _: text)
    write_task(folder, "task4", "Misc.", 1, Definition="one text")
    with pytest.raises(DataError, match=r"documented fields in .*task4\.json"):
        category_rows(tasks, tmp_path, 6, lambda text, _: text)
    (folder / "task4.json").write_text("<html>", "utf8")
    with pytest.raises(DataError, match=r"task4\.json"):
        category_rows(tasks, tmp_path, 6, lambda text, _: text)


def test_inputs_leave_room_for_their_answers(t5_directory: Path) -> None:
    """`glider expert train` leaves rows beyond its tokens out; the published code cuts inputs and answers each."""
    fit = _Fit(str(t5_directory), 60)
    assert fit("a short text", "yes") == "a short text"
    tokenizer = tokenizer_of(str(t5_directory))
    for answer in ("yes", "a longer answer of some words"):
        cut = fit("many words " * 40, answer)
        sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (cut, answer)]
        assert 60 - 2 * FORM_TOKENS < sum(sizes) <= 60 - FORM_TOKENS


def rehearse(root: Path, plan: Plan, said: list[str]) -> list[dict[str, Any]]:
    tiny = tiny_plan(plan, root / "downloads")
    return Workspace(root, root / "downloads", made_up, made_up_prompts, made_up_flan, say=said.append).run(tiny)


@pytest.mark.parametrize("config", ["train/t0-t5xl", "train/flan-8b"])
def test_experts_are_trained_from_every_source_and_found_again(tmp_path: Path, config: str) -> None:
    said: list[str] = []
    (told,) = rehearse(tmp_path, read_plan([config]), said)
    assert told["missing"] == [] and set(told["losses"]) == set(Pool.open(Path(told["experts"])).names)
    kinds = {"p3socialiqa", "p3appreviews", "p3trec"} if config == "train/t0-t5xl" else {"niv2zstranslation"}
    assert kinds < set(told["losses"])
    pool = Pool.open(Path(told["experts"]))
    training = pool["p3socialiqa"].card.training
    assert training["config"]["precision"] == "bfloat16"
    if config == "train/flan-8b":
        assert training["dtype"] == "bfloat16" and training["config"]["checkpointing"] is True
        assert {"flanv2zsai2arceasy", "flanv2zsqrecc"} < set(told["losses"])
        assert (tmp_path / "downloads" / CLONE / "tasks").is_dir()
    plan = json.loads((tmp_path / "training" / told["pool"] / "pool.yaml").read_text("utf8"))
    assert set(plan_names(plan)) == set(told["losses"])
    said.clear()
    assert rehearse(tmp_path, read_plan([config]), said) == [told]
    assert said == [f"unchanged: {name}" for name in plan_names(plan)]


def plan_names(plan: dict[str, Any]) -> list[str]:
    return [expert["name"] for expert in plan["experts"]]


def test_experts_are_not_trained_by_workers_that_would_do_nothing(tmp_path: Path) -> None:
    space = Workspace(tmp_path, tmp_path, made_up, made_up_prompts, made_up_flan, executor=LocalExecutor(workers=2))
    with pytest.raises(ConfigError, match=r"plain processes.*--devices"):
        space.run(read_plan(["train/t0-t5xl"]))
    assert not (tmp_path / "training").exists()


def test_an_expert_whose_rows_fail_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glider.contribute.build import ExpertJob
    from glider.errors import TrainingError

    run = ExpertJob.run

    def failing(job: ExpertJob, report: Any) -> Path:
        if job.name == "p3trec":
            raise TrainingError("a finite loss", "nan", "Lower it.")
        return run(job, report)

    monkeypatch.setattr(ExpertJob, "run", failing)
    said: list[str] = []
    (told,) = rehearse(tmp_path, read_plan(["train/t0-t5xl"]), said)
    assert told["missing"] == ["p3trec"] and "a finite loss" in told["faults"]["p3trec"]
    assert "p3trec" not in Pool.open(Path(told["experts"])).names and len(told["losses"]) == 3
