"""`glider evaluate --engine vllm`: the scores of a cell are those that transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from glider.errors import ConfigError
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run

from .conftest import needs_vllm

ROWS = [
    ("Review: a dull, lifeless film. Sentiment?", "negative"),
    ("Review: warm, funny and wise from the first scene to the last. Sentiment?", "positive"),
    ("Review: the jokes are old and the plot is older. Sentiment?", "negative"),
    ("Review: a triumph of quiet acting. Sentiment?", "positive"),
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"input": text, "output": answer, "choices": ["positive", "negative"], "split": "test"})
        for text, answer in ROWS
    ]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines))
    texts = [json.dumps({"input": text, "output": answer, "split": "test"}) for text, answer in ROWS]
    (tmp_path / "written.jsonl").write_text("\n".join(texts))
    return tmp_path


def plan(**changes: Any) -> RunPlan:
    sets = {"all": {"tasks": ["reviews.jsonl", "written.jsonl"]}}
    metrics = {"written": "exact_match"}
    return RunPlan.model_validate(
        {"routers": ["glider"], "sets": sets, "metrics": metrics, "max_new_tokens": 8, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"matmul": "medium"}, "matmul"),
        ({"device": "cuda"}, "device"),
        ({"routers": [{"router": "lorahub"}]}, "search"),
    ],
)
def test_what_vllm_cannot_evaluate_is_refused_before_it_starts(rows: Path, changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Run(plan(engine="vllm", **changes), rows, rows / "out")


def test_a_result_by_vllm_is_another_cell(rows: Path) -> None:
    (one, _), (other, _) = (
        list(Run(plan(engine=engine), rows, rows / "out").cells.values()) for engine in ("transformers", "vllm")
    )
    assert one.key != other.key


@pytest.mark.slow
@pytest.mark.skipif(needs_vllm[0].args[0], reason=needs_vllm[0].kwargs["reason"])
@pytest.mark.filterwarnings("default")
def test_both_engines_give_the_same_scores(rows: Path) -> None:
    results: dict[str, dict[str, Any]] = {}
    for engine in ("transformers", "vllm"):
        run = Run(plan(engine=engine), rows, rows / engine)
        assert [result.status for result in run.go()] == ["done", "done"]
        results[engine] = {cell.task.name: cell.read() for cell in run.cells.values()}
    for name in ("reviews", "written"):
        one, other = results["transformers"][name], results["vllm"][name]
        assert one["score"] == other["score"]
        for row, same in zip(one["results"], other["results"], strict=True):
            assert (row["prediction"], row["verdict"], row["expert"]) == (
                same["prediction"],
                same["verdict"],
                same["expert"],
            )
            if row["choices"] is not None:
                assert row["choices"] == pytest.approx(same["choices"], abs=2e-3)
