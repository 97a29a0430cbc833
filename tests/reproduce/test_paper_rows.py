"""Rows of the hub's data sets become rows of this project: fields, templates, what is left out and what set apart."""

from collections.abc import Sequence
from typing import Any

import pytest

from fullrun.plan import BbhSource, BigBenchSource, Lengths, P3Source, TaskSet, TaskSource
from fullrun.published_scores import published_score
from fullrun.readers import HubRow
from fullrun.sources import task_rows
from glider.errors import DataError

COMMON: dict[str, Any] = {"split": ("validation",), "available": 10, "assumed": Lengths(input=1, target=1)}


def p3(**changes: Any) -> P3Source:
    told = {"source": "p3", "parts": ("d",), "templates": ("one", "two"), "metrics": ("accuracy",)}
    return P3Source(**{**COMMON, **told, **changes})


def bigbench(**changes: Any) -> BigBenchSource:
    told = {"source": "bigbench", "name": "snarks", "train": None, "metrics": ("accuracy",)}
    return BigBenchSource(**{**COMMON, **told, **changes})


def p3_row(i: int, where: str = "", answer: str = "\nyes") -> HubRow:
    text = f" input {i} {where}\n"
    return {"inputs_pretokenized": text, "targets_pretokenized": answer, "answer_choices": ["yes", "no "]}


def rows(task: TaskSource, hub: dict[tuple[str, str], Sequence[HubRow]], **settings: Any) -> list[dict[str, Any]]:
    """Of a made-up hub: (config, split) -> rows."""

    def fetch(name: str, config: str | None, split: str, most: int | None) -> Sequence[HubRow]:
        return list(hub[config or name, split])[:most]

    tasks = TaskSet(queries="q.pt", tasks={"task": task}, **settings)  # pyright: ignore[reportArgumentType]
    return task_rows(task, tasks, fetch, lambda text, most: text)


def of(found: list[dict[str, Any]], split: str = "test") -> list[dict[str, Any]]:
    return [row for row in found if row["split"] == split]


def hub_of(*configs: str, count: int = 10) -> dict[tuple[str, str], Sequence[HubRow]]:
    return {
        (config, split): [p3_row(i, f"{config} {split}") for i in range(count)]
        for config in configs
        for split in ("validation", "train")
    }


def test_p3_round_robin_takes_each_row_under_one_template_in_turn() -> None:
    found = rows(p3(), hub_of("d_one", "d_two"), held_back=0.2, templates="round-robin")
    assert [row["id"] for row in of(found)] == [f"d_{('one', 'two')[i % 2]}/{i}" for i in range(8)]  # two held back
    assert found[0] | {"id": 0} == {
        **{"input": "input 0 d_one validation", "output": "yes", "choices": ["yes", "no"]},
        **{"id": 0, "split": "test"},
    }
    assert [row["input"] for row in of(found, "fewshot")] == [f"input {i} d_one train" for i in range(5)]


def test_p3_all_templates_and_at_most_so_many_rows() -> None:
    found = of(rows(p3(), hub_of("d_one", "d_two"), most=3))
    assert len(found) == 6
    places = [row["id"].split("/")[1] for row in found]
    assert places == sorted(places) and len(set(places)) == 3
    assert found == of(rows(p3(), hub_of("d_one", "d_two"), most=3))  # drawn by a seed


def test_parts_and_splits_are_joined_and_the_last_rows_taken() -> None:
    task = p3(parts=("a", "b"), templates=("t",), ending="_r1")
    found = of(rows(task, hub_of("a_t_r1", "b_t_r1")))
    assert [row["input"] for row in found[9:11]] == ["input 9 a_t_r1 validation", "input 0 b_t_r1 validation"]
    task = p3(templates=("one",), split=("train",), train=None, last=6)
    found = rows(task, hub_of("d_one"), held_back=0.5)
    places = {row["id"] for row in found}
    assert places == {f"d_one/{i}" for i in (4, 5, 6)} and len(of(found, "fewshot")) == 1


