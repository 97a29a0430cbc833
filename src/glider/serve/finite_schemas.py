"""JSON schemas that no finite JSON fits: a node that requires its `next`, which is such a node again.

A compiler of grammars takes them, and an answer by them has no end. Which schemas of a document have a finite instance
is the least solution of what each needs of others: all that it requires, one branch of `anyOf`, what its `$ref` leads
to. What is not understood here needs nothing, so that no schema is refused that some JSON fits.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

Place = tuple[str, ...]  # keys from the root of the document
Needs = list[list[list[Place]]]  # of each list one, and of that all
_WITHIN = ("object", "array")  # types whose instances have others within
_PLAIN = frozenset({"const", "enum", "nullable"})  # what names an instance itself


def endless_places(document: Any) -> tuple[str, str] | None:
    """A schema that needs itself again without end, and the last one on the way back to it (JSON pointers); None where
    finite JSON may fit the document."""
    if not isinstance(document, dict) or _has_other_documents(document):
        return None
    needs = dict(_reached(document))
    finite = _finite(needs)
    place, path = Place(), list[Place]()
    if place in finite:
        return None
    while place not in path:
        path.append(place)
        first = next(one for one in needs[place] if not any(finite.issuperset(alternative) for alternative in one))[0]
        place = next(one for one in first if one not in finite)
    return _pointer(place), _pointer(path[-1])


def _reached(document: dict[str, Any]) -> Iterator[tuple[Place, Needs]]:
    """What each schema needs, from the root on."""
    left, seen = [Place()], {Place()}
    while left:
        place = left.pop()
        needs = _needs(document, place)
        yield place, needs
        fresh = {one for choice in needs for alternative in choice for one in alternative} - seen
        seen |= fresh
        left += fresh


def _finite(needs: Mapping[Place, Needs]) -> set[Place]:
    """The schemas that have a finite instance, in a time that is linear in what they need."""
    users: dict[Place, list[tuple[Place, int, int]]] = defaultdict(list)
    missing: dict[tuple[Place, int, int], int] = {}
    for place, choices in needs.items():
        for number, choice in enumerate(choices):
            for other, alternative in enumerate(choice):
                missing[place, number, other] = len(set(alternative))
                for one in set(alternative):
                    users[one].append((place, number, other))
    unmet = {place: set(range(len(choices))) for place, choices in needs.items()}
    ready = deque(place for place, choices in unmet.items() if not choices)
    finite = set(ready)
    while ready:
        for user in users[ready.popleft()]:
            missing[user] -= 1
            place, number, _ = user
            if not missing[user]:
                unmet[place].discard(number)
            if not unmet[place] and place not in finite:
                finite.add(place)
                ready.append(place)
    return finite


def _needs(document: dict[str, Any], place: Place) -> Needs:
    schema = _value(document, place)
    if not isinstance(schema, dict):
        return []
    if "$ref" in schema:  # beside which older drafts know nothing else
        target = _target(document, schema["$ref"])
        return [] if target is None else [[[target]]]
    branches = {
        key: [(*place, key, str(number)) for number in range(len(value))]
        for key in ("allOf", "anyOf", "oneOf")
        if isinstance(value := schema.get(key), list) and value
    }
    needs: Needs = [[[branch]] for branch in branches.pop("allOf", [])]
    needs += [[[branch] for branch in several] for several in branches.values()]
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and all(kind in _WITHIN for kind in kinds) and not _PLAIN & schema.keys():
        alternatives = [(_properties if kind == "object" else _items)(schema, place) for kind in kinds]
        needs += [alternatives] if all(alternatives) else []  # one that needs nothing is met
    return needs


def _properties(schema: dict[str, Any], place: Place) -> list[Place]:
    """What an object must have."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return []
    required = [name for name in required if isinstance(name, str)]
    others = isinstance(schema.get("additionalProperties"), dict) and "patternProperties" not in schema
    places = [(*place, "properties", name) for name in required if name in properties]
    return [*places, *[(*place, "additionalProperties")] * (others and not properties.keys() >= set(required))]


def _items(schema: dict[str, Any], place: Place) -> list[Place]:
    """What an array must have."""
    least, first, items = schema.get("minItems", 0), schema.get("prefixItems", []), schema.get("items")
    if not isinstance(least, int) or not isinstance(first, list) or isinstance(items, list):
        return []
    places = [(*place, "prefixItems", str(number)) for number in range(min(least, len(first)))]
    return [*places, *[(*place, "items")] * (least > len(first) and isinstance(items, dict))]


def _target(document: dict[str, Any], reference: Any) -> Place | None:
    """The place of a reference within the document; None for every other one."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return None
    place = tuple(unquote(part).replace("~1", "/").replace("~0", "~") for part in reference.split("/")[1:])
    try:
        _value(document, place)
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return place


def _value(document: Any, place: Place) -> Any:
    for key in place:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def _has_other_documents(document: dict[str, Any]) -> bool:
    """Whether a schema within has an address of its own, by which its references go."""
    left = list(document.values())
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if any(isinstance(value.get(key), str) for key in ("$id", "id")):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _pointer(place: Place) -> str:
    return "/".join(["#", *(key.replace("~", "~0").replace("/", "~1") for key in place)])
