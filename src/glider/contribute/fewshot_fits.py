"""Routers that are fitted on a few rows of a task, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from glider.data.rows import Row
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.routing.base import Router, routers
from glider.routing.compose import Composed
from glider.routing.global_part import GlobalPart
from glider.routing.methods.adaptersoup import AdapterSoup, AdapterSoupTask
from glider.routing.methods.lorahub import Lorahub
from glider.routing.methods.mole import Mole
from glider.routing.methods.per_task import PerTask
from glider.routing.nearest import Everywhere
from glider.routing.products import require_experts
from glider.routing.requirements import class_of
from glider.routing.select import Select, TopK
from glider.shapes import Float, Tensor


@runtime_checkable
class Fit(Protocol):
    """How the settings of a router are found on a few rows of a task.

    The router's class of another package can be its own fit, with these as class methods.
    """

    fitted_setting: str
    """The setting that `fit` finds; where it is not given, the others are those of the search."""

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings of the search, or a pool, with which `fit` cannot work."""
        ...

    def fit(self, base: BaseModel, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple[Router, dict[str, Any]]:
        """The router fitted to a task's rows on a base model, and a record of the search."""
        ...


def fit_of(name: str, settings: Mapping[str, Any]) -> Fit | None:
    """How a router is fitted for these settings, or None for one that they complete."""
    fit = _FITS.get(routers.current(name).partition(":")[0], class_of(name))
    return None if not isinstance(fit, Fit) or fit.fitted_setting in settings else fit


class LorahubFit:
    """Weights searched without gradients; settings are those of `LorahubSettings`."""

    fitted_setting = "weights"

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings of the search that do not fit, or an empty pool."""
        from glider.contribute.lorahub import LorahubSettings

        require_experts(pool)
        LorahubSettings.of(pool, **settings)

    def fit(self, base: BaseModel, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple[Lorahub, dict[str, Any]]:
        """The router whose weights a search on rows of a task finds, with its loss (`search_lorahub`)."""
        from glider.contribute.lorahub import search_lorahub

        search = search_lorahub(base, pool, rows, **settings)
        return search.router, {"weights": search.weights, "loss": search.best.loss, "rows": len(rows)}


class MoleFit:
    """Gates trained by the language model's loss; settings are those of `FewshotSettings`."""

    fitted_setting = "weights"

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings that do not fit, or an empty pool."""
        from glider.contribute.fewshot_gates import FewshotSettings

        require_experts(pool)
        FewshotSettings.parse(**settings)

    def fit(self, base: BaseModel, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple[Mole, dict[str, Any]]:
        """The router with gates fitted on a task's rows, and the loss before and after."""
        from glider.contribute.fewshot_gates import FewshotSettings, fit_gates

        weights, notes = fit_gates(base, pool, rows, FewshotSettings.parse(**settings))
        return Mole(weights), {"weights": weights, **notes, "rows": len(rows)}


class AdapterSoupFit:
    """The experts nearest to the rows, each by the mean cosine of their inputs; settings are `adaptersoup`'s.

    An expert is compared by its mean training input, from its profile, unless `by` says otherwise.
    """

    fitted_setting = "experts"

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings that `fit` cannot take, or a pool without what is compared."""
        require_experts(pool)
        _by_query(settings).prepare(pool)

    def fit(
        self, base: BaseModel, pool: Pool, rows: Sequence[Row], **settings: Any
    ) -> tuple[AdapterSoupTask, dict[str, Any]]:
        """The router of a task from a few of its rows, and how near each expert is."""
        soup = _by_query(settings)
        means = _mean_scores(base, pool, rows, soup)
        selected = tuple(pool.names[place] for place in means.argsort(descending=True, stable=True)[: soup.k].tolist())
        scores = dict(zip(pool.names, means.tolist(), strict=True))
        return AdapterSoupTask(selected), {"experts": list(selected), "scores": scores, "rows": len(rows)}


class PerTaskFit:
    """Means of what a global signal (`global_`; default: the pool's) says of the rows; others are the router's own."""

    fitted_setting = "scores"

    def check_fit(self, pool: Pool, **settings: Any) -> None:
        """Raise a `GliderError` for settings that `fit` cannot take, or a pool without what the signal needs."""
        require_experts(pool)
        signal, rest = _signal(settings)
        PerTask(dict.fromkeys(pool.names, 0.0), **rest)
        GlobalPart(signal).prepare(pool)

    def fit(self, base: BaseModel, pool: Pool, rows: Sequence[Row], **settings: Any) -> tuple[PerTask, dict[str, Any]]:
        """The router of a task from a few of its rows, and the scores."""
        signal, rest = _signal(settings)
        means = _mean_scores(base, pool, rows, _SignalAlone(signal))
        scores = dict(zip(pool.names, means.tolist(), strict=True))
        return PerTask(scores, **rest), {"scores": scores, "rows": len(rows)}


_FITS: Mapping[str, Fit] = {
    "lorahub": LorahubFit(),
    "mole": MoleFit(),
    "adaptersoup-task": AdapterSoupFit(),
    "per-task": PerTaskFit(),
}


def _mean_scores(base: BaseModel, pool: Pool, rows: Sequence[Row], router: Router) -> Float[Tensor, " E"]:
    """The means of a router's global scores over the rows, the input of each a query."""
    from glider.inference.spec import ModelSpec

    model = ModelSpec(router=router, strict=True).over(base, pool)
    try:
        scores = model.condition([row.input for row in rows]).global_scores
    finally:
        model.detach()
    assert scores is not None
    return scores.mean(dim=0)


def _by_query(settings: Mapping[str, Any]) -> AdapterSoup:
    """What finds the experts near to a row, by its mean samples unless told; the seed draws nothing."""
    known = {"by": "samples", **{name: value for name, value in settings.items() if name != "seed"}}
    return cast(AdapterSoup, routers.create("adaptersoup", **known))


def _signal(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The global signal by either of its names, and the settings beside it; the seed draws nothing."""
    rest = {name: value for name, value in settings.items() if name not in ("global_", "global", "seed")}
    return settings.get("global_", settings.get("global")), rest


@dataclass(frozen=True)
class _SignalAlone(Composed):
    """A global signal and nothing else."""

    signal: str | None = None
    select: Select = TopK(1)

    def local_score(self) -> Everywhere:
        return Everywhere()

    def global_part(self) -> GlobalPart:
        return GlobalPart(self.signal)
