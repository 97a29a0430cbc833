"""Running it: uvicorn, signals, what is said at the start."""

import asyncio
import logging
import signal
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from glider.errors import ConfigError
from glider.printable import visible
from glider.serve.settings import ServeSettings
from glider.terminal import note, say

if TYPE_CHECKING:
    from glider.inference.spec import ModelSpec
    from glider.serve.service import Service

_LOOK = 0.1  # seconds between looks at whether requests in flight have ended


def serve(spec: "ModelSpec", settings: ServeSettings) -> None:
    """Load the pools and answer until a signal ends it: SIGTERM and SIGINT drain, a second one stops at once."""
    import uvicorn

    from glider.serve.app import build
    from glider.serve.connection import Connection
    from glider.serve.pools import Pools
    from glider.serve.service import Service

    _log_to_stderr()
    listener = _listen(settings)  # an address that is taken shows before models are loaded
    note(f"glider: loading {', '.join(settings.pools)}")
    service = Service(Pools.load(spec, settings), settings)
    service.warm()
    config = uvicorn.Config(
        build(service),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
        server_header=False,
        ws="none",
        h11_max_incomplete_event_size=64 * 1024,
        http=partial(Connection, patience=settings.body_timeout),  # pyright: ignore[reportArgumentType]
    )

    class Server(uvicorn.Server):
        """Says where it listens, also while it drains; a second signal of either kind stops it at once."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            _begin(listener, settings)
            await super().startup(sockets)
            if self.started:
                _announce(listener, service)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit and sig == signal.SIGTERM:
                self.force_exit = True
            service.drain()
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """uvicorn closes its address first: whoever asks meanwhile would be told nothing."""
            end = time.monotonic() + settings.shutdown_timeout
            while service.places.taken and not self.force_exit and time.monotonic() < end:
                await asyncio.sleep(_LOOK)
            left = 0 if self.force_exit else max(0, round(end - time.monotonic()))
            self.config.timeout_graceful_shutdown = left
            await super().shutdown(sockets)
            if self.force_exit:  # where uvicorn leaves the application as it is, whose end was a traceback
                await self.lifespan.shutdown()

    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)  # uvicorn raises what it caught once more when it has drained
    Server(config).run(sockets=[listener])


def _announce(listener: socket.socket, service: "Service") -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    names = ", ".join(service.pools.pools)
    say(f"glider: serving {names} on {service.pools.base_name} at {address} (API at {address}/v1)", error=True)
    if not service.settings.loopback and not service.keys.required:
        say(
            f"glider: anybody who reaches {host} can use this server; give --api-key-file, or listen at 127.0.0.1.",
            error=True,
        )


def _listen(settings: ServeSettings) -> socket.socket:
    """A socket at the address; raises `ConfigError` where there can be none."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as fault:
        raise _unusable(listener, settings, fault) from fault
    return listener


def _begin(listener: socket.socket, settings: ServeSettings) -> None:
    """Let clients connect; raises `ConfigError` where another server that was loading its models too was faster."""
    try:
        listener.listen()
    except OSError as fault:
        raise _unusable(listener, settings, fault) from fault


def _unusable(listener: socket.socket, settings: ServeSettings, fault: OSError) -> ConfigError:
    listener.close()
    expected, got = f"an address to listen at, {settings.host} port {settings.port}", fault.strerror or str(fault)
    return ConfigError(expected, got, "Choose another --host or --port.")


class _Lines(logging.Formatter):
    """A message is one line, and neither it nor a traceback holds what is not to be seen: both may quote strangers."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join(visible(super().formatMessage(record)).split("\n"))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return visible(super().formatException(ei))


def _log_to_stderr() -> None:
    """The server's own log, a line each; requests as JSON."""
    show = logging.StreamHandler(sys.stderr)
    show.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, level in (("glider.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [show], False
        logger.setLevel(level)
