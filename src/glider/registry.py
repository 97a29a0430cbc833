"""Names to implementations: one registry a kind, open to other packages through an entry point group."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic_core import SchemaError

from glider.config import faults
from glider.errors import GliderError, GliderWarning

T = TypeVar("T")
Maker = TypeVar("Maker", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered implementation and where it comes from."""

    name: str
    make: Callable[..., T]
    paper: str | None


class Registry(Generic[T]):
    """Implementations of one kind by name.

    The modules of the packages `homes` are imported on first use (each registers what it defines, and a new file is all
    that a new implementation takes); then the entry point group `group`, so that an installed package can add its own.

    Arguments:
        kind: What they are called in messages.
        group: Entry point group of installed packages.
        homes: Packages of the built-in ones.
        error: What unknown names raise.

    Raises: `error` for a name that is unknown or taken, and for settings that an implementation does not have.
    """

    def __init__(self, kind: str, group: str, homes: tuple[str, ...], error: type[GliderError]):
        self.kind, self.group, self.homes, self.error = kind, group, homes, error
        self._entries: dict[str, Entry[T]] = {}
        self._aliases: dict[str, str] = {}
        self._followers: list[Callable[[Entry[T]], object]] = []
        self._loaded = False

    def register(self, name: str, paper: str | None = None) -> Callable[[Maker], Maker]:
        """Put a class (or any maker) under a name.

        Arguments:
            name: The name in specifications such as "merge(method=ties)".
            paper: Where the method comes from, for `glider routers`.

        Returns: a decorator that gives back what it decorates.

        Raises: the registry's error for a name that is taken.
        """

        def put(make: Maker) -> Maker:
            if name in self._entries and self._entries[name].make is not make:
                raise self.error(f"a new {self.kind} name", f"{name}, which is taken", "Choose another name.")
            if name not in self._entries:
                self._entries[name] = entry = Entry(name, make, paper)
                for follow in self._followers:
                    follow(entry)
            return make

        return put

    def alias(self, name: str, of: str) -> None:
        """Let a former name stand for the current one; it is not listed."""
        self._aliases[name] = of

    def current(self, name: str) -> str:
        """The current form of a name, with its argument."""
        self._load()
        head, colon, argument = name.partition(":")
        return self._aliases.get(head, head) + colon + argument

    def former(self, name: str) -> str:
        """The first name of an implementation, with its argument, by which results are identified."""
        head, colon, argument = self.current(name).partition(":")
        return next((old for old, new in self._aliases.items() if new == head), head) + colon + argument

    def follow(self, follower: Callable[[Entry[T]], object]) -> None:
        """Call `follower` with every entry: with those there are now, and with each that is registered later."""
        present = list(self)
        self._followers.append(follower)
        for entry in present:
            follower(entry)

    def create(self, name: str, **settings: Any) -> T:
        """Make the implementation `name`; `name:argument` hands the argument over as `argument`.

        Raises the registry's error for an unknown name (listing the known), an unknown setting, or a value of another
        type than a dataclass, or a maker with a signature of its own, gives its setting (others check theirs
        themselves).
        """
        head, colon, argument = self.current(name).partition(":")
        if (entry := self._entries.get(head)) is None:
            near = get_close_matches(head, sorted(self._entries), 1)
            remedy = f"Check the spelling; perhaps {near[0]} is meant." if near else "Check the spelling."
            raise self.error(f"a {self.kind} of {', '.join(sorted(self._entries))}", repr(name), remedy)
        if colon:
            settings["argument"] = argument
        parameters = signature(entry.make).parameters
        known = set(parameters)
        argument_needed = "argument" in known and parameters["argument"].default is Parameter.empty
        required = argument_needed and "argument" not in settings
        unknown = settings.keys() - known
        if required or unknown:
            got = f"{name} without one" if required else f"{', '.join(sorted(unknown))} for {name}"
            remedy = f"Write {head}:NAME." if required else "Check the settings' names."
            expected = "an argument after a colon" if required else f"settings of {', '.join(sorted(known)) or 'none'}"
            raise self.error(expected, got, remedy)
        if wrong := _unfit(entry.make, settings):
            raise self.error(f"settings of {head} of their types", wrong, "Mend the settings.")
        return entry.make(**settings)

    def settings(self, name: str) -> set[str]:
        """Names of the settings of an implementation; none for an unknown name."""
        entry = self._entries.get(self.current(name).partition(":")[0])
        return set(signature(entry.make).parameters) - {"argument"} if entry else set()

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True  # a module may look the registry up while it is imported
            try:
                for home in self.homes:
                    for module in iter_modules(getattr(import_module(home), "__path__", ())):
                        import_module(f"{home}.{module.name}")
            except BaseException:
                self._loaded = False
                raise
            for point in entry_points(group=self.group):
                try:
                    point.load()
                except (Exception, SystemExit) as fault:  # another package's fault must not take every command down
                    warnings.warn(_plugin_fault(self.kind, point, fault), GliderWarning, stacklevel=2)


def _plugin_fault(kind: str, point: EntryPoint, fault: BaseException) -> str:
    """What is wrong with a plug-in, on one line."""
    owner = "an unnamed distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    reason = " ".join(f"{type(fault).__name__}: {fault}".split())
    return f"the {kind} {point.name} of {owner} is left out: {reason}. Upgrade or uninstall that distribution."


def _unfit(make: Any, settings: dict[str, Any]) -> str:
    """The faults of settings that are not of the types which a dataclass or a `__signature__` gives them, on one line;
    empty where all fit.

    A type that pydantic cannot check is left to the maker, and so is a pydantic model, which checks its own.
    """
    parameters = signature(make).parameters
    checks_itself = isinstance(make, type) and issubclass(make, BaseModel)
    if checks_itself or not (is_dataclass(make) or hasattr(make, "__signature__")):
        return ""
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    wrong = []
    for name, value in settings.items():
        kind = parameters[name].annotation
        if kind is Parameter.empty or isinstance(kind, str):
            continue
        fields: dict[str, Any] = {"setting": (kind, Field(alias=name))}  # any name may be a setting's, even `copy`
        try:
            create_model("Settings", __config__=config, **fields).model_validate({name: value})
        except ValidationError as fault:
            wrong.append(faults(fault))
        except (PydanticUserError, SchemaError):
            continue
    return "; ".join(wrong)
