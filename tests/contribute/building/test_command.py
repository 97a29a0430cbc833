"""`glider pool build`."""

import errno
import json
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from glider.experts.pool import Pool

from .drafts import Draft


def test_the_command_tells_what_it_did(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line.strip()] == [["one", "done"], ["two", "done"]]
    assert err.splitlines() == ["one: done", "two: done"]  # and nothing of thresholds, for which it has too few rows


def test_an_expert_that_a_build_adds_changes_the_calibration(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    draft.plan["defaults"] |= {"validation": 20}
    for name in ("one", "two", "three"):
        lines = [json.dumps({"input": f"{name} {name}{i} say", "output": "x"}) + "\n" for i in range(200)]
        (draft.root / f"{name}.jsonl").write_text("".join(lines), "utf8")
    code, _, first = glider("pool", "build", draft.write(), "--out", draft.pool, "--no-calibrate")
    assert code == 0
    code, _, err = glider("pool", "calibrate", draft.pool)
    assert code == 0, err
    draft.plan["experts"].append({"name": "three", "data": "three.jsonl"})
    code, _, again = glider("pool", "build", draft.write(), "--out", draft.pool)
    assert code == 0
    assert Pool.open(draft.pool).index.calibrations["examples"].experts == ("one", "two", "three")
    hint = f"{draft.pool} cannot tell yet what no expert suits; then: glider pool calibrate {draft.pool}"
    assert hint in first.splitlines() and "calibrate" not in again


def test_a_build_calibrates_a_pool_that_never_was(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    draft.plan["defaults"] |= {"validation": 20}
    for name in ("one", "two"):
        lines = [json.dumps({"input": f"{name} {name}{i} say", "output": "x"}) + "\n" for i in range(200)]
        (draft.root / f"{name}.jsonl").write_text("".join(lines), "utf8")
    code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool, "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == ["one", "two"]
    assert "of the experts' own queries" in err
    built = Pool.open(draft.pool).index
    assert built.signal == "examples" and built.verdicts is not None
    assert glider("pool", "calibrate", draft.pool)[0] == 0
    assert Pool.open(draft.pool).index == built  # what the command alone chooses


def test_a_failure_is_named_at_the_end_with_exit_code_1(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    (draft.root / "one.jsonl").write_text("no rows", "utf8")
    code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool, "--json")
    assert code == 1
    told = {row["name"]: row for row in json.loads(out)}
    assert told["one"]["status"] == "failed" and "one.jsonl" in told["one"]["message"]
    assert told["two"] == {"name": "two", "status": "done", "message": ""}
    assert err.splitlines()[-1] == "glider: 1 of 2 experts failed: one"
    assert Pool.open(draft.pool).names == ["two"]


def test_a_faulty_plan_is_one_line_with_exit_code_2(draft: Draft, glider: Callable[..., tuple[int, str, str]]):
    draft.plan["experts"].append({"name": "three"})
    code, _, err = glider("pool", "build", draft.write(), "--out", draft.pool)
    assert code == 2
    assert err.count("\n") == 1 and "three: neither data nor adapter" in err
    assert not draft.pool.exists()


@pytest.mark.parametrize("step", ["glider.contribute.protocol.write_expert", "glider.contribute.build.put_directory"])
def test_a_full_disk_fails_one_expert_in_our_own_words(
    draft: Draft, glider: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, step: str
):
    """It was `OSError: [Errno 28] ...`; where the finished expert was put into place, it ended the whole build."""
    module, _, function = step.rpartition(".")
    proceed = getattr(import_module(module), function)

    def write(*arguments: Any, **settings: Any) -> Any:
        if any(getattr(argument, "name", None) == "one" for argument in arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft.pool / "one" / "file"))
        return proceed(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(step, write)
        code, out, err = glider("pool", "build", draft.write(), "--out", draft.pool, "--json")
    assert code == 1 and "one: failed" in err
    text = f"wanted to use {draft.pool}/one/file; got: No space left on device. Free space, or choose another place."
    assert json.loads(out) == [
        {"name": "one", "status": "failed", "message": text},
        {"name": "two", "status": "done", "message": ""},
    ]
    assert Pool.open(draft.pool).names == ["two"] and not (draft.pool / "one").exists()
    assert glider("pool", "build", draft.write(), "--out", draft.pool)[0] == 0
    assert Pool.open(draft.pool).names == ["two", "one"]