def test_rows_set_apart_are_never_evaluated() -> None:
    data = [{"inputs": f"q{i}", "targets": ["a"], "multiple_choice_targets": ["a", "b"]} for i in range(40)]
    hub = {("snarks", "train"): [{**row, "multiple_choice_scores": [1, 0]} for row in data]}
    found = rows(bigbench(split=("train",)), hub)
    few = {row["input"] for row in of(found, "fewshot")}
    assert len(few) == 5 and len(of(found)) == 35 and not few & {row["input"] for row in of(found)}


def test_bigbench_fields() -> None:
    row = {
        **{"inputs": "Q: ?", "targets": ["b", "bb"], "multiple_choice_targets": ["a", "bb", "c", "c"]},
        **{"multiple_choice_scores": [0, 1, 1, 1]},
    }
    hub = {("snarks", "validation"): [row] * 2}
    (one,) = of(rows(bigbench(), hub))
    assert one["input"] == "Q: ?\nAnswer:" and one["output"] == "bb" and one["choices"] == ["a", "bb", "c"]
    assert "references" not in one
    (one,) = of(rows(bigbench(metrics=("accuracy_multiple_ans",)), hub))
    assert one["references"] == ["bb", "c", "c"]
    (one,) = of(rows(bigbench(metrics=("exact_match",)), hub))
    assert one["output"] == "b" and "references" not in one and "choices" not in one
    (one,) = of(rows(bigbench(metrics=("exact_match_multiple_ans",)), hub))
    assert one["references"] == ["b", "bb"]


def test_bbh_fields() -> None:
    bbh = BbhSource(**{**COMMON, "train": None}, source="bbh", name="web", choices=("Yes", "No"), metrics=("accuracy",))
    (one,) = of(rows(bbh, {("web", "validation"): [{"input": "lies?", "target": "No"}] * 2}))
    assert (one["input"], one["output"], one["choices"]) == ("lies?\nAnswer:", "No", ["Yes", "No"])


def test_a_changed_data_set_is_a_fault_that_names_it() -> None:
    with pytest.raises(DataError, match=r"row 0 of d_one.*inputs_pretokenized"):
        rows(p3(), {("d_one", "validation"): [{}], ("d_two", "validation"): [{}]})


def test_few_rows_without_their_answer_are_left_out_and_many_refused() -> None:
    hub = hub_of("d_one", count=40)
    task = p3(templates=("one",))
    hub["d_one", "validation"] = [p3_row(0, answer="maybe"), *hub["d_one", "validation"][1:]]
    assert len(of(rows(task, hub))) == 39
    hub["d_one", "validation"] = [p3_row(i, answer="maybe") for i in range(3)] + [p3_row(i) for i in range(37)]
    with pytest.raises(DataError, match="3 of 40"):
        rows(task, hub)


def test_long_prompts_keep_their_beginning(tmp_path, t5_directory) -> None:
    from fullrun.workspace import shortened, tokenizer_of

    tokenizer = tokenizer_of(str(t5_directory))
    assert shortened(tokenizer, "abcdef", 7) == "abcdef"
    assert shortened(tokenizer, "abcdef", 4) == "abc"  # and an end token


def test_scores_are_the_published_mean_of_metrics() -> None:
    told = [
        {"prediction": "the cats sat down", "gold": ["the cat sat down", "x"], "score": 1.0},
        {"prediction": "b", "gold": ["a", "b"], "score": 0.0},
    ]
    result = {"results": told}
    assert published_score(["accuracy"], result) == published_score(["squad"], result) == 0.5
    assert published_score(["exact_match"], result) == 0  # the first answer, to the letter
    assert published_score(["exact_match_multiple_ans"], result) == 0.5
    assert published_score(["rouge"], result) == pytest.approx((0.75 + 1) / 2)  # no stemming: cats is not cat
    same = {"results": [{"prediction": "a b c d e", "gold": ["a b c d e"], "score": 1.0}]}
    assert published_score(["bleu", "rouge"], same) == pytest.approx(1)
