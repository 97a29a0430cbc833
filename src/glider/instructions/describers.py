"""Describers, which write the one sentence that names a task: a registry, and the resulting descriptions.

A describer only writes; its text is cleaned, bounded and cached here. The text is embedded and printed, never followed
as an instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from glider.config import Config, faults
from glider.errors import ConfigError, DescriberError
from glider.instructions.cache import Cache, key_of
from glider.instructions.cleaning import LONGEST, Nonsense, clean, printable
from glider.instructions.prompts import Pair, Prompt, prompt_for
from glider.progress import Tick
from glider.registry import Registry
from glider.routing.condition import Described

_KIND = "description"


@dataclass(frozen=True)
class Written:
    """A describer's text for one prompt, or why there is none; tokens and cost as far as known."""

    text: str | None = None
    fault: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


@runtime_checkable
class Describer(Protocol):
    """Frozen settings of a way to describe a task."""

    @property
    def name(self) -> str:
        """The registry's name with its argument, as `openai:gpt-4o-mini`."""
        ...

    @property
    def makes(self) -> dict[str, Any] | None:
        """Everything the text depends on besides the prompt (JSON values); None for a describer that reads no
        prompt."""
        ...

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        """Answer each prompt, in order. A failure is a `Written` with its fault, not an exception."""
        ...


describers: "Registry[Describer]" = Registry(
    "describer",
    "glider.describers",
    ("glider.instructions.describers", "glider.instructions.openai_describer", "glider.instructions.local_describer"),
    DescriberError,
)
describer = describers.register


@dataclass(frozen=True)
class Task:
    """A task to describe: its examples (input, output), or else the text of one query."""

    examples: tuple[Pair, ...] = ()
    text: str | None = None


def load_describer(name: str, **settings: Any) -> Describer:
    """A describer by its registry name, such as `openai:gpt-4o-mini`.

    Raises `DescriberError` for an unknown name, `ConfigError` for settings that do not fit, `MissingDependency` for a
    package that is not installed.
    """
    try:
        return describers.create(name, **settings)
    except ValidationError as fault:
        raise ConfigError(f"valid settings of the describer {name}", faults(fault), "Mend them.") from fault


def describe_tasks(
    describer: Describer,
    tasks: Sequence[Task],
    *,
    cache: Cache | None = None,
    prompt: Prompt | None = None,
    tick: Tick = lambda done: None,
) -> list[Described]:
    """Describe tasks, each once: cached descriptions are reused, and equal tasks share one prompt.

    `prompt` is by default the one that suits each task's examples. A failure is a fault in the result.
    """
    if describer.makes is None:
        written = describer.write([""] * len(tasks), tick)
        return [Described(one.text, describer.name, fault=one.fault) for one in written]
    prompts = [prompt or prompt_for(task.examples) for task in tasks]
    texts = [one.render(task.examples, task.text) for one, task in zip(prompts, tasks, strict=True)]
    names = [one.former or one.name for one in prompts]
    keys = [key_of(_KIND, describer.makes, name, text) for name, text in zip(names, texts, strict=True)]
    known = _recall(cache, keys)
    first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}  # one task for each missing key
    order = sorted(first.values())
    replies = _write(describer, [texts[i] for i in order], tick)
    fresh = {
        keys[i]: _described(reply, texts[i], prompts[i], describer.name)
        for i, reply in zip(order, replies, strict=True)
    }
    if cache is not None:
        entries = {key: one.text.encode("utf8") for key, one in fresh.items() if one.text is not None}
        cache.put(_KIND, entries)
    results = []
    for i, key in enumerate(keys):
        if key in fresh:
            one = fresh[key]
            results.append(one if first[key] == i else replace(one, tokens_in=0, tokens_out=0, cost=0.0))
        else:
            results.append(Described(known[key], describer.name, prompts[i].name, cached=True))
    return results


@describer("given")
class FixedText(Config):
    """The given text, for every task."""

    argument: str

    @property
    def name(self) -> str:
        return "given"

    @property
    def makes(self) -> dict[str, Any] | None:
        return None

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        return [Written(self.argument)] * len(prompts)


@describer("none")
class Nobody(Config):
    """No description: a query's own text is embedded."""

    @property
    def name(self) -> str:
        return "none"

    @property
    def makes(self) -> dict[str, Any] | None:
        return None

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        return [Written()] * len(prompts)


def _write(describer: Describer, prompts: Sequence[str], tick: Tick) -> list[Written]:
    if not prompts:
        return []
    try:
        return describer.write(prompts, tick)
    except Exception as fault:  # another package's describer must not take a batch down
        reason = (str(fault).splitlines() or [""])[0]
        return [Written(fault=f"{describer.name}: {type(fault).__name__} {reason}")] * len(prompts)


def _recall(cache: Cache | None, keys: Sequence[bytes]) -> dict[bytes, str]:
    """Cached descriptions; an entry that is not a clean sentence is ignored."""
    if cache is None:
        return {}
    known = {}
    for key, value in cache.get(dict.fromkeys(keys)).items():
        text = value[: 4 * LONGEST + 4].decode("utf8", "replace")
        if text and printable(text, LONGEST) == text:
            known[key] = text
    return known


def _described(written: Written, text: str, prompt: Prompt, source: str) -> Described:
    spent = {"tokens_in": written.tokens_in, "tokens_out": written.tokens_out, "cost": written.cost}
    if written.text is None:
        return Described(None, source, prompt.name, written.fault or f"{source} wrote nothing", **spent)
    try:
        return Described(clean(written.text, text, prompt.instruction), source, prompt.name, **spent)
    except Nonsense as nonsense:
        return Described(None, source, prompt.name, f"{source} wrote {nonsense}", **spent)
