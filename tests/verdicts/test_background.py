"""The background: what is shipped is what its script makes; files that are none are refused."""

import json
import runpy
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glider.calibration.verdict import choose_thresholds
from glider.errors import PoolError
from glider.experts.index import BACKGROUND_FILE
from glider.experts.pool import Pool
from glider.inference.spec import load
from glider.instructions.inputs import ngrams
from glider.verdicts.background import SHIPPED, Background, shipped

from .conftest import STRANGER

SCRIPTS = Path(__file__).parents[2] / "reproduce" / "background"


def test_what_is_shipped_is_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path / "background.safetensors")])
    runpy.run_path(str(SCRIPTS / "make.py"), run_name="__main__")
    assert (tmp_path / "background.safetensors").read_bytes() == SHIPPED.read_bytes()


def test_counts_are_those_of_the_requests(tmp_path: Path) -> None:
    background = Background.of([["a cat", "a dog"], ["a cow"]], judged=3)
    counted = dict(zip(background.grams.tolist(), background.total.tolist(), strict=True))
    (a,) = ngrams("a").tolist()
    assert counted[a] == 3 and all(counted[gram] == 1 for gram in ngrams("cow").tolist())
    assert background.without(0).tolist()[background.grams.tolist().index(a)] == 1
    assert [len(background.of_fold(fold)) for fold in (0, 1)] == [2, 1]
    background.save(tmp_path / "b.safetensors")
    again = Background.open(tmp_path / "b.safetensors")
    assert torch.equal(again.counts, background.counts) and torch.equal(again.queries, background.queries)


def test_joined_backgrounds_have_the_folds_of_both() -> None:
    more = Background.of([["entirely unheard-of words"]], judged=4)
    both = shipped().joined(more)
    assert len(both.counts) == len(shipped().counts) + 1
    assert int(both.total.sum()) == int(shipped().total.sum()) + int(more.total.sum())
    assert len(both.of_fold(len(shipped().counts))) == 1


@pytest.mark.parametrize("fault", ["missing", "dtype", "order", "fold", "length", "text"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, fault: str) -> None:
    tensors, file = load_file(SHIPPED), tmp_path / "b.safetensors"
    if fault == "missing":
        del tensors["folds"]
    elif fault == "dtype":
        tensors["counts"] = tensors["counts"].float()
    elif fault == "order":
        tensors["grams"] = tensors["grams"].flip(0).contiguous()
    elif fault == "fold":
        tensors["folds"] = tensors["folds"] + 99
    elif fault == "length":
        tensors["lengths"] = tensors["lengths"] + 1
    if fault == "text":
        file.write_text("no tensors")
    else:
        save_file(tensors, file)
    with pytest.raises(PoolError, match="background"):
        Background.open(file)


def test_requests_are_needed() -> None:
    with pytest.raises(PoolError, match="requests for the background"):
        Background.of([[]], judged=3)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0"])
def test_a_dtype_that_pytorch_has_no_name_for_is_refused(tmp_path: Path, dtype: str) -> None:
    """The library's own reader ends in a KeyError."""
    header = json.dumps({"grams": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(PoolError, match="background"):
        Background.open(tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind", ["folds", "requests"])
def test_more_than_is_ever_looked_at_is_refused(tmp_path: Path, kind: str) -> None:
    """Each fold is counted beside all others: a million of them took hours."""
    tensors, grams = load_file(SHIPPED), torch.arange(4)
    if kind == "folds":
        tensors |= {"grams": grams, "counts": torch.ones(1_000_000, 4, dtype=torch.uint8)}
    else:
        empty = torch.zeros(1_000_000, dtype=torch.int32)
        tensors |= {"lengths": empty, "folds": empty.clone(), "queries": torch.zeros(0, dtype=torch.int64)}
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(PoolError, match="are the most"):
        Background.open(tmp_path / "b.safetensors")


def test_a_calibration_that_is_killed_leaves_a_pool_that_answers(
    glider, llama_directory: Path, calibrated: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (shipped().joined(Background.of([[f"{word} requests of mine"]], 1)) for word in ("some", "other"))
    pool = calibrated(llama_directory)
    pool = pool.set_verdicts(choose_thresholds(pool, first), first)
    thresholds, write = choose_thresholds(pool, second), Background.save

    def killed(background: Background, path: Path) -> None:
        write(background, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Background, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pool.set_verdicts(thresholds, second)
    monkeypatch.undo()
    assert load(str(llama_directory), pool.path).condition([STRANGER]).verdicts == ("stranger",)
    assert glider("pool", "calibrate", pool.path).code == 0


def test_another_background_is_told_with_what_mends_it(
    glider, llama_directory: Path, calibrated: Callable[..., Pool], tmp_path: Path
) -> None:
    background = shipped().joined(Background.of([["some requests of mine"]], 1))
    pool = calibrated(llama_directory)
    pool = pool.set_verdicts(choose_thresholds(pool, background), background)
    shipped().save(pool.path / BACKGROUND_FILE)
    told = glider("pool", "verify", pool.path)
    assert told.code == 2 and "another file" in told.err and "--background ROWS" in told.err
    (tmp_path / "rows.jsonl").write_text('{"input": "some requests of mine", "output": "x"}\n')
    assert glider("pool", "calibrate", pool.path, "--background", tmp_path / "rows.jsonl").code == 0
    assert glider("pool", "verify", pool.path).code == 0
