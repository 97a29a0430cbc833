"""Names to implementations: what is known, what is refused, what other packages add."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from glider.errors import GliderWarning, RouterError
from glider.registry import Registry
from glider.routing.base import Router, routers
from glider.routing.methods.glider import Glider

OUTSIDE = '''
"""A router of another package."""
from dataclasses import dataclass
from glider.routing.base import router

@router("outside", paper="arXiv:0000.00000")
@dataclass(frozen=True)
class Outside:
    strength: float = 1.0
    def prepare(self, pool): ...
    def condition(self, prepared, asked): ...
    def route(self, site, x, condition): ...
'''


@dataclass(frozen=True)
class Plain:
    size: int = 1


@dataclass(frozen=True)
class Named:
    argument: str


@pytest.fixture
def registry() -> Registry:
    fresh: Registry = Registry("thing", "glider.no_such_group", (), RouterError)
    fresh.register("plain", paper="arXiv:1")(Plain)
    fresh.register("named")(Named)
    return fresh


def test_a_name_makes_its_implementation_with_settings(registry: Registry) -> None:
    assert registry.create("plain") == Plain()
    assert registry.create("plain", size=3) == Plain(3)


def test_an_argument_follows_a_colon_and_may_hold_another(registry: Registry) -> None:
    assert registry.create("named:a:b") == Named("a:b")


@pytest.mark.parametrize("name", ["plane", "", "Plain", "other:plain"])
def test_an_unknown_name_lists_the_known(registry: Registry, name: str) -> None:
    with pytest.raises(RouterError, match="a thing of named, plain; got"):
        registry.create(name)


def test_a_missing_argument_is_an_error(registry: Registry) -> None:
    with pytest.raises(RouterError, match="named:NAME"):
        registry.create("named")


def test_an_argument_for_what_takes_none_is_an_error(registry: Registry) -> None:
    with pytest.raises(RouterError, match="argument for plain:x"):
        registry.create("plain:x")


def test_unknown_settings_are_named_beside_the_known(registry: Registry) -> None:
    with pytest.raises(RouterError, match="settings of size; got colour, weight for plain"):
        registry.create("plain", weight=1, colour=2)


def test_a_taken_name_is_refused_and_keeps_its_owner(registry: Registry) -> None:
    with pytest.raises(RouterError, match="plain, which is taken"):
        registry.register("plain")(Named)
    assert registry.create("plain") == Plain()
    registry.register("plain")(Plain)


def test_any_callable_may_be_registered(registry: Registry) -> None:
    def made(size: int = 2) -> Plain:
        return Plain(size)

    registry.register("made")(made)
    assert registry.create("made", size=5) == Plain(5)


def test_entries_come_in_the_order_of_names_with_their_papers(registry: Registry) -> None:
    assert [(entry.name, entry.paper) for entry in registry] == [("named", None), ("plain", "arXiv:1")]


def test_the_routers_of_this_package_are_known() -> None:
    assert {"glider", "phatgoose", "single", "base"} <= {entry.name for entry in routers}
    for entry in routers:
        made = routers.create(f"{entry.name}:x" if entry.name in ("single", "multitask") else entry.name)
        assert isinstance(made, Router)
    assert routers.create("glider", p=0.5) == Glider(p=0.5)


def test_a_module_is_imported_when_a_name_is_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_things.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    lazy: Registry = Registry("thing", "glider.no_such_group", ("lazy_things",), RouterError)
    with pytest.raises(RuntimeError, match="imported"):
        lazy.create("anything")


def installed(directory: Path, name: str, group: str, source: str) -> None:
    """A package with one module, which is an entry point of that name."""
    (directory / f"{name}_package.py").write_text(source)
    info = directory / f"{name}_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_package\n")


def test_an_installed_package_adds_its_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "outside", "glider.routers", OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    list(routers)
    monkeypatch.setattr(routers, "_entries", dict(routers._entries))
    monkeypatch.setattr(routers, "_loaded", False)
    made = routers.create("outside", strength=2.0)
    assert (type(made).__name__, made.strength) == ("Outside", 2.0)  # pyright: ignore
    assert "outside" in {entry.name for entry in routers}


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_package", "ModuleNotFoundError: No module named"), ("raise SystemExit(3)", "SystemExit: 3")],
)
def test_a_package_that_cannot_be_imported_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    """One that ended its own import ended every command."""
    installed(tmp_path, "failing", "glider.failing", source)
    monkeypatch.syspath_prepend(tmp_path)
    things: Registry = Registry("thing", "glider.failing", (), RouterError)
    with pytest.warns(GliderWarning, match=f"thing failing of failing-package 1.0 is left out: {reason}"):
        assert list(things) == []


class HasSize(Protocol):
    """A type that pydantic cannot check: `isinstance` refuses it."""

    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class Foreign:
    """As another package may write it."""

    inner: HasSize | None = None
    copy: int = 1
    depth: int = 1


def test_settings_of_another_package_may_have_any_name_and_type(registry: Registry) -> None:
    """Their types once became fields of one pydantic model, which warns of `copy` and cannot hold a plain protocol."""
    registry.register("foreign")(Foreign)
    assert registry.create("foreign", inner=Plain(), copy=2) == Foreign(Plain(), 2)
    with pytest.raises(RouterError, match=r"copy: .* \(got x\); depth: .* \(got y\)"):
        registry.create("foreign", copy="x", depth="y")
