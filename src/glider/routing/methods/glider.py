"""GLIDER: a global term from the query's instruction, a local one from every token (arXiv 2410.07172)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from inspect import Parameter, Signature, signature
from typing import Any

from glider.errors import RouterError
from glider.registry import Entry
from glider.routing.base import Router, router
from glider.routing.compose import Composed
from glider.routing.global_part import GlobalPart
from glider.routing.local_scores.base import LocalScore, local_scores
from glider.routing.select import Select, TopK

GATES = "gates"
_LOCAL_FIELDS = ("local", "local_settings")


@router("glider", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class Glider(Composed):
    """score = alpha * global_e + std(x) . std(v_e) / sqrt(D), alpha = gamma * [max global > p] + beta.

    Arguments:
        select: Which experts are kept for a token.
        global_: Name of the global signal.
        p, gamma, beta: Constants of alpha.
        local_scale: Of gates: "width" divides by sqrt(D), "experts" is the paper's cosine over sqrt(E).
        local: Name of the local score.
        local_settings: Its settings.

    Raises: `RouterError` for settings that do not fit, and from `prepare` where the pool lacks what they need.

    `global_` names the signal: `instruction` is the paper's cosine(g_e, q) (section 4.2). What is left at None is the
    pool's calibration, or without one the paper's: `instruction`, 100, 3, and the threshold known for the embedder.
    Global scores and alpha belong to one query each. `local` names the local score, with `local_settings`;
    `glider+arrow` is the same over Arrow's score, and so on for every registered one.
    """

    select: Select = TopK(2)
    global_: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None
    local_scale: str | None = (
        None  # of the gates: width (the published code, the default) or experts (the paper's text)
    )
    local: str = GATES
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def abstains(self) -> bool:
        """Whether it uses verdicts by itself: where no constant of alpha is given, which are the paper's method."""
        return self.p is None and self.gamma is None and self.beta is None

    @property
    def registered_as(self) -> str:
        """The registry's name."""
        return "glider" if self.local == GATES else f"glider+{self.local}"

    def __post_init__(self) -> None:
        self.local_score()  # refuses bad settings now, not at the first token
        self.global_part()  # and so does this

    @cached_property
    def _local_score(self) -> LocalScore:
        scale = {} if self.local_scale is None else {"scale": self.local_scale}
        return local_scores.create(self.local, **{**self.local_settings, **scale})

    def local_score(self) -> LocalScore:
        return self._local_score

    def global_part(self) -> GlobalPart:
        return GlobalPart(self.global_, self.p, self.gamma, self.beta)


def _over(entry: Entry[LocalScore]) -> Callable[..., Router]:
    """`glider` over another local score, the settings of both side by side."""
    glider_fields = {parameter.name for parameter in fields(Glider)} - {*_LOCAL_FIELDS, "local_scale"}
    theirs = signature(entry.make).parameters

    def make(**settings: Any) -> Router:
        local = {name: value for name, value in settings.items() if name not in glider_fields}
        rest = {name: value for name, value in settings.items() if name in glider_fields}
        return Glider(**rest, local=entry.name, local_settings=local)

    parameters = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY)
        for parameter in (*signature(Glider).parameters.values(), *theirs.values())
        if parameter.name in glider_fields or parameter.name in theirs
    ]
    if clash := glider_fields & theirs.keys():
        raise RouterError(f"settings of the local score {entry.name} beside glider's", ", ".join(clash), "Rename them.")
    make.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    formula = (entry.make.__doc__ or f"the local score `{entry.name}`.").strip().splitlines()[0]
    make.__doc__ = f"GLIDER (section 4.2) over another local score: alpha * global_e + {formula}"
    make.__module__ = entry.make.__module__
    return make


def _register_over(entry: Entry[LocalScore]) -> None:
    if entry.name != GATES:
        papers = ", ".join(paper for paper in ("arXiv:2410.07172", entry.paper) if paper)
        router(f"glider+{entry.name}", paper=papers)(_over(entry))


local_scores.follow(_register_over)
