"""Spans of requests, by OpenTelemetry's own instrumentation and its exporter in memory."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2 as httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from glider.errors import ConfigError, MissingDependency
from glider.inference.spec import ModelSpec
from glider.serve import tracing
from glider.serve.app import build
from glider.serve.pools import Pools
from glider.serve.service import Service
from glider.serve.settings import ServeSettings
from glider.serve.tracing import Tracing

SECRET = "swordfish"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Ask = Callable[..., list[httpx.Response]]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def ask(pool_directory: Path, llama_directory: Path, exporter: InMemorySpanExporter) -> Iterator[Ask]:
    """`ask((method, path, body), ...)` of a server in this process whose spans stay in memory."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = ServeSettings(pool=[str(pool_directory)], otel=True)
    spec = ModelSpec(base=str(llama_directory), pool=str(pool_directory), router="glider(global=examples, p=-1.0)")
    service = Service(Pools.load(spec, settings), settings, Tracing(provider))
    app = build(service)

    async def all_of(requests: tuple[tuple[str, str, Any], ...]) -> list[httpx.Response]:
        service.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            headers = {"traceparent": PARENT}
            return [await client.request(method, path, json=body, headers=headers) for method, path, body in requests]

    yield lambda *requests: asyncio.run(all_of(requests))
    service.close()
    provider.shutdown()


def chat(model: str = "tiny", **more: Any) -> tuple[str, str, Any]:
    messages = [{"role": "user", "content": f"the e0 e03 and {SECRET}"}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 4, "ignore_eos": True, **more}
    return "POST", "/v1/chat/completions", body


def test_a_span_tells_pool_and_verdict_and_no_text(ask: Ask, exporter: InMemorySpanExporter) -> None:
    answers = ask(chat(), chat(stream=True), chat("tiny-llama"), chat("nobody"), ("GET", "/health", None),
                  ("GET", "/v1/models", None))  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 200, 200]
    whole, streamed, base, refused, models = exporter.get_finished_spans()  # none of the probe
    for span, name in ((whole, "tiny"), (streamed, "tiny"), (base, "tiny-llama")):
        attributes = dict(span.attributes or {})
        assert span.name == "POST /v1/chat/completions"
        assert (attributes["glider.pool"], attributes["gen_ai.request.model"]) == ("tiny", name)
        assert attributes["glider.verdict"] == ("none" if name == "tiny" else "base")
        assert attributes["gen_ai.usage.output_tokens"] == 4
        assert attributes["gen_ai.usage.input_tokens"] == answers[0].json()["usage"]["prompt_tokens"]
        assert attributes["gen_ai.response.finish_reasons"] == ("length",)
        assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert dict(whole.attributes or {})["glider.request_id"] == answers[0].headers["x-request-id"]
    assert "glider.pool" not in dict(refused.attributes or {})
    assert models.name == "GET /v1/models"
    content = answers[0].json()["choices"][0]["message"]["content"]
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert SECRET not in text
    assert len(content) > 1 and json.dumps(content)[1:-1] not in text


@pytest.mark.parametrize(
    ("requested", "environment", "traced"),
    [
        (None, {}, False),
        (True, {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "console"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, False),
        (None, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
        (None, {"OTEL_SERVICE_NAME": "glider"}, False),  # says nothing of where spans go
        (False, {"OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_when_requests_are_traced(requested: bool | None, environment: dict[str, str], traced: bool) -> None:
    assert tracing.is_traced(requested, environment) is traced


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tracing, "_MODULES", ("opentelemetry.nothing.here",))
    with pytest.raises(MissingDependency, match=r"glider-moe\[otel\]"):
        tracing.is_traced(True, {})
    monkeypatch.setattr(logging.getLogger("glider.serve"), "propagate", True)
    assert tracing.is_traced(None, {"OTEL_TRACES_EXPORTER": "otlp"}) is False
    assert "no request is traced" in caplog.text


@pytest.mark.parametrize(
    ("environment", "kind"),
    [({}, "OTLPSpanExporter"), ({"OTEL_TRACES_EXPORTER": "console"}, "ConsoleSpanExporter")],
)
def test_the_exporter_is_the_one_that_is_named(environment: dict[str, str], kind: str) -> None:
    exporter = tracing._exporter(environment)
    assert type(exporter).__name__ == kind
    exporter.shutdown()


def test_an_exporter_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER"):
        tracing._exporter({"OTEL_TRACES_EXPORTER": "carrier pigeon"})


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", 0), Taker)

    @property
    def spans(self) -> dict[str, Any]:
        """The attributes of each span, by its name."""
        parts = [(part.resource, span) for one in self.exports for part in one.resource_spans
                 for scope in part.scope_spans for span in scope.spans]  # fmt: skip
        return {
            span.name: {a.key: a.value.string_value for a in (*resource.attributes, *span.attributes)}
            for resource, span in parts
        }


class Taker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.exports.append(ExportTraceServiceRequest.FromString(body))  # pyright: ignore
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_spans_go_where_the_environment_says(serve: Any) -> None:
    """At the latest when the server ends."""
    collector = Collector()
    thread = Thread(target=collector.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        served = serve(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="none")
        assert httpx.post(f"{served.url}/v1/chat/completions", json=chat()[2], timeout=600).status_code == 200
        assert served.stop() == 0
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    attributes = collector.spans["POST /v1/chat/completions"]
    assert (attributes["service.name"], attributes["glider.pool"], attributes["glider.verdict"]) == (
        "glider",
        "tiny",
        "none",
    )
