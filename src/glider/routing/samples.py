"""Experts compared by the inputs that their profiles keep: by the mean of many, or by single ones."""

from dataclasses import dataclass

import torch

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.routing.base import Need, QueryFeatures
from glider.routing.scores import cosine
from glider.routing.signals.base import absent
from glider.shapes import Float, Int, Tensor

_WITH_EMBEDDINGS = "a profile with embeddings of every expert"


@dataclass(frozen=True)
class MeanSamples:
    """Cosine of the query's text and the mean embedding of an expert's training inputs."""

    means: Float[Tensor, "E G"]  # unit length
    needs: frozenset[Need] = frozenset({"inputs"})

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.inputs is not None
        scores = cosine(features.inputs, self.means)
        return scores.masked_fill(absent(scores, without), -torch.inf)


@dataclass(frozen=True)
class NearestExample:
    """The largest cosine of the query's text and one of an expert's stored inputs."""

    inputs: Float[Tensor, "N G"]  # of all experts, unit length
    owners: Int[Tensor, " N"]  # the expert of each, from 0; every expert has one
    needs: frozenset[Need] = frozenset({"inputs"})

    def of(self, features: QueryFeatures, without: int | None = None) -> Float[Tensor, "B E"]:
        assert features.inputs is not None
        near = cosine(features.inputs, self.inputs)  # (B, N)
        scores = near.new_full((len(near), int(self.owners.max()) + 1), -torch.inf)
        scores = scores.scatter_reduce(1, self.owners.expand(len(near), -1), near, "amax")
        return scores.masked_fill(absent(scores, without), -torch.inf)


def samples_of(pool: Pool) -> MeanSamples:
    """The mean training inputs of every expert; raises `RouterError` naming those that keep none."""
    inputs = _values_of(pool, "inputs")
    return MeanSamples(torch.nn.functional.normalize(torch.stack(inputs).float(), dim=-1))


def examples_of(pool: Pool) -> NearestExample:
    """The single inputs that every expert stores, or, where none stores any, those that its profile holds back.

    Raises `RouterError` naming the experts that keep none: some with stored inputs would be compared by many more.
    """
    storing = any(expert.profile is not None and expert.profile.stored_inputs is not None for expert in pool)
    inputs = _values_of(pool, "stored_inputs" if storing else "held_back_inputs")
    owners = torch.cat([torch.full((len(rows),), expert) for expert, rows in enumerate(inputs)])
    return NearestExample(torch.nn.functional.normalize(torch.cat(inputs).float(), dim=-1), owners)


def _values_of(pool: Pool, part: str) -> list[Tensor]:
    def of(profile: Profile | None) -> Tensor | None:
        value = None if profile is None else getattr(profile, part)
        return value if value is not None and len(value) else None

    values = {expert.name: of(expert.profile) for expert in pool}
    lacking = [name for name, value in values.items() if value is None]
    if lacking:
        stored = part == "stored_inputs"
        raise RouterError(
            "a profile with stored inputs of every expert, or of none" if stored else _WITH_EMBEDDINGS,
            f"none in {', '.join(lacking)}",
            "Make them of training rows with `glider expert profile"
            f"{' --stored N' if stored else ''}`, or choose by=descriptions.",
        )
    return [value for value in values.values() if value is not None]
