"""Results are read as they lie there, averaged over runs, and never made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glider.errors import DataError
from glider.report.cells import Results


def test_cells_are_found_and_other_files_are_not(results: Path, write_cell) -> None:
    write_cell("glider", "near", "a", [1, 0])
    write_cell("base", "near", "b", [0.5])
    (results / "scores.json").write_text('{"format": 1, "router": "x"}')
    (results / ".glider.json").write_text(next(results.rglob("a.json")).read_text())
    found = Results.read(results)
    assert found.routers == ["base", "glider"] and found.sets == {"near": ["a", "b"]}
    told = found.of(["glider"], ("near", "a"))
    assert told is not None and (told.score, told.rows, told.runs) == (0.5, {0: 1.0, 1: 0.0}, (0.5,))
    assert found.of(["glider"], ("near", "b")) is None
    assert found.lack(["glider"], ("near", "b")) == "glider has not been run"


def test_runs_of_one_method_are_averaged_by_row(results: Path, write_cell) -> None:
    write_cell("seed0", "near", "a", [1, 0, 1])
    write_cell("seed1", "near", "a", [1, 1], first=1)
    told = Results.read(results).of(["seed0", "seed1"], ("near", "a"))
    assert told is not None and told.rows == {0: 1.0, 1: 0.5, 2: 1.0}
    assert told.runs == (pytest.approx(2 / 3), 1.0)


def test_one_failed_run_is_no_result(results: Path, write_cell) -> None:
    write_cell("seed0", "near", "a", [1])
    write_cell("seed1", "near", "a", fault="no rows")
    found = Results.read(results)
    assert found.of(["seed0", "seed1"], ("near", "a")) is None
    assert found.lack(["seed0", "seed1"], ("near", "a")) == "seed1 failed: no rows"


def test_faults_are_told(results: Path, write_cell) -> None:
    with pytest.raises(DataError, match="none"):
        Results.read(results)
    write_cell("base", "near", "a", [1], folder="one", key="k")
    write_cell("base", "near", "a", [1], folder="two", key="k")
    assert len(Results.read(results).cells) == 1
    write_cell("base", "near", "a", [0], folder="three", key="other")
    with pytest.raises(DataError, match="base / near / a"):
        Results.read(results)


def test_two_files_of_one_result_agree_or_are_refused(results: Path, write_cell) -> None:
    """The first in the alphabet was taken, whatever the other one said."""
    write_cell("base", "near", "a", fault="a full disk", folder="one", key="k")
    write_cell("base", "near", "a", [1, 0], folder="two", key="k")
    found = Results.read(results).of(["base"], ("near", "a"))
    assert found is not None and found.score == 0.5
    write_cell("base", "near", "a", [1, 1], folder="three", key="k")
    with pytest.raises(DataError, match=r"other scores in .*three.* than in .*two"):
        Results.read(results)


def test_a_broken_cell_is_not_taken_for_none(results: Path, write_cell) -> None:
    write_cell("base", "near", "a", [1])
    broken = write_cell("base", "near", "b", [1])
    broken.write_text(broken.read_text()[:-9])
    with pytest.raises(DataError, match=r"near/b\.json"):
        Results.read(results)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda cell: None, "nothing"),
        (lambda cell: {}, "nothing"),
        (lambda cell: [], "nothing"),
        (lambda cell: 7, "int alone"),
        (lambda cell: {**cell, "results": []}, "results"),
        (lambda cell: {name: value for name, value in cell.items() if name != "results"}, "results"),
        (lambda cell: {name: value for name, value in cell.items() if name != "hashes"}, "no hashes"),
        (lambda cell: {name: cell[name] for name in ("router", "set", "task")}, "no config, format, hashes, key"),
    ],
)
def test_a_cell_that_lacks_something_is_not_taken_for_none(
    results: Path, write_cell, damage: Callable[[dict], object], got: str
) -> None:
    """It was left out, and the mean of the other tasks stood for that of all."""
    write_cell("base", "near", "a", [1])
    broken = write_cell("base", "near", "b", [0])
    broken.write_text(json.dumps(damage(json.loads(broken.read_text()))))
    with pytest.raises(DataError, match=rf"near/b\.json; got .*{got}"):
        Results.read(results)


def test_a_router_may_have_the_name_of_a_file(results: Path, write_cell) -> None:
    write_cell("merge.json", "near.json", "a", [1])
    assert Results.read(results).routers == ["merge.json"]
    (results / "empty.json").mkdir()
    with pytest.raises(DataError, match=r"empty\.json; got no regular file"):
        Results.read(results)


def test_a_cell_of_an_earlier_version_is_refused(results: Path, write_cell) -> None:
    path = write_cell("base", "near", "a", [1])
    path.write_text(json.dumps({name: part for name, part in json.loads(path.read_text()).items() if name != "guess"}))
    with pytest.raises(DataError, match="an earlier version"):
        Results.read(results)


def test_another_format_is_refused(results: Path, write_cell, edit_json) -> None:
    edit_json(write_cell("base", "near", "a", [1]), format=2)
    with pytest.raises(DataError, match="format 1"):
        Results.read(results)


def test_what_a_killed_process_left_is_no_result(results: Path, write_cell) -> None:
    """Half a cell in its hidden directory ended every report until the next evaluation."""
    cell = write_cell("base", "near", "a", [1])
    partial = cell.parent / ".b.json.0123abcd.partial"
    partial.mkdir()
    (partial / "b.json").write_text(cell.read_text()[:-9])
    assert list(Results.read(results).cells) == [("base", "near", "a")]


FORGED = [
    (("router",), []),
    (("set",), 3),
    (("task",), None),
    (("guess",), "x"),
    (("guess",), -1),
    (("results",), {"a": 1}),
    (("results", 0), None),
    (("results", 0, "place"), []),
    (("results", 0, "score"), 1e300),
    (("results", 0, "verdict"), {}),
    (("results",), [{"place": 0, "score": 1.0}] * 2),
    (("rows",), 2),
    (("config", "base"), []),
    (("config", "task"), "x"),
    (("hashes", "data"), {}),
    (("hashes", "pool"), 10**30),
    (("versions",), []),
    (("versions", "torch"), []),
    (("fault",), "x"),
    (("fault",), {}),
]


@pytest.mark.parametrize(("place", "value"), FORGED)
def test_a_forged_cell_is_refused_by_its_name(results: Path, write_cell, place: tuple, value: object) -> None:
    """Each was a traceback of the tables', the figures' or the pages'."""
    write_cell("base", "near", "a", [1])
    forged = write_cell("glider", "near", "a", [1])
    told = part = json.loads(forged.read_text())
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    forged.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"glider/near/a\.json") as fault:
        Results.read(results)
    assert place[0] in str(fault.value) and len(str(fault.value)) < 500
