"""The constraint on one answer, and the compiler of grammars, without a server."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glider.errors import QueryError
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.serve import grammars
from glider.serve.constraint import Constraint
from glider.serve.errors import ApiError
from glider.serve.grammars import Grammar, Grammars, Schema, check

END = 1


@pytest.fixture(scope="module")
def compiler(model: RoutedModel) -> Grammars:
    return Grammars(model)


def compiled(compiler: Grammars, schema: dict[str, Any]) -> Any:
    return compiler.compile(Grammar.of_schema(Schema.of(schema, "response_format")))


def written(model: RoutedModel, matcher: Any, seed: int, most: int = 2000) -> str:
    """What a model without any knowledge writes under a constraint."""
    constraint, generator = Constraint(matcher.deep_copy(), 2), torch.Generator().manual_seed(seed)
    ids = [7, 8]
    while len(ids) < most:
        logits = torch.randn(1, 259, generator=generator)
        token = int(constraint.after(torch.tensor([ids]), constraint.before(torch.tensor([ids]), logits)).argmax())
        if token == END:
            return model.tokenizer.decode(ids[2:])
        ids.append(token)
    raise AssertionError("no end")


SCALARS = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-c]{1,4}é?$"},
        {"type": "string", "format": "date"},
        {"enum": ["x", 3, None, {"a": [1]}]},
        {"const": 'quote " backslash \\ 雪'},
        {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
    ]
)


def objects(schemas: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b c", "ü", '"'])
    return st.dictionaries(names, schemas, min_size=1, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties))).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda below: (
        objects(below)
        | below.map(lambda one: {"type": "array", "items": one, "maxItems": 2})
        | st.lists(below, min_size=1, max_size=2).map(lambda ones: {"anyOf": ones})
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_whatever_is_written_is_of_the_schema(
    schema: dict[str, Any], seed: int, compiler: Grammars, model: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "check", lambda *_: None)  # a process for each of them would take long
    jsonschema.validate(json.loads(written(model, compiled(compiler, schema), seed)), schema)


def test_tokens_that_others_force_are_not_taken(compiler: Grammars) -> None:
    """Where they leave no token that is allowed, theirs is not followed."""
    constraint = Constraint(compiled(compiler, {"enum": ["a"]}).deep_copy(), 0)
    logits = constraint.before(torch.empty(1, 0, dtype=torch.long), torch.zeros(1, 259))
    allowed = logits.isfinite()[0].nonzero().flatten().tolist()
    assert len(allowed) == 1  # the quotation mark
    forced = torch.full_like(logits, -torch.inf)
    forced[0, END] = 0
    assert constraint.after(torch.empty(1, 0), forced).argmax() == allowed[0]
    revived = torch.where(logits.isfinite(), logits - 5, torch.finfo(torch.float32).min)
    assert constraint.after(torch.empty(1, 0), revived).isfinite().sum() == 1


def test_a_token_that_is_not_allowed_ends_it(compiler: Grammars) -> None:
    constraint = Constraint(compiled(compiler, {"enum": ["a"]}).deep_copy(), 0)
    with pytest.raises(QueryError, match="form that was asked for"):
        constraint.before(torch.tensor([[9, 9]]), torch.zeros(1, 259))


def test_answers_of_one_grammar_do_not_share_their_place(compiler: Grammars, model: RoutedModel) -> None:
    matcher = compiled(compiler, {"enum": ["a", "b"]})
    assert {written(model, matcher, seed) for seed in range(12)} == {'"a"', '"b"'}
    assert compiled(compiler, {"enum": ["a", "b"]}) is matcher


def test_the_check_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, hungry = Schema('{"type": "null"}', "a"), Schema('{"type": "integer", "multipleOf": 999999937}', "b")
    check([fine, fine], "a")
    with pytest.raises(ApiError) as caught:
        check([fine, hungry, fine], "a")
    assert (caught.value.status, caught.value.param) == (400, "b")
    monkeypatch.setattr(grammars.grammar_child, "__file__", "/nowhere.py")
    with pytest.raises(ApiError) as caught:
        check([fine], "a")
    assert caught.value.status == 500


def test_a_base_without_an_end_cannot_keep_to_a_form(llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        def __init__(self) -> None:
            base = load_base(str(llama_directory))
            self.model, self.tokenizer, self.encoder = base.model, base.tokenizer, self

        def ends(self) -> frozenset[int]:
            return frozenset()

    with pytest.raises(ApiError, match="no end token"):
        compiled(Grammars(Bare()), {"enum": ["a"]})  # pyright: ignore[reportArgumentType]
