"""The rehearsal: published layout -> pool -> rows -> evaluation -> published scores, on random weights."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fullrun.hub import Hub
from fullrun.notes import noted
from fullrun.plan import Plan, config_names, read_plan
from fullrun.published_queries import PublishedQueries, read_queries
from fullrun.tiny import kind_of, made_up, made_up_prompts, tiny_plan
from fullrun.tiny_training import made_up_flan
from fullrun.workspace import Workspace
from glider.contribute.published_format import NOMIC
from glider.errors import ConfigError, DataError, EmbedderError, PoolError
from glider.experts.pool import Pool
from glider.instructions.embedders import load_for
from run import main

from .hub_stand_in import a_page, fine, serving


def rehearse(root: Path, plan: Plan, say: list[str] | None = None) -> list[dict[str, Any]]:
    said = [] if say is None else say
    return Workspace(root, root / "downloads", made_up, made_up_prompts, made_up_flan, say=said.append).run(
        tiny_plan(plan, root / "downloads")
    )


def test_a_cell_from_checkpoint_to_summary_and_on_again(tmp_path: Path) -> None:
    plan = read_plan(["table1/glider"]).chosen(pool="t0", set_name="bbl")
    (told,) = rehearse(tmp_path, plan)
    by_choice, by_answer = "bbbbqlitejson", {"bbconlangtranslation", "bblinguisticspuzzles", "bbnovelconcepts"}
    assert told["missing"] == [] and set(told["tasks"]) == {by_choice} | by_answer
    assert 0 <= told["score"] <= 100 and told["score"] == pytest.approx(sum(told["tasks"].values()) / 4, abs=0.01)
    pool = Pool.open(tmp_path / "pools" / "t0")
    assert len(pool) == 8 and "p3cose" not in pool.names
    folder = tmp_path / "results" / "table1" / "glider" / "t0"
    chosen = json.loads((folder / "glider" / "bbl" / f"{by_choice}.json").read_text())
    assert chosen["metric"] == "accuracy" and all(len(row["choices"]) == 3 for row in chosen["results"])
    assert json.loads((folder / "summary.json").read_text())["glider/bbl"] == told
    result = json.loads((folder / "glider" / "bbl" / "bbconlangtranslation.json").read_text())
    assert result["config"]["task"]["description"].startswith("published query of bbconlangtranslation")
    assert result["config"]["task"]["max_new_tokens"] == 5  # the published limit counts the start token
    assert all(row["expert"] in pool.names and row["alpha"] in (3.0, 103.0) for row in result["results"])
    said: list[str] = []
    assert rehearse(tmp_path, plan, said) == [told]
    assert sorted(said) == [f"unchanged: glider bbl/{name}" for name in sorted({by_choice} | by_answer)]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["figures/figure2", "figures/figure3"])
def test_a_figure_is_drawn_of_published_layouts(tmp_path: Path, config: str) -> None:
    plan = read_plan([config])
    told = rehearse(tmp_path, plan)
    assert len(told) == len(plan.cells)
    for cell in told:
        picture = Path(cell["figure"])
        assert picture.read_bytes().startswith(b"\x89PNG") and cell["missing"] == []
        numbers = json.loads(picture.with_suffix(".json").read_text("utf8"))
        assert len(numbers["experts"]) == 8 and numbers["tasks"]
        own = {task["own"] for task in numbers["tasks"]}
        if config == "figures/figure3":
            assert numbers["p"] == 0.8 and (own <= {None}) == (cell["set"] != "t0-heldin")


@pytest.mark.parametrize("damage", ["", "[" * 2000, '{"a": 1, "a": 2}', "pipe", "directory"])
def test_what_a_damaged_note_is_of_is_made_anew(tmp_path: Path, damage: str) -> None:
    """It was a traceback; a pipe was waited for without end."""
    note = tmp_path / "bbl.source.json"
    if damage == "pipe":
        os.mkfifo(note)
    elif damage == "directory":
        note.mkdir()
    else:
        note.write_text(damage)
    assert noted(note) is None and noted(tmp_path / "none.json") is None
    plan = tiny_plan(read_plan(["table1/phatgoose"]).chosen(pool="t0", set_name="bbl"), tmp_path)
    space, tasks, base = Workspace(tmp_path, tmp_path, made_up), plan.sets["bbl"], plan.pools["t0"].base
    before = {name: file.read_bytes() for name, file in space.rows("bbl", tasks, base).items()}
    if damage in ("pipe", "directory"):
        return
    first = next(iter(before))
    (tmp_path / "rows" / "bbl" / f"{first}.jsonl").write_text("")
    (tmp_path / "rows" / "bbl" / f"{first}.source.json").write_text(damage)
    assert {name: file.read_bytes() for name, file in space.rows("bbl", tasks, base).items()} == before


@pytest.mark.parametrize("damage", ["[]", "{", '{"routers": [1]}'])
def test_a_damaged_file_to_which_a_call_adds_is_named_and_left(tmp_path: Path, damage: str) -> None:
    plan = read_plan(["table1/glider"]).chosen(pool="t0", set_name="bbl")
    kept = tmp_path / "runs" / "table1" / "glider" / "t0-bbl.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(damage)
    with pytest.raises(ConfigError, match=r"a run file in .*t0-bbl\.yaml"):
        rehearse(tmp_path, plan)
    assert kept.read_text() == damage


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_rows_that_a_kill_left_without_their_source_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that was changed, killed between its rows and their record, and changed back had the rows of the change."""
    plan = tiny_plan(read_plan(["table1/phatgoose"]).chosen(pool="t0", set_name="bbl"), tmp_path)
    space, tasks, base = Workspace(tmp_path, tmp_path, made_up), plan.sets["bbl"], plan.pools["t0"].base
    before = {name: file.read_bytes() for name, file in space.rows("bbl", tasks, base).items()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fullrun.workspace.write_json", interrupted)
        space.rows("bbl", tasks.model_copy(update={"most": 1}), base)
    after = {name: file.read_bytes() for name, file in space.rows("bbl", tasks, base).items()}
    assert after == before


@pytest.mark.slow
def test_a_pool_whose_source_changed_is_imported_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(read_plan(["table1/phatgoose"]).chosen(pool="t0", set_name="bbl"), tmp_path)
    space, source = Workspace(tmp_path, tmp_path, made_up), plan.pools["t0"]
    whole = Pool.open(space.pool("t0", source)).names
    assert Pool.open(space.pool("t0", source)).names == whole
    fewer = source.model_copy(update={"without": (*source.without, whole[0]), "experts": source.experts - 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fullrun.workspace.write_json", interrupted)
        space.pool("t0", fewer)
    assert Pool.open(space.pool("t0", source)).names == whole  # not those of the import that was killed
    assert Pool.open(space.pool("t0", fewer)).names == whole[1:]


def test_an_interrupted_download_goes_on(tmp_path: Path) -> None:
    with serving() as stand:
        stand.files["MoE-UNC/phatgoose", "main"] = {"best.pt": b"experts" * 100, "sub/more.pt": b"more" * 100}
        hub = Hub(stand.endpoint, lambda seconds: None)
        space = Workspace(tmp_path / "work", tmp_path / "downloads", hub=hub)
        stand.faults = [fine, a_page]
        with pytest.raises(DataError, match=r"phatgoose/sub/more\.pt"):
            space.download("phatgoose/best.pt")
        stand.asked.clear()
        found = [space.download("phatgoose/best.pt") for _ in range(2)]
        assert found == [tmp_path / "downloads" / "phatgoose/best.pt"] * 2
        assert found[0].read_bytes() == b"experts" * 100
        assert stand.fetched("best.pt") == 0 and stand.fetched("more.pt") == 400


def test_a_download_that_another_place_of_work_began_is_not_taken_for_whole(tmp_path: Path) -> None:
    """What was begun was noted under `--work`: another one over the same `--downloads` took the half of it."""
    with serving() as stand:
        stand.files["MoE-UNC/phatgoose", "main"] = {"a.pt": b"experts" * 100, "b.pt": b"more" * 100}
        first, second = (
            Workspace(tmp_path / name, tmp_path / "downloads", hub=Hub(stand.endpoint, lambda seconds: None))
            for name in ("one", "two")
        )
        stand.faults = [fine, a_page]
        with pytest.raises(DataError, match=r"phatgoose/b\.pt"):
            first.download("phatgoose")
        folder = second.download("phatgoose")
        assert (folder / "b.pt").read_bytes() == b"more" * 100
        stand.asked.clear()
        assert first.download("phatgoose/a.pt") == folder / "a.pt" and stand.asked == []


def test_a_failed_download_is_told(tmp_path: Path) -> None:
    with serving() as stand:
        space = Workspace(tmp_path / "work", tmp_path / "downloads", hub=Hub(stand.endpoint))
        with pytest.raises(DataError, match="MoE-UNC/phatgoose from the hub"):
            space.download("phatgoose/best.pt")


def test_a_pool_of_another_size_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    """The FLAN pool of the published README and of the commands differ: an hour of rows went before it was counted."""
    plan = read_plan(["table1/phatgoose"]).chosen(set_name="bbl")
    with serving() as stand:
        there = {f"task{i}_best.pt": b"" for i in range(160)}
        stand.files["MoE-UNC/flan-lora-checkpoints", "main"] = there
        stand.files["MoE-UNC/p3-lora-checkpoints", "main"] = {f"p3{i}_best.pt": b"" for i in range(35)}
        space = Workspace(tmp_path / "work", tmp_path / "downloads", hub=Hub(stand.endpoint))
        with pytest.raises(PoolError, match=r"wanted 166 experts in flan-lora-checkpoints; got 160.*\(flan\)"):
            space.run(plan)
        assert not (tmp_path / "downloads").exists() and not (tmp_path / "work" / "rows").exists()
        assert not any("resolve" in address for address, _ in stand.asked)
    there |= {"p3cose_best.pt": b"", "README.md": b""}
    for name in ("p3-lora-checkpoints", "flan-lora-checkpoints"):
        (tmp_path / "downloads" / name).mkdir(parents=True)
        for file in (*(f"x{i}_best.pt" for i in range(35)), "p3cose_best.pt", "README.md"):
            (tmp_path / "downloads" / name / file).touch()
    with pytest.raises(PoolError, match=r"wanted 166 experts in flan-lora-checkpoints; got 36\."):
        space.run(plan)
    Workspace(tmp_path, tmp_path / "downloads").require_pools(plan.chosen(pool="t0"))


@pytest.mark.slow
def test_a_task_without_its_own_expert_leaves_the_oracle_without_a_score(tmp_path: Path) -> None:
    plan = tiny_plan(read_plan(["table1/oracle"]).chosen(pool="t0", set_name="t0-heldin"), tmp_path)
    source = plan.pools["t0"]
    lost = next(iter(plan.sets["t0-heldin"].tasks))
    fewer = source.model_copy(update={"without": (*source.without, lost), "experts": source.experts - 1})
    changed = replace(plan, pools={**plan.pools, "t0": fewer})
    (told,) = Workspace(tmp_path, tmp_path, made_up, made_up_prompts).run(changed)
    assert told["score"] is None and told["missing"] == [lost]


@pytest.mark.slow
def test_the_command_takes_a_relative_place_and_rehearses_beside_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run.py", "table1/glider", "--pool", "t0", "--set", "bbl", "--tiny", "--work", "work", "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["missing"] == [] and told["score"] is not None
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["tiny"]
    monkeypatch.setattr("sys.argv", [*arguments, "--downloads", "mine"])
    assert main() == 2
    assert "--downloads mine" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_another_count_of_experts_is_refused(tmp_path: Path) -> None:
    plan = tiny_plan(read_plan(["table1/phatgoose"]).chosen(pool="t0", set_name="bbl"), tmp_path)
    (tmp_path / "p3-lora-checkpoints" / "p3socialiqa_best.pt").unlink()
    with pytest.raises(PoolError, match=r"wanted 8 experts .* got 7"):
        Workspace(tmp_path, tmp_path, made_up, made_up_prompts).run(plan)


def test_published_queries_stand_for_their_embedder(tmp_path: Path) -> None:
    path = tmp_path / "queries.pt"
    vectors = {"p3rte": torch.randn(768), "bbsnarks": torch.randn(2, 768)}
    torch.save(vectors, path)
    keys = read_queries(path, ["p3rte", "bbsnarks"])
    embedder = load_for(NOMIC)
    assert isinstance(embedder, PublishedQueries)
    found = embedder.embed([keys["bbsnarks"], keys["p3rte"]])
    wanted = torch.stack([vectors["bbsnarks"][0], vectors["p3rte"]])
    torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=-1))
    with pytest.raises(EmbedderError, match="Read their file first"):
        embedder.embed(["another text"])
    with pytest.raises(EmbedderError, match="none of p3cb"):
        read_queries(path, ["p3rte", "p3cb"])
    torch.save({**vectors, "p3rte": torch.randn(768)}, path)
    assert read_queries(path, ["p3rte"])["p3rte"] != keys["p3rte"]


def test_a_rehearsal_has_a_task_of_each_kind(tmp_path: Path) -> None:
    """Tasks whose configs end in a round's name (ANLI) were left out."""
    plan = read_plan(["all"])
    tiny = tiny_plan(plan, tmp_path).sets
    assert any(getattr(task, "ending", "") for task in tiny["t0-heldout"].tasks.values())
    for name, tasks in plan.sets.items():
        kinds = {kind_of(task) for task in tiny[name].tasks.values()}
        assert kinds == {kind_of(task) for task in tasks.tasks.values()}


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """`run.py all --tiny` itself: tables, figures and training."""
    plan = read_plan(["all"])
    monkeypatch.setattr("sys.argv", ["run.py", "all", "--tiny", "--work", str(tmp_path), "--json"])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == len(plan.cells) + len(plan.trainings) and not any(cell["missing"] for cell in told)
    assert {cell["config"] for cell in told} == set(config_names())  # tables, figures and training
    assert all(cell["score"] is not None or {"figure", "experts"} & cell.keys() for cell in told)
    tiny = tiny_plan(plan, tmp_path / "downloads").sets
    for name, tasks in plan.sets.items():  # in each set every way of scoring that it has
        kinds = {task.metric for task in tiny[name].tasks.values()}
        assert kinds == {task.metric for task in tasks.tasks.values()}
    kinds = {
        metric
        for tasks in tiny_plan(plan, tmp_path / "downloads").sets.values()
        for t in tasks.tasks.values()
        for metric in t.metrics
    }
    assert kinds == {metric for tasks in plan.sets.values() for t in tasks.tasks.values() for metric in t.metrics}
