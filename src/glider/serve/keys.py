"""Who may do what: keys known by their hashes, with pools and rights."""

import hashlib
import hmac
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from glider.config import Config, faults
from glider.errors import ConfigError
from glider.files.json_text import read_json
from glider.serve.errors import ApiError

Right = Literal["ask", "trace", "change", "metrics"]
RIGHTS: tuple[Right, ...] = ("ask", "trace", "change", "metrics")


class Key(Config):
    """A key, known by the hash of its text."""

    name: str = Field(min_length=1, description="Name of the key, which logs show.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key's text.")
    pools: list[str] | None = Field(default=None, description="Names of the pools that it sees. Default: all.")
    rights: list[Right] = Field(default=["ask", "trace"], description="What it may do.")
    max_streams: int | None = Field(
        default=None, ge=1, description="Requests of the key at a time. Default: the server's --max-streams."
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Name of its prefix cache, shared by the keys that give the same. Default: one of its own.",
    )

    @property
    def cache_name(self) -> str:
        """Of the keys and values of prompts that its requests may share."""
        return f"key {self.name}" if self.cache is None else f"cache {self.cache}"

    def require(self, right: Right) -> None:
        """Raise a 403 `ApiError` for a right that the key lacks."""
        if right not in self.rights:
            raise ApiError(403, f"this key lacks the right {right!r}", code="missing_right")


EVERYBODY = Key(name="anybody", sha256="0" * 64, rights=list(RIGHTS))  # where no keys are asked for


class KeyFile(Config):
    """The file of keys."""

    keys: list[Key] = Field(min_length=1, description="Keys that the server accepts.")


class Keys:
    """The keys of a server; without any, everybody may do everything."""

    def __init__(self, keys: list[Key] | None):
        self._keys = keys

    @classmethod
    def read(cls, path: str | None, pools: list[str]) -> "Keys":
        """Read a key file; raises `ConfigError` for one that does not fit."""
        if path is None:
            return cls(None)
        try:
            keys = KeyFile.model_validate(read_json(Path(path))).keys
        except ValidationError as fault:
            raise ConfigError(f"keys in {path}", faults(fault), "Mend the file; docs/serving.md shows one.") from fault
        except OSError as fault:
            got = (fault.strerror or str(fault)).lower()
            raise ConfigError(f"a readable file of keys at {path}", got, "Check the path.") from fault
        except ValueError as fault:
            raise ConfigError(f"JSON in {path}", str(fault), "Mend the file; docs/serving.md shows one.") from fault
        if unknown := sorted({name for key in keys for name in key.pools or []} - set(pools)):
            got = f"{', '.join(unknown)} in {path}"
            raise ConfigError(f"pools that are served ({', '.join(pools)})", got, "Mend the file.")
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in keys]
            if len(set(values)) < len(values):
                raise ConfigError(f"keys of unlike {field}", f"one twice in {path}", "Mend the file.")
        return cls(keys)

    @property
    def required(self) -> bool:
        """Whether a key must be shown."""
        return self._keys is not None

    def of(self, authorization: str | None) -> Key:
        """The key of an Authorization header; every key is compared, each in constant time. Raises a 401."""
        if self._keys is None:
            return EVERYBODY
        scheme, _, text = (authorization or "").partition(" ")
        shown = hashlib.sha256(text.strip().encode()).hexdigest()
        match = None
        for key in self._keys:
            if hmac.compare_digest(shown, key.sha256):
                match = key
        if scheme.lower() != "bearer" or match is None:
            raise ApiError(401, "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        return match
