"""A condition on its way to a worker, as a row: to the bit, or not at all."""

import json
from typing import Any

import pytest
import torch

from glider.engines.vllm.rows import Row, salt
from glider.engines.vllm.step import Step
from glider.errors import QueryError
from glider.routing.condition import Condition, Settled


def settled(*pairs: tuple[int, float]) -> Condition:
    experts, weights = zip(*pairs, strict=True)
    return Condition(1, settled=Settled(torch.tensor([experts]), torch.tensor([weights])))


@pytest.mark.parametrize(
    "condition",
    [
        Condition.of(torch.tensor([[0.1, -torch.inf, 0.7]]), torch.tensor([103.0])),
        Condition.local(1),
        settled((2, 1.0)),
        settled((2, 0.25), (0, 0.75), (1, 0.0)),
    ],
)
def test_a_row_comes_back_from_json_as_it_was_to_the_bit(condition: Condition) -> None:
    row = Row.of(condition)
    assert row is not None
    got = Row.decoded(json.loads(json.dumps(row.encoded)), 3)
    assert got == row
    again = got.condition
    assert again.digest(0) == condition.digest(0) or not condition.all_routed
    if condition.term is not None:
        assert again.term is not None and torch.equal(again.term, condition.term)


def test_a_bare_condition_has_no_row_and_a_broken_one_is_refused() -> None:
    assert Row.of(Condition.nobody(1)) is None
    with pytest.raises(QueryError, match="finite"):
        Row.of(Condition.of(torch.tensor([[torch.nan, 0.0]]), torch.ones(1)))


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {"term": [1.0]}, {"term": [float("nan")] * 3}, {"term": [float("inf"), 0.0, 0.0]}, {"term": "abc"}),
        *({"experts": [3], "weights": [1.0]}, {"experts": [0], "weights": []}, {"experts": ["0"], "weights": [1.0]}),
        {"term": [1, 2, 3]},
    ],
)
def test_what_is_no_row_is_left_to_the_base_and_raises_nothing(value: Any) -> None:
    assert Row.decoded(value, 3) is None
    step = Step(3)
    step.prepare(["a"], [value], [4])
    assert step.segments(4, torch.device("cpu")) == (0, ())


def test_salts_tell_conditions_pools_routers_and_clients_apart() -> None:
    row, other = Row((0.5, 1.0)), Row((0.5, 1.0 + 2**-23))
    parts = ("pool", "glider")
    salts = [
        *(salt(row, parts, None), salt(other, parts, None), salt(row, ("pool", "arrow"), None)),
        *(
            salt(row, ("other", "glider"), None),
            salt(row, parts, "mine"),
            salt(None, parts, "mine"),
            salt(Row(), parts, None),
        ),
    ]
    assert len(set(salts)) == len(salts) and None not in salts
    assert salt(row, parts, None) == salt(Row((0.5, 1.0)), parts, None)
    assert salt(None, parts, None) is None
    stolen = salts[0]
    assert salt(None, parts, stolen) not in salts and salt(row, parts, stolen) not in salts
