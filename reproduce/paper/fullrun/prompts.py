"""The templates of promptsource 0.2.3, read from its files and rendered as it renders them.

The package itself is not run (it wants an older Python): it is where the files are. Templates are text of another
project, so they run in Jinja's sandbox.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from glider.errors import DataError, MissingDependency

VERSION = "0.2.3"
_COMMAND = f"pip install --no-deps --ignore-requires-python promptsource=={VERSION}"
_LONGEST = 2048  # characters of a field, beyond which promptsource cuts it
_BREAK = "|||"  # between input and answer, and between choices
_GUARD = "\ufdd0" * 32  # in place of a break within a row's own text; as long as promptsource's, so that cuts agree


@dataclass(frozen=True)
class Rendered:
    """A row as one template shows it."""

    input: str
    output: str
    choices: tuple[str, ...] | None


@dataclass(frozen=True)
class Prompt:
    """One template. `answer_choices` makes the choices of a row; None for open answers."""

    name: str
    jinja: str
    answer_choices: str | None = None
    original_task: bool = True

    def render(self, row: Mapping[str, Any], seed: str) -> Rendered | None:
        """The row under this template, what the template draws at random drawn by the seed.

        None where the template has nothing to ask of the row. Raises `KeyError` for a field that the row lacks.
        """
        fields = {name: _guarded(value) for name, value in row.items()}
        chance = random.Random(seed)
        choices = None if self.answer_choices is None else _split(_filled(self.answer_choices, fields, chance))
        # promptsource cuts every field that is printed, and so does the published evaluation, which takes its default
        cut = self.jinja.replace("}}", f" | string | truncate({_LONGEST}) }}}}")
        parts = _split(_filled(cut, {**fields, "answer_choices": choices}, chance))
        if len(parts) != 2:
            return None
        return Rendered(_whole(parts[0]), _whole(parts[1]), None if choices is None else tuple(map(_whole, choices)))


def read_prompts(directory: str) -> dict[str, Prompt]:
    """The templates of a data set by name, such as those of `hotpot_qa/fullwiki`, in the order of their names.

    Raises `MissingDependency` without promptsource, `DataError` for another version or without such a data set.
    """
    file = _home() / "templates" / directory / "templates.yaml"
    if not file.is_file():
        raise DataError(f"templates of {directory} in promptsource {VERSION}", "none", "Check the name.")
    return parse_prompts(file.read_text("utf8"))


def parse_prompts(text: str) -> dict[str, Prompt]:
    """The templates of a file in promptsource's form."""
    told = yaml.load(text, _Loader)  # a safe loader with two tags more
    prompts = [
        Prompt(one["name"], one["jinja"], one["answer_choices"], bool(one["metadata"]["original_task"]))
        for one in told["templates"].values()
    ]
    return {prompt.name: prompt for prompt in sorted(prompts, key=lambda prompt: prompt.name)}


class _Loader(yaml.SafeLoader):
    """YAML whose templates are plain mappings."""


def _mapping(loader: _Loader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _home() -> Path:
    found = find_spec("promptsource")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("promptsource", "render data sets by its templates", _COMMAND)
    try:
        installed = version("promptsource")
    except PackageNotFoundError:
        installed = "an unknown version"
    if installed != VERSION:
        raise DataError(f"promptsource {VERSION}", installed, f"Run `{_COMMAND}`.")
    return Path(found.submodule_search_locations[0])


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined, pass_context
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined)
    environment.globals["zip"] = zip
    environment.filters["choice"] = pass_context(lambda context, items: context["chance"].choice(list(items)))
    environment.filters["most_frequent"] = _most_frequent
    return environment


def _filled(text: str, fields: Mapping[str, Any], chance: random.Random) -> str:
    from jinja2 import UndefinedError

    try:
        return _environment().from_string(text).render(**fields, chance=chance)
    except UndefinedError as fault:
        raise KeyError(str(fault)) from fault


def _most_frequent(items: list[Any]) -> list[Any]:
    most = max((items.count(item) for item in items), default=0)
    return [item for item in dict.fromkeys(items) if items.count(item) == most]


def _guarded(value: Any) -> Any:
    return value.replace(_BREAK, _GUARD) if isinstance(value, str) else value


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(_BREAK)]


def _whole(text: str) -> str:
    return text.replace(_GUARD, _BREAK)
