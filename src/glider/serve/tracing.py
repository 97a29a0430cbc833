"""OpenTelemetry: a span for each request with its pool and verdict, and never a word of what was asked or answered."""

import importlib.util
import logging
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from glider import __version__
from glider.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from fastapi import FastAPI

    from glider.serve.exchange import Exchange

log = logging.getLogger("glider.serve")
EXTRA = "pip install 'glider-moe[otel]'"
_PACKAGE = "opentelemetry-instrumentation-fastapi"
_MODULES = ("opentelemetry.sdk", "opentelemetry.instrumentation.fastapi")
_DESTINATIONS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_PROBES = "/health,/ready,/version,/load,/metrics"


def is_traced(requested: bool | None, environment: Mapping[str, str]) -> bool:
    """Whether requests are traced: as requested, else where OpenTelemetry's own variables say where spans go.

    Raises `MissingDependency` where it is requested and not installed. Variables alone, which a machine may set for all
    its programs, are then only warned of.
    """
    destinations = [name for name in _DESTINATIONS if environment.get(name)]
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if requested is False or (not requested and (off or not destinations)):
        return False
    if all(_is_installed(module) for module in _MODULES):
        return True
    if requested:
        raise MissingDependency(_PACKAGE, "trace requests", EXTRA)
    log.warning("%s is set, but %s is not installed: no request is traced (%s)", destinations[0], _PACKAGE, EXTRA)
    return False


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it would lie in
        return False


class Tracing:
    """Spans of one server. `provider` takes them; without one, whoever set one for the process, or the exporter that
    OTEL_TRACES_EXPORTER names (`otlp` unless it says otherwise)."""

    def __init__(self, provider: Any = None):
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        self._trace = trace
        is_set = isinstance(trace.get_tracer_provider(), TracerProvider)  # by `opentelemetry-instrument`
        self._ours = provider is None and not is_set
        self.provider: Any = _provider() if self._ours else provider

    def instrument(self, app: "FastAPI") -> None:
        """Trace an application's requests, except those of probes."""
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        is_configured = "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS" in os.environ or "OTEL_PYTHON_EXCLUDED_URLS" in os.environ
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self.provider,
            excluded_urls=None if is_configured else _PROBES,
            exclude_spans=["receive", "send"],  # a stream has one for each token
        )

    def annotate(self, exchange: "Exchange") -> None:
        """Tell the request's span what is known of it by now."""
        span = self._trace.get_current_span()
        if not span.is_recording():  # it ends with the last byte that is sent
            return
        attributes: dict[str, Any] = {
            "glider.pool": exchange.target.pool_label,
            "glider.verdict": exchange.verdict_label,
            "glider.request_id": exchange.request_id,
            "gen_ai.request.model": exchange.target.name,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
        }
        if exchange.generation is not None:
            attributes["glider.generation"] = exchange.target.pool.number(exchange.generation)
        if reasons := [choice.finish_reason for choice in exchange.choices if choice.finish_reason]:
            attributes["gen_ai.response.finish_reasons"] = reasons
        span.set_attributes(attributes)

    def close(self) -> None:
        """Send what is left, where nobody else does."""
        if self._ours:
            self.provider.shutdown()


def _provider() -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.version": __version__}
    if "OTEL_SERVICE_NAME" not in os.environ:
        attributes["service.name"] = "glider"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(_exporter(os.environ)))
    return provider


def _exporter(environment: Mapping[str, str]) -> Any:
    """The exporter of spans that the environment names. Raises `ConfigError` for one that is not installed."""
    name = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, protocol)
    exporters = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    if name not in exporters:
        there = ", ".join(sorted(exporters)) or "none"
        raise ConfigError(f"an exporter of spans that is installed ({there})", name, "Set OTEL_TRACES_EXPORTER.")
    return exporters[name].load()()
