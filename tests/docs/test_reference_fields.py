"""The tables of settings and of files say of every field what it is."""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from .snippets import page

MARK = re.compile(r"<!-- fields: ([\w.]+):(\w+) -->")
LISTED = {
    place: getattr(import_module(place[0]), place[1])
    for name in ("settings", "files")
    for place in MARK.findall(page(f"reference/{name}.md"))
}


def test_the_pages_list_models() -> None:
    assert len(LISTED) > 20


@pytest.mark.parametrize("model", LISTED.values(), ids=lambda model: model.__name__)
def test_every_field_has_a_description(model: type[BaseModel]) -> None:
    bare = [name for name, field in model.model_fields.items() if not (field.description or "").endswith(".")]
    assert not bare, f"{model.__name__} lacks descriptions (sentences) of {', '.join(bare)}"


@pytest.mark.parametrize("model", LISTED.values(), ids=lambda model: model.__name__)
def test_models_inside_a_listed_one_are_listed_too(model: type[BaseModel]) -> None:
    inside = {one for field in model.model_fields.values() for one in _models(field.annotation)}
    assert inside <= set(LISTED.values())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
