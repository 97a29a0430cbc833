"""A router from plain settings, as a command line or a file gives them."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from glider.errors import RouterError
from glider.routing.base import Router, routers
from glider.routing.preparation import Gated
from glider.routing.select import TopK, TopP


def router_from(name: str, settings: Mapping[str, Any]) -> Router:
    """The router `name` with settings in which `top_k` or `top_p` may stand for the selection of experts.

    `renormalise: false` beside `top_k` (or without it, for two experts) keeps the probabilities as weights. Methods
    that choose once for a query call `top_k` their k; `global` stands for `global_`. `abstain` says whether the base
    alone answers queries that no expert suits (default: as the router and the pool have it). Raises `RouterError` for
    an unknown router or setting.
    """
    settings = dict(settings)
    abstain = settings.pop("abstain", None)
    if not isinstance(abstain, bool | None):
        raise RouterError("abstain of true or false", repr(abstain), "Give one of them.")
    router = _selecting(name, settings)
    return router if abstain is None else Gated(router, abstain)


def _selecting(name: str, settings: Mapping[str, Any]) -> Router:
    plain = {"global_" if setting == "global" else setting: value for setting, value in settings.items()}
    known = routers.settings(name)
    _require_known(name, plain, known)
    top_k, top_p = plain.pop("top_k", None), plain.pop("top_p", None)
    whole = None if "renormalise" in known else plain.pop("renormalise", None)
    if top_p is not None and (top_k is not None or whole is not None):
        raise RouterError("top_k, with renormalise or without, or top_p", "both", "Give one of them.")
    if top_k is None and top_p is None and whole is None:
        return routers.create(name, **plain)
    if top_k is not None and whole is None and "k" in known:
        return routers.create(name, k=top_k, **plain)
    if "select" not in known:
        expected = "a router that selects experts, for top_k (--top-k), top_p (--top-p) or renormalise"
        raise RouterError(expected, name, "Leave the setting out.")
    if not isinstance(whole, bool | None):
        raise RouterError("renormalise of true or false", repr(whole), "Give one of them.")
    select = TopP(top_p) if top_p is not None else TopK(2 if top_k is None else top_k, whole is not False)
    return routers.create(name, select=select, **plain)


def _require_known(name: str, settings: Mapping[str, Any], known: set[str]) -> None:
    """Raise `RouterError` for settings that the router has not, naming those it has as a user writes them."""
    selecting = {"top_k", "top_p", "renormalise"}
    unknown = settings.keys() - known - selecting - {"argument"}
    if not unknown or routers.current(name).partition(":")[0] not in {entry.name for entry in routers}:
        return
    shorthands = selecting if "select" in known else {"top_k"} if "k" in known else set()
    written = {"global" if setting == "global_" else setting for setting in known} - {"select"} | shorthands
    expected = f"settings of {', '.join(sorted(written | {'abstain'}))}"
    remedy = _nearest(sorted(unknown)[0], written) or "Check the settings' names."
    raise RouterError(expected, f"{', '.join(sorted(unknown))} for {name}", remedy)


def _nearest(word: str, words: Collection[str]) -> str:
    near = get_close_matches(word, sorted(words), 1)
    return f"Perhaps {near[0]} is meant." if near else ""


def known_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which a result is known: those given, and the defaults that an earlier version had otherwise.

    A router whose default changed names it in `renewed`, so that a result made by the old one is not taken for its own.
    """
    head = routers.current(name).partition(":")[0]
    renewed = next((getattr(entry.make, "renewed", None) for entry in routers if entry.name == head), None)
    return {**(renewed(settings) if renewed is not None else {}), **settings}


def listed(text: str) -> list[str]:
    """The routers of a comma-separated list; a comma within parentheses belongs to a router's settings."""
    return [name for part in re.split(r",(?![^()]*\))", text) if (name := part.strip())]


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a router written as `merge(method=ties, density=0.3)`, or the name alone.

    Values are JSON, or else strings. Raises `RouterError` for another form.
    """
    form = re.fullmatch(r"(?P<name>[^(]+)\((?P<settings>[^()]*)\)", text.strip())
    if form is None and text.count("(") != text.count(")"):
        raise RouterError("settings such as merge(method=ties, density=0.3)", text, "Close each parenthesis.")
    if form is None:
        return text.strip(), {}
    settings = {}
    for part in filter(None, map(str.strip, _parts(form["settings"]))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value) or name in settings:
            got = f"{part!r} in {text}" if name not in settings else f"{name} twice in {text}"
            raise RouterError("settings such as merge(method=ties, density=0.3)", got, "Write NAME=VALUE, once each.")
        settings[name] = _value(value)
    return form["name"].strip(), settings


def _parts(text: str) -> Iterator[str]:
    """The text between commas, but for those within brackets or braces."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
