"""Which base model an expert belongs to, so that a pool never meets another base silently."""

import hashlib
from typing import Any

import torch

from glider.config import Config
from glider.errors import BaseModelError
from glider.files.disk import canonical_json

_ARCHITECTURE_FIELDS = (
    *("model_type", "vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads"),
)
_SAMPLED_VALUES = 4096


class BaseIdentity(Config):
    """A base model's id with a fingerprint of its architecture and of a few of its weights.

    The weights are sampled after rounding to bfloat16, so that one model stored in float32 or in bfloat16 has one
    identity; quantised weights are left out of a comparison, since their values are another encoding.
    """

    model_id: str
    config_hash: str
    weight_hashes: dict[str, str]

    @property
    def hash(self) -> str:
        """One short hex digest of the fingerprint (the id is not part of it)."""
        text = canonical_json([self.config_hash, self.weight_hashes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify(model: Any, model_id: str) -> BaseIdentity:
    """Fingerprint a transformers model (not yet attached to anything)."""
    config = model.config.to_dict()
    architecture = {field: config[field] for field in _ARCHITECTURE_FIELDS if config.get(field) is not None}
    return BaseIdentity(
        model_id=model_id,
        config_hash=hashlib.sha256(canonical_json(architecture).encode()).hexdigest()[:16],
        weight_hashes={name: _fingerprint(weight) for name, weight in _named_weights(model).items()},
    )


def require_same_base(wanted: BaseIdentity, got: BaseIdentity, owner: str) -> None:
    """Raise `BaseModelError` unless `got` is the base that `owner` (an expert or a pool) was made for."""
    differing = [
        name
        for name, digest in wanted.weight_hashes.items()
        if name in got.weight_hashes and got.weight_hashes[name] != digest
    ]
    shared = wanted.weight_hashes.keys() & got.weight_hashes.keys()
    if wanted.config_hash != got.config_hash or differing or not shared:
        what = "another architecture" if wanted.config_hash != got.config_hash else "other weights"
        raise BaseModelError(
            f"the base model {wanted.model_id} ({wanted.hash}) that {owner} was made for",
            f"{got.model_id} ({got.hash}), which has {what}",
            f"Give --base {wanted.model_id}, or a pool made for {got.model_id}.",
        )


def _named_weights(model: Any) -> dict[str, torch.Tensor]:
    """The input embedding, the first and last matrix, and the first and last vector, by name."""
    floating = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    matrices = [name for name, weight in floating.items() if weight.ndim == 2]
    vectors = [name for name, weight in floating.items() if weight.ndim == 1]
    chosen = {name for names in (matrices, vectors) if names for name in (names[0], names[1 % len(names)], names[-1])}
    return {name: floating[name] for name in sorted(chosen)}


def _fingerprint(weight: torch.Tensor) -> str:
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)][:_SAMPLED_VALUES]
    values = sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    return hashlib.sha256(canonical_json(list(weight.shape)).encode() + values).hexdigest()[:16]
