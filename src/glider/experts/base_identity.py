"""Which base model an expert belongs to, so that a pool never meets another base silently."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from glider.config import Config
from glider.errors import BaseModelError
from glider.files.disk import canonical_json

if TYPE_CHECKING:
    import torch

_ARCHITECTURE_FIELDS = (
    *("model_type", "vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads"),
)
_SAMPLED_VALUES = 4096
_SAMPLE_VALUES = 16  # of a weight, as they are
_TOLERANCE, _SMALLEST = 2**-8, 1e-7  # of bfloat16's rounding, and what float16 cannot tell from zero


class BaseIdentity(Config):
    """A base model's id with a fingerprint of its architecture and of a few of its weights.

    The weights are sampled after rounding to bfloat16, so that one model stored in float32 or in bfloat16 has one
    identity; quantised weights are left out of a comparison, since their values are another encoding. Where the hashes
    differ a few values are compared within the precision of 16 bits: float16 rounds otherwise. Where it lies on a disk
    is no part of what it is: id and path are left out of every comparison.
    """

    model_id: str = Field(max_length=4096, description="Id or path under which the model was loaded.")
    config_hash: str = Field(description="Hash of the architecture's configuration: 16 hexadecimal digits of SHA-256.")
    weight_hashes: dict[str, str] = Field(
        description="Hash of values of a few weights, rounded to bfloat16, by the weight's name."
    )
    samples: dict[str, tuple[float, ...]] = Field(
        default={}, description="A few values of the same weights, compared where rounding changes the hashes."
    )
    path: str | None = Field(
        default=None, max_length=4096, description="Directory that it was loaded from. Null: it has a hub id."
    )

    @property
    def hash(self) -> str:
        """One short hex digest of the fingerprint (the id is not part of it)."""
        text = canonical_json([self.config_hash, self.weight_hashes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify(model: Any, model_id: str) -> BaseIdentity:
    """Fingerprint a transformers model (not yet attached to anything)."""
    return identify_weights(model.config.to_dict(), identifying_weights(model), model_id)


def identify_weights(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], model_id: str) -> BaseIdentity:
    """Fingerprint a model by its configuration and those of its weights that identify it, by name."""
    architecture = {field: config[field] for field in _ARCHITECTURE_FIELDS if config.get(field) is not None}
    return BaseIdentity(
        model_id=model_id,
        config_hash=hashlib.sha256(canonical_json(architecture).encode()).hexdigest()[:16],
        weight_hashes={name: _fingerprint(weight) for name, weight in weights.items()},
        samples={name: _sampled(weight) for name, weight in weights.items()},
    )


def require_same_base(expected: BaseIdentity, got: BaseIdentity, owner: str) -> None:
    """Raise `BaseModelError` unless `got` is the base that `owner` (an expert or a pool) was made for."""
    if not same_base(expected, got):
        what = "another architecture" if expected.config_hash != got.config_hash else "other weights"
        raise BaseModelError(
            f"the base model {expected.model_id} ({expected.hash}) that {owner} was made for",
            f"{got.model_id} ({got.hash}), which has {what}",
            f"Give --base {expected.path or expected.model_id}, or a pool made for {got.model_id}.",
        )


def same_base(one: BaseIdentity, other: BaseIdentity) -> bool:
    """Whether two identities are of one base model, under whatever id."""
    shared = one.weight_hashes.keys() & other.weight_hashes.keys()
    return one.hash == other.hash or (
        one.config_hash == other.config_hash
        and bool(shared)
        and all(one.weight_hashes[name] == other.weight_hashes[name] or _close(one, other, name) for name in shared)
    )


def _close(one: BaseIdentity, other: BaseIdentity, name: str) -> bool:
    ours, theirs = one.samples.get(name, ()), other.samples.get(name, ())
    return (
        bool(ours)
        and len(ours) == len(theirs)
        and all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) + _SMALLEST for a, b in zip(ours, theirs, strict=True))
    )


def _sampled(weight: torch.Tensor) -> tuple[float, ...]:
    flat = weight.detach().reshape(-1)
    return tuple(flat[:: max(1, flat.numel() // _SAMPLE_VALUES)][:_SAMPLE_VALUES].float().cpu().tolist())


def identifying_weights(model: Any) -> dict[str, torch.Tensor]:
    """The input embedding, the first and last matrix, and the first and last vector, by name."""
    floating = {name: weight for name, weight in model.named_parameters() if holds_values(weight)}
    matrices = [name for name, weight in floating.items() if weight.ndim == 2]
    vectors = [name for name, weight in floating.items() if weight.ndim == 1]
    selected = {name for names in (matrices, vectors) if names for name in (names[0], names[1 % len(names)], names[-1])}
    return {name: floating[name] for name in sorted(selected)}


def holds_values(weight: torch.Tensor) -> bool:
    """Whether a weight is numbers as they are: not quantised, neither as integers nor behind a tensor's interface."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    wrapped = is_traceable_wrapper_subclass(weight) and not hasattr(weight, "full_tensor")  # a DTensor has it
    return weight.is_floating_point() and not wrapped


def _fingerprint(weight: torch.Tensor) -> str:
    import torch

    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)][:_SAMPLED_VALUES]
    values = sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    return hashlib.sha256(canonical_json(list(weight.shape)).encode() + values).hexdigest()[:16]
