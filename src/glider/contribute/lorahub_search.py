"""The search of LoRAHub: weights of experts, found without gradients (arXiv 2307.13269)."""

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glider.errors import MissingDependency, RouterError
from glider.experts.pool import Pool
from glider.routing.base import Decision, Prepared, QueryFeatures, Site, absent_at
from glider.routing.condition import Condition
from glider.routing.methods.lorahub import BOUND
from glider.routing.products import require_experts
from glider.shapes import Float, Tensor


@dataclass(frozen=True)
class Weighted:
    """Every token uses every expert with the same weights: the stacked form, in which only `weights` changes.

    The search owns the tensor and fills it anew for each evaluation.
    """

    weights: Float[Tensor, " E"]

    def prepare(self, pool: Pool) -> Prepared:
        require_experts(pool)
        sites = {name: Site(name, absent_at(name, pool.experts)) for name in pool.sites}
        return Prepared(pool.experts, sites)

    def condition(self, prepared: Prepared, features: QueryFeatures) -> Condition:
        return Condition.local(features.count)

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        count, tokens = len(self.weights), x.shape[0]
        every = torch.arange(count, device=x.device).expand(tokens, count)
        return Decision(every, self.weights.to(x.device).expand(tokens, count))


@dataclass(frozen=True)
class Evaluation:
    """One point of a search: the weights of the experts searched over, the loss there, and with the penalty."""

    weights: tuple[float, ...]
    loss: float
    objective: float


def minimise(
    loss: Callable[[Sequence[float]], float], count: int, *, budget: int, l1: float, seed: int
) -> list[Evaluation]:
    """Minimise loss(w) + l1 * mean |w| over [-1.5, 1.5]^count by nevergrad's NGOpt, as LoRAHub's authors do.

    Returns every evaluation in turn, the first at w = 0 (the base alone). Raises `MissingDependency` without nevergrad.
    """
    nevergrad = require_nevergrad()
    space = nevergrad.p.Array(init=[0.0] * count).set_bounds(-BOUND, BOUND)
    space.random_state.seed(seed)
    optimiser = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    optimiser.suggest([0.0] * count)
    history = []
    try:
        with warnings.catch_warnings():  # NGOpt gives its optimisers settings of which they complain
            warnings.filterwarnings("ignore", module=r"(nevergrad|scipy|cma|bayes_opt)\b")
            for _ in range(budget):
                candidate = optimiser.ask()
                weights = tuple(float(weight) for weight in candidate.value)
                value = loss(weights)
                if not math.isfinite(value):
                    raise RouterError("a finite loss", f"{value} at {weights}", "Check the rows and the experts.")
                evaluation = Evaluation(weights, value, value + l1 * sum(map(abs, weights)) / count)
                optimiser.tell(candidate, evaluation.objective)
                history.append(evaluation)
    finally:  # some of NGOpt's optimisers run in a thread that ends with them, and would keep the process alive
        del optimiser
        gc.collect()
    return history


def require_nevergrad() -> Any:
    """The package nevergrad; raises `MissingDependency` without it."""
    try:
        import nevergrad
    except ImportError:
        command = "pip install 'glider-moe[lorahub]'"
        raise MissingDependency("nevergrad", "search the weights of lorahub", command) from None
    return nevergrad
