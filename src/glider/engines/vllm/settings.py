"""What an engine is told of a pool: one JSON object in vLLM's `additional_config`, which every process of it sees."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glider.config import Config
from glider.errors import EngineError
from glider.experts.index import read_pool_file
from glider.inference.spec import ModelSpec

KEY = "glider"
LOAD_FORMAT = "glider"  # without the plug-in vLLM does not know it, and does not start
Mode = Literal["select", "route"]
Unsure = Literal["nearest", "base"]


class PluginSettings(Config):
    """How an engine serves a pool.

    `spec` holds the fields of `ModelSpec` that are not left at their default. `digest` is that of the pool's index when
    the arguments were made: another pool at the same place is refused. `name` and `base` are the served names of the
    routed pool and of the base alone.
    """

    mode: Mode
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(min_length=1)
    base: str = Field(min_length=1)
    unsure: Unsure = "nearest"
    spec: dict[str, Any] = {}

    @classmethod
    def of(cls, vllm_config: Any) -> "PluginSettings | None":
        """Those of an engine's configuration; None for an engine that serves no pool."""
        if not cls.serves(vllm_config):
            return None
        additional = vllm_config.additional_config
        if not isinstance(additional[KEY], dict):
            raise EngineError(f"an object as {KEY} of --additional-config", repr(additional[KEY])[:80], _REMEDY)
        return cls.parse(**additional[KEY])

    @staticmethod
    def serves(vllm_config: Any) -> bool:
        """Whether an engine of this configuration serves a pool."""
        additional = getattr(vllm_config, "additional_config", None)
        return isinstance(additional, dict) and KEY in additional

    @property
    def model(self) -> ModelSpec:
        """The spec itself; its base model and dtype are vLLM's."""
        return ModelSpec.parse(**self.spec)

    def open_pool(self) -> Any:
        """The pool, verified, if it is still the one that the arguments were made for."""
        from glider.inference.spec import open_pool

        pool = open_pool(self.model.pool, self.model.require_key)
        if pool_digest(pool.path) != self.digest:
            raise EngineError("the pool that the arguments were made for", f"another state of {pool.path}", _REMEDY)
        pool.verify()
        return pool


_REMEDY = "Take the arguments from `glider vllm-args POOL`, when the pool is as it shall be served."


def pool_digest(path: Path) -> str:
    """The digest of a pool's index, which has those of all its files."""
    return hashlib.sha256(read_pool_file(path)).hexdigest()


def one_word(value: Any) -> str:
    """JSON without a character that a shell would split or expand, so that `$(glider vllm-args POOL)` is one word."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return "".join(f"\\u{ord(letter):04x}" if letter in " \t*?" else letter for letter in text)
