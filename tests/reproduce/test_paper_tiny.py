"""The rehearsal: published layout -> pool -> rows -> evaluation -> published scores, on random weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fullrun.plan import Plan, read_plan
from fullrun.published_queries import PublishedQueries, read_queries
from fullrun.tiny import made_up, made_up_prompts, tiny_plan
from fullrun.workspace import Workspace
from glider.contribute.published_format import NOMIC
from glider.errors import DataError, EmbedderError, PoolError
from glider.experts.pool import Pool
from glider.instructions.embedders import load_for
from run import main


def rehearse(root: Path, plan: Plan, say: list[str] | None = None) -> list[dict[str, Any]]:
    said = [] if say is None else say
    return Workspace(root, root / "downloads", made_up, made_up_prompts, say=said.append).run(
        tiny_plan(plan, root / "downloads")
    )


def test_a_cell_from_checkpoint_to_summary_and_on_again(tmp_path: Path) -> None:
    plan = read_plan(["table1/glider"]).chosen(pool="t0", set_name="bbl")
    (told,) = rehearse(tmp_path, plan)
    assert told["missing"] == [] and set(told["tasks"]) == {"bbconlangtranslation"}
    assert 0 <= told["score"] <= 100 and told["score"] == pytest.approx(sum(told["tasks"].values()), abs=0.01)
    pool = Pool.open(tmp_path / "pools" / "t0")
    assert len(pool) == 8 and "p3cose" not in pool.names
    folder = tmp_path / "results" / "table1" / "glider" / "t0"
    assert json.loads((folder / "summary.json").read_text())["glider/bbl"] == told
    result = json.loads((folder / "glider" / "bbl" / "bbconlangtranslation.json").read_text())
    assert result["config"]["task"]["description"].startswith("published query of bbconlangtranslation")
    assert result["config"]["task"]["max_new_tokens"] == 5  # the published limit counts the start token
    assert all(row["expert"] in pool.names and row["alpha"] in (3.0, 103.0) for row in result["results"])
    said: list[str] = []
    assert rehearse(tmp_path, plan, said) == [told]
    assert said == ["unchanged: glider bbl/bbconlangtranslation"]


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


def test_a_pool_whose_source_changed_is_imported_anew(tmp_path: Path) -> None:
    plan = tiny_plan(read_plan(["table1/phatgoose"]).chosen(pool="t0", set_name="bbl"), tmp_path)
    space, source = Workspace(tmp_path, tmp_path, made_up), plan.pools["t0"]
    whole = Pool.open(space.pool("t0", source)).names
    assert Pool.open(space.pool("t0", source)).names == whole
    fewer = source.model_copy(update={"without": (*source.without, whole[0]), "experts": source.experts - 1})
    assert Pool.open(space.pool("t0", fewer)).names == whole[1:]


def test_an_interrupted_download_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fetch(repository: str, local_dir: Path) -> None:
        calls.append(repository)
        local_dir.mkdir(parents=True, exist_ok=True)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    space = Workspace(tmp_path / "work", tmp_path / "downloads", made_up, made_up_prompts)
    with pytest.raises(KeyboardInterrupt):
        space.download("phatgoose/best.pt")
    assert [space.download("phatgoose/best.pt") for _ in range(2)] == [tmp_path / "downloads" / "phatgoose/best.pt"] * 2
    assert calls == ["MoE-UNC/phatgoose"] * 2


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    space = Workspace(tmp_path / "work", tmp_path / "downloads", made_up, made_up_prompts)
    with pytest.raises(DataError, match="MoE-UNC/phatgoose from the hub"):
        space.download("phatgoose/best.pt")


def test_a_task_without_its_own_expert_leaves_the_oracle_without_a_score(tmp_path: Path) -> None:
    plan = tiny_plan(read_plan(["table1/oracle"]).chosen(pool="t0", set_name="t0-heldin"), tmp_path)
    source = plan.pools["t0"]
    lost = next(iter(plan.sets["t0-heldin"].tasks))
    fewer = source.model_copy(update={"without": (*source.without, lost), "experts": source.experts - 1})
    changed = replace(plan, pools={**plan.pools, "t0": fewer})
    (told,) = Workspace(tmp_path, tmp_path, made_up, made_up_prompts).run(changed)
    assert told["score"] is None and told["missing"] == [lost]


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


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    plan = read_plan(["all"])
    told = rehearse(tmp_path, plan)
    assert len(told) == len(plan.cells) and not any(cell["missing"] for cell in told)
    assert all(cell["score"] is not None or "figure" in cell for cell in told)
    kinds = {
        metric
        for tasks in tiny_plan(plan, tmp_path / "downloads").sets.values()
        for t in tasks.tasks.values()
        for metric in t.metrics
    }
    assert kinds == {metric for tasks in plan.sets.values() for t in tasks.tasks.values() for metric in t.metrics}
