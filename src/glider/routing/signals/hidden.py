"""A global signal from the base model's own hidden states: no other model, and no words stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.routing.base import Need, QueryFeatures
from glider.routing.signals.base import absent, lead, profiles, signal
from glider.shapes import Float, Tensor

SHRINKAGE = 0.1
USUAL_LEAD = 200.0  # the median lead of a query's own expert in a pool of some 30; larger in small ones
THRESHOLD = 0.35


@dataclass(frozen=True)
class States:
    """Linear discriminants: q . P m_e - m_e . P m_e / 2, P the inverse of the covariance within tasks, shrunk."""

    directions: Float[Tensor, "E H"]  # P m_e
    offsets: Float[Tensor, " E"]  # m_e . P m_e / 2
    needs: frozenset[Need] = frozenset({"hidden"})

    @classmethod
    def of_profiles(cls, experts: Sequence[Profile]) -> "States":
        """Means are of training inputs, the covariance of the held-back ones about their expert's own mean."""
        means = torch.stack([profile.hidden.double() for profile in experts if profile.hidden is not None])
        rows = [profile.held_back_hidden.double() for profile in experts if profile.held_back_hidden is not None]
        within = torch.cat([states - states.mean(dim=0) for states in rows])
        covariance = within.T @ within / max(1, len(within) - len(rows))
        variance = covariance.trace() / len(covariance)
        shrunk = covariance + SHRINKAGE * variance * torch.eye(len(covariance), dtype=torch.float64)
        directions, info = torch.linalg.solve_ex(shrunk, means.T)
        discriminants = cls(directions.T.float(), ((means.T * directions).sum(dim=0) / 2).float())
        if info.item() or not (discriminants.directions.isfinite().all() and discriminants.offsets.isfinite().all()):
            raise RouterError(
                "held-back hidden states that differ, in numbers that can be reckoned with",
                "states without variance, or too large",
                "Make the profiles again with `glider expert profile`.",
            )
        return discriminants

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.hidden is not None
        if features.hidden.shape[-1] != self.directions.shape[-1]:
            raise RouterError(
                f"profiles with hidden states as wide as the base's ({features.hidden.shape[-1]})",
                f"width {self.directions.shape[-1]}",
                "Make the profiles again with `glider expert profile`, or choose another global signal.",
            )
        scores = features.hidden.float() @ self.directions.T - self.offsets
        return lead(scores, absent(scores, without)) / USUAL_LEAD


@signal("hidden")
@dataclass(frozen=True)
class Hidden:
    """global_e = lead of e's linear discriminant of the query's mean hidden state, after an eighth of the layers.

    States of the bare base model on both ends of a text. Needs no embedder and no LLM.
    """

    def prepare(self, pool: Pool) -> States:
        known = profiles(pool)
        lacking = [
            expert.name
            for expert, profile in zip(pool, known, strict=True)
            if profile.hidden is None or profile.held_back_hidden is None or len(profile.held_back_hidden) < 2
        ]
        if lacking:
            raise RouterError(
                "hidden states of training and held-back inputs for every expert",
                f"none in {', '.join(lacking)}",
                "Make the profiles again with `glider expert profile`.",
            )
        return States.of_profiles(known)

    def threshold(self, pool: Pool) -> float | None:
        return THRESHOLD
