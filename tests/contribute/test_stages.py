"""Stages of items that a kill only interrupts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glider.contribute.stages import Stages
from glider.errors import TrainingError
from glider.jobs.saving import saving_every


def nothing(what: str, done: int, all_: int) -> None:
    """No report."""


def worked(file: Path, report=nothing) -> tuple[list[float], list[int], float]:
    """Numbers drawn in one stage, what the second stage saw, and the sum of a third."""
    draw, seen = torch.Generator().manual_seed(0), []
    start = {"sum": torch.zeros(())}
    stages = Stages(file, report, count=3, tensors=start, lists={"drawn": (5,)}, numbers=("asked", 9), draw=draw)
    for _ in stages.todo("draw", range(5)):
        stages.lists["drawn"].append(torch.rand(1, generator=draw))
    for item in stages.todo("see", [3, 1, 2]):
        seen.append(item)
        stages.tensors["sum"] += item * torch.rand((), generator=draw)
    number = stages.numbers("ask", "asked", 9)
    last = [number(lambda i=i: 0.1 * i) for i in range(9)]
    return [*torch.cat(stages.lists["drawn"]).tolist(), *last], seen, stages.tensors["sum"].item()


def test_what_is_not_saved_is_done_again_and_what_is_saved_is_not(tmp_path: Path) -> None:
    whole = worked(tmp_path / "whole")
    assert not (tmp_path / "whole").exists(), "nothing was due"

    def stop(what: str, done: int, all_: int) -> None:
        if (what, done) == ("see", 2):
            raise KeyboardInterrupt

    with saving_every(1):
        with pytest.raises(KeyboardInterrupt):
            worked(tmp_path / "cut", stop)
        last, seen, total = worked(tmp_path / "cut")
        assert (last, total) == (whole[0], whole[2]) and seen == [1, 2]
        assert worked(tmp_path / "cut") == (whole[0], [], whole[2]), "all is known"


def test_the_numbers_of_a_list_count_as_found_where_it_begins_with_them(tmp_path: Path) -> None:
    asked: list[float] = []
    stages = Stages(tmp_path / "state", nothing, count=1, numbers=("n", 3))
    number = stages.numbers("ask", "n", 3)
    with saving_every(1):
        assert [number(lambda i=i: asked.append(i) or float(i)) for i in (0.1, 0.2)] == [0.1, 0.2]
    again = Stages(tmp_path / "state", nothing, count=1, numbers=("n", 3)).numbers("ask", "n", 3)
    assert [again(lambda i=i: asked.append(i) or float(i)) for i in (5, 6, 7)] == [0.1, 0.2, 7.0]
    assert asked == [0.1, 0.2, 7]


def test_a_state_of_other_names_is_refused(tmp_path: Path) -> None:
    with saving_every(1):
        worked(tmp_path / "state")
    with pytest.raises(TrainingError, match="Remove"):
        Stages(tmp_path / "state", nothing, count=3, tensors={"other": torch.zeros(())})


def test_a_state_that_takes_long_to_save_is_saved_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: an item takes a second, a saving ten."""
    now, savings = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("glider.contribute.loop.time", clock)
    monkeypatch.setattr("glider.contribute.stages.time", clock)

    class Slow(Stages):
        def _save(self) -> None:
            super()._save()
            now[0] += 10
            savings.append(now[0])

    for _ in Slow(tmp_path / "state", nothing, count=1).todo("wait", range(1000)):
        now[0] += 1
    assert 5 <= len(savings) <= 10 and savings[0] == 31.0
