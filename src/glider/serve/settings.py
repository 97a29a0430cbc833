"""How a server runs: address, limits, rights. Imports no server, so that the command line is instant."""

import ipaddress
import re

from pydantic import Field, field_validator

from glider.config import Config
from glider.errors import ConfigError

POOL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class ServeSettings(Config):
    """Where a server listens, what it serves, and how much at once."""

    pool: list[str] = Field(
        default=["demo"],
        description="Directory of a pool, or demo; NAME=DIRECTORY names it. Several pools share one base model.",
    )
    examples: str | None = Field(
        default=None, description="Rows of input and output for requests that bring no examples."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen at; 0.0.0.0 for every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    api_key_file: str | None = Field(default=None, description="JSON file of keys (their hashes), pools and rights.")
    allowed_host: list[str] = Field(
        default=[], description="Name under which the server may be asked (Host); at loopback its own names."
    )
    max_requests: int = Field(default=32, ge=1, description="Requests that share the passes of the model.")
    max_queue: int = Field(default=256, ge=0, description="Requests that may wait beside these; more are refused, 429.")
    max_streams: int | None = Field(
        default=None, ge=1, description="Requests of one key at a time, where it says none."
    )
    max_choices: int = Field(default=16, ge=1, description="Most answers of one request (prompts times n).")
    pass_tokens: int = Field(default=512, ge=1, description="Tokens of one pass of the model.")
    cache_tokens: int = Field(default=16384, ge=64, description="Tokens that the cache of keys and values holds.")
    prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt, in tokens, of a base without a context (T5). Default: its tokenizer's, or 2048.",
    )
    default_tokens: int = Field(default=512, ge=1, description="Longest chat answer where the request names no limit.")
    max_body: int = Field(default=4 * 2**20, ge=1024, description="Largest body of a request, in bytes.")
    body_timeout: float = Field(default=30.0, gt=0, description="Seconds in which a request's body must arrive.")
    request_timeout: float = Field(default=600.0, gt=0, description="Seconds that a request may wait and run.")
    shutdown_timeout: int = Field(default=30, ge=0, description="Seconds that requests in flight have after SIGTERM.")
    allow_changes: bool = Field(default=False, description="Let adapters be loaded and pools be reloaded over HTTP.")
    changes_from: str | None = Field(
        default=None, description="Directory that adapters may be loaded from. Default: each pool's own."
    )
    otel: bool | None = Field(
        default=None,
        description="Trace requests by OpenTelemetry. Default: where OTEL_TRACES_EXPORTER or an OTLP endpoint is set.",
    )
    log_prompts: bool = Field(default=False, description="Write prompts and answers into the log.")

    @field_validator("pool")
    @classmethod
    def _some(cls, pools: list[str]) -> list[str]:
        return pools or ["demo"]

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def pools(self) -> dict[str, str]:
        """Directory (or demo) of each pool, by name; raises `ConfigError` for names that are none, or come twice."""
        directories: dict[str, str] = {}
        for entry in self.pool:
            name, separator, place = entry.partition("=")
            if not separator:
                name, place = entry.rstrip("/").rsplit("/", 1)[-1], entry
            if re.fullmatch(POOL_NAME, name) is None:
                expected = "a pool's name of letters, digits, '.', '_' and '-'"
                raise ConfigError(expected, repr(name), "Name it: --pool NAME=DIRECTORY.")
            if name in directories:
                raise ConfigError("pools of unlike names", f"{name} twice", "Name them: --pool NAME=DIRECTORY.")
            directories[name] = place
        return directories
