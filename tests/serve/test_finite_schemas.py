"""Which JSON schemas have a finite instance: what is refused has none, and what has one is not refused."""

import itertools
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.serve.errors import ApiError
from glider.serve.finite_schemas import endless_places
from glider.serve.grammars import Schema, check


def node(following: Any, required: tuple[str, ...] = ("value", "next"), **more: Any) -> dict[str, Any]:
    properties = {"value": {"type": "integer"}, "next": following}
    return {"type": "object", "properties": properties, "required": list(required), **more}


AGAIN = {"$ref": "#/$defs/node"}
NULL = {"type": "null"}


def document(schema: Any, **others: Any) -> dict[str, Any]:
    return {"$defs": {"node": schema, **others}, "$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    "schema",
    [
        document(node({"anyOf": [AGAIN, NULL]})),
        document(node({"oneOf": [NULL, AGAIN]})),
        document(node(AGAIN, ("value",))),
        document(node({"type": "array", "items": AGAIN})),
        document(node({"type": "array", "items": AGAIN, "minItems": 0})),
        document(node(AGAIN, ("value",), additionalProperties=AGAIN)),
        document({**node(AGAIN), "type": ["object", "null"]}),
        document({key: value for key, value in node(AGAIN).items() if key != "type"}),  # a text fits it
        document({**node(AGAIN), "enum": [None]}),
        document({"anyOf": [node(AGAIN), {"const": 1}]}),
        document({"type": "array", "prefixItems": [NULL, AGAIN], "minItems": 1}),
        document({"type": "array", "prefixItems": [NULL], "items": AGAIN, "minItems": 1}),
        document({"type": "object", "properties": {"next": AGAIN}}),
        document({"type": "object", "required": ["next"]}),
        document({**node(AGAIN), "properties": {}, "patternProperties": {"^": NULL}, "additionalProperties": AGAIN}),
        document(node({"$ref": "http://127.0.0.1/other"})),
        document(node({"$ref": "#/$defs/nowhere"})),
        document(node({"$ref": "#node"})),
        document(node({"$ref": "#/$defs/node", "$id": "http://127.0.0.1/x"})),  # its references go elsewhere
        document(node({"$ref": "#/$defs/a~1b%20c"}), **{"a/b c": NULL}),
        {"$ref": "#/$defs/node", "$defs": {"node": NULL}, **node({"$ref": "#"})},  # beside it older drafts see nothing
        {},
        node({}),
        True,
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_that_ends_is_taken(schema: Any) -> None:
    assert endless_places(schema) is None


@pytest.mark.parametrize(
    ("schema", "places"),
    [
        (document(node(AGAIN)), ("#/$defs/node", "#/$defs/node/properties/next")),
        (node({"$ref": "#"}), ("#", "#/properties/next")),
        (document(node({"anyOf": [AGAIN, node(AGAIN)]})), ("#/$defs/node", "#/$defs/node/properties/next/anyOf/0")),
        (document({"type": "array", "items": AGAIN, "minItems": 2}), ("#/$defs/node", "#/$defs/node/items")),
        ({"type": "array", "prefixItems": [NULL, {"$ref": "#"}], "minItems": 2}, ("#", "#/prefixItems/1")),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["a"]}, ("#", "#/additionalProperties")),
        (document({"allOf": [{}, node(AGAIN)]}), ("#/$defs/node", "#/$defs/node/allOf/1/properties/next")),
        (document(node({"$ref": "#/$defs/a~1b"}), **{"a/b": AGAIN}), ("#/$defs/node", "#/$defs/a~1b")),
        ({"type": "object", "properties": {"tree": document(node(AGAIN))["$defs"]["node"]}, "required": ["tree"],
          "$defs": {"node": node(AGAIN)}}, ("#/$defs/node", "#/$defs/node/properties/next")),
        ({"type": ["object", "array"], "properties": {"a": {"$ref": "#"}}, "required": ["a"], "items": {"$ref": "#"},
          "minItems": 1}, ("#", "#/properties/a")),
    ],
    ids=str,
)  # fmt: skip
def test_one_without_end_is_told_where_it_comes_back(schema: Any, places: tuple[str, str]) -> None:
    """Its answers went on until `max_tokens` cut them."""
    assert endless_places(schema) == places
    with pytest.raises(
        ApiError, match=f"no finite JSON fits it: {places[0]} needs .* by {places[1]}".replace("$", r"\$")
    ):
        check([Schema.of(NULL, "tools.0"), Schema.of(schema, "tools.1")], "tools")


VALUES: list[Any] = [None, 1, "a", [], {}]
for _ in range(2):  # of up to two levels more
    VALUES += [[one] for one in VALUES] + [[None, one] for one in VALUES]
    VALUES += [{name: one} for name in "ab" for one in VALUES[:40]]
VALUES += [dict(zip("ab", pair, strict=True)) for pair in itertools.product(VALUES[:12], repeat=2)]
REFERENCES = st.sampled_from(["#", "#/$defs/x", "#/$defs/y"]).map(lambda place: {"$ref": place})
SCALARS = st.sampled_from([{"type": "null"}, {"type": "integer"}, {"const": "a"}, {"type": ["string", "object"]}])


def larger(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("ab"), below, min_size=1)},
        optional={"required": st.sampled_from([["a"], ["b"], ["a", "b"]]), "additionalProperties": below},
    )
    arrays = st.fixed_dictionaries(
        {"type": st.sampled_from(["array", ["array", "null"]])},
        optional={
            "items": below,
            "minItems": st.integers(0, 2),
            "prefixItems": st.lists(below, min_size=1, max_size=2),
        },
    )
    branches = st.lists(below, min_size=1, max_size=2)
    return objects | arrays | branches.map(lambda some: {"anyOf": some}) | branches.map(lambda some: {"allOf": some})


SCHEMAS = st.recursive(REFERENCES | SCALARS, larger, max_leaves=4)


@settings(max_examples=150, deadline=None)
@given(root=larger(SCHEMAS), x=SCHEMAS, y=SCHEMAS)
def test_nothing_fits_what_is_refused(root: dict[str, Any], x: Any, y: Any) -> None:
    schema = {**root, "$defs": {"x": x, "y": y}}
    if endless_places(schema) is None:
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        try:
            assert not validator.is_valid(value), (schema, value)
        except RecursionError:  # a reference that leads to itself at once
            return


def test_long_chains_are_followed_to_their_end() -> None:
    links = {f"d{n}": node({"$ref": f"#/$defs/d{n + 1}"}) for n in range(3000)}
    assert endless_places({"$defs": {**links, "d3000": NULL}, "$ref": "#/$defs/d0"}) is None
    endless = {"$defs": {**links, "d3000": {"$ref": "#/$defs/d9"}}, "$ref": "#/$defs/d0"}
    assert endless_places(endless) == ("#/$defs/d9", "#/$defs/d3000")


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": []},
        {"anyOf": []},
        {"type": []},
        {"type": [[]]},
        {"type": [{}, "object"]},
        {"type": "object", "required": [[]]},
    ],
)
def test_what_is_no_schema_is_left_to_the_compiler(schema: dict[str, Any]) -> None:
    assert endless_places(schema) is None
