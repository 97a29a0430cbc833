"""Figure 3's numbers are the signal's own, and the picture shows them for pools of any size."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from pydantic import ValidationError

from glider.calibration.threshold import calibrate, held_back
from glider.errors import ConfigError, MissingDependency, RouterError
from glider.experts.pool import Pool
from glider.inference.queries import Query, QueryReader
from glider.report.global_scores import PROFILES, PoolScores, Spread, TaskScores, pool_scores, task_files
from glider.report.scores_figure import draw_scores
from glider.report.style import DARK
from glider.routing.signals.base import signals

from ..commands import CommandResult


@pytest.fixture
def pool(pool_with_profiles) -> Pool:
    made = pool_with_profiles()
    return made.calibrate("examples", calibrate(made, "examples"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "far"
    folder.mkdir()
    told = [{"input": f"the e1 e1{i} and riddle {i}", "output": "x", "split": "test"} for i in range(30)]
    (folder / "riddles.jsonl").write_text("\n".join(map(json.dumps, told)))
    return folder / "riddles.jsonl"


def test_columns_are_what_the_signal_says_of_the_held_back_queries(pool: Pool) -> None:
    found = pool_scores(pool)
    assert (found.signal, found.p, found.experts) == ("examples", pool.index.calibrations["examples"].p, (*pool.names,))
    prepared = signals.create("examples").prepare(pool)
    for column, told in enumerate(found.tasks):
        asked = held_back(pool, prepared)[told.task]
        scores, without = prepared.of(asked), prepared.of(asked, without=column)
        assert (told.task, told.own, told.group, told.queries) == (f"e{column}", f"e{column}", PROFILES, 24)
        means = [told.scores[name].mean for name in pool.names]
        assert means == pytest.approx(scores.mean(dim=0).tolist(), abs=1e-4)
        assert told.above == pytest.approx((scores.amax(dim=1) > found.p).float().mean().item(), abs=1e-4)
        assert told.best_without_own and told.best_without_own.mean == pytest.approx(
            without.amax(dim=1).mean().item(), abs=1e-4
        )
        spread = torch.quantile(scores[:, column], torch.tensor([0.1, 0.9])).tolist()
        assert [told.scores[told.task].low, told.scores[told.task].high] == pytest.approx(spread, abs=1e-4)


def test_files_are_columns_of_their_own(pool: Pool, rows: Path) -> None:
    told = pool_scores(pool, files=task_files([str(rows.parent / "*.jsonl")]), profiles=False, rows=30).tasks
    assert [(task.task, task.group, task.own, task.queries) for task in told] == [("riddles", "far", None, 30)]
    prepared = signals.create("examples").prepare(pool)
    queries = [Query(json.loads(line)["input"]) for line in rows.read_text().splitlines()]
    asked, _ = QueryReader().features(queries, {"grams"})
    wanted = prepared.of(asked).mean(dim=0).tolist()
    assert [told[0].scores[name].mean for name in pool.names] == pytest.approx(wanted, abs=1e-4)
    assert told[0].best_without_own is None


def test_a_link_belongs_to_the_directory_it_lies_in(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "riddles.jsonl").symlink_to(rows)
    assert [file.group for file in task_files([str(tmp_path / "near" / "*")])] == ["near"]


def test_a_description_stands_for_a_files_queries(pool: Pool, rows: Path) -> None:
    described = {"riddles": "Solve a riddle."}
    (told,) = pool_scores(
        pool, "instruction", task_files([str(rows)]), profiles=False, descriptions=described, rows=3
    ).tasks
    assert all(spread.low == pytest.approx(spread.high, abs=2e-4) for spread in told.scores.values())


def test_faults_are_told(pool: Pool, make_pool, llama_directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"none at no\*\.jsonl"):
        task_files(["no*.jsonl"])
    with pytest.raises(ConfigError, match="tasks to score"):
        pool_scores(pool, profiles=False)
    with pytest.raises(RouterError, match="glider expert profile"):
        pool_scores(make_pool(llama_directory, name="bare"), "examples")


def many(tasks: int) -> PoolScores:
    """A pool with an expert for every other task, in two groups."""
    experts = tuple(f"expert_{i}" for i in range(tasks // 2))
    columns = []
    for i in range(tasks):
        own = experts[i] if i < len(experts) else None
        means = {name: 1.2 if name == own else (j * 7 % 5) / 10 for j, name in enumerate(experts)}
        spreads = {name: Spread(mean=mean, low=mean - 0.1, high=mean + 0.1) for name, mean in means.items()}
        best = max(spreads.values(), key=lambda spread: spread.mean)
        less = Spread(mean=0.4, low=0.3, high=0.5) if own else None
        columns.append(
            TaskScores(
                task=own or f"a_task_of_a_very_long_name_{i}",
                group="held-in" if own else "held-out",
                queries=24,
                own=own,
                scores=spreads,
                best=best,
                above=1.0,
                best_without_own=less,
                above_without_own=0.0 if own else None,
            )
        )
    return PoolScores(signal="examples", p=0.7, experts=experts, tasks=tuple(columns))


@pytest.mark.parametrize("tasks", [2, 8, 40, 70])
def test_the_picture_is_opaque_and_reproducible(tasks: int, tmp_path: Path) -> None:
    first = draw_scores(many(tasks), tmp_path / "a.png")
    assert first.read_bytes() == draw_scores(many(tasks), tmp_path / "b.png").read_bytes()
    light, dark = imread(first), imread(draw_scores(many(tasks), tmp_path / "dark.png", DARK))
    for picture, corner in ((light, 1.0), (dark, 21 / 255)):
        assert picture.shape[-1] == 3 or (picture[..., 3] == 1).all()
        assert picture[0, 0, 0] == pytest.approx(corner, abs=1e-3)
        edges = [picture[:, 0], picture[:, -1], picture[0], picture[-1]]
        assert all((edge == picture[0, 0]).all() for edge in edges)  # nothing is cut off


@pytest.mark.parametrize("place", ["p", "mean", "low", "high"])
@pytest.mark.parametrize("value", [1e308, -1e308, float("nan")])
def test_scores_that_no_picture_can_show_are_refused(place: str, value: float) -> None:
    """They were a traceback of matplotlib, or its warnings."""
    told = many(2).model_dump()
    (told if place == "p" else told["tasks"][0]["scores"]["expert_0"])[place] = value
    with pytest.raises(ValidationError, match=rf"\.?{place}\n"):
        PoolScores.model_validate(told)


def test_the_command_draws_and_tells(
    pool: Pool, rows: Path, tmp_path: Path, glider: Callable[..., CommandResult]
) -> None:
    shared = ("report", "scores", "--pool", pool.path, "--data", rows)
    drawn = glider(*shared, "--out", tmp_path / "scores.png")
    assert drawn.code == 0 and "4 tasks x 3 experts, examples, p = " in drawn.out
    written = glider(*shared, "--out", tmp_path / "scores.json", "--json")
    assert written.code == 0
    told = PoolScores.model_validate_json(written.out)
    assert told == PoolScores.model_validate_json((tmp_path / "scores.json").read_text())
    assert [task.task for task in told.tasks] == ["e0", "e1", "e2", "riddles"]


@pytest.mark.parametrize(
    ("arguments", "part"), [((), "--out"), (("--out", "x.gif"), ".png"), (("--out", "x.png", "--data", "no*"), "no*")]
)
def test_mistakes_are_one_line(pool: Pool, arguments: tuple, part: str, glider: Callable[..., CommandResult]) -> None:
    ended = glider("report", "scores", "--pool", pool.path, *arguments)
    assert ended.code == 2 and part in ended.err and ended.err.count("\n") == 1


def test_without_matplotlib_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(MissingDependency, match=r"glider-moe\[plot\]"):
        draw_scores(many(2), tmp_path / "a.png")
