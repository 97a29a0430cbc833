"""The metrics: under vLLM's names where it has one, else under our own."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from glider.inference.engine import PrefixCache

if TYPE_CHECKING:
    from glider.serve.errors import ApiError
    from glider.serve.exchange import Exchange

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_MODEL = ("model_name",)


class Metrics:
    """The metrics of one server, in a registry of its own. A model's name is one that is served, never a client's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = _MODEL) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self.running = Gauge("vllm:num_requests_running", "Requests that have a place.", registry=self.registry)
        self.waiting = Gauge("vllm:num_requests_waiting", "Requests in the queue.", registry=self.registry)
        self.first_token = histogram("vllm:time_to_first_token_seconds", "From the request to its first token.", _SHORT)
        self.next_token = histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", _SHORT)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From the request to its last token.", _LONG)
        self.queued = histogram("vllm:request_queue_time_seconds", "In the queue.", _SHORT)
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.", *_MODEL)
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens of answers.", *_MODEL)
        self.prefix_queries = counter("vllm:prefix_cache_queries", "Tokens of prompts looked up in the cache.")
        self.prefix_hits = counter("vllm:prefix_cache_hits", "Those that it had from earlier requests.")
        self._reported = PrefixCache()
        self.success = counter("vllm:request_success", "Answers that ended.", "model_name", "finished_reason")
        self.requests = counter("glider:requests", "Requests that were answered or failed.", "pool", "verdict")
        self.routing = histogram("glider:routing_seconds", "Making a request's condition.", _SHORT, ("pool",))
        self.expert_tokens = counter(
            "glider:expert_tokens", "Tokens whose main expert this was, of traced answers.", "pool", "expert"
        )
        self.refusals = counter(
            "glider:refused_requests", "Requests that were refused, or failed before their answer.", "code"
        )

    def refused(self, error: "ApiError") -> None:
        """Count a request that was refused, or failed before its answer."""
        self.refusals.labels(error.code or "").inc()

    def ended(self, exchange: "Exchange", seconds: float) -> None:
        """Count a request that had begun, and has ended in any way."""
        name = exchange.target.label
        self.whole.labels(name).observe(seconds)
        self.prompt_tokens.labels(name).inc(exchange.prompt_tokens)
        self.generation_tokens.labels(name).inc(exchange.completion_tokens)
        for choice in exchange.choices:
            self.success.labels(name, choice.finish_reason or "abort").inc()
        self.requests.labels(exchange.target.pool_label, exchange.verdict_label).inc()

    def text(self, running: int, waiting: int, cache: PrefixCache, names: Collection[str] | None = None) -> bytes:
        """All of them, in Prometheus' format; with `names` those of these pools and models, and nothing that
        counts all requests together."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.prefix_queries.inc(cache.queries - self._reported.queries)
        self.prefix_hits.inc(cache.hits - self._reported.hits)
        self._reported = cache
        return generate_latest(self.registry if names is None else _Visible(self.registry, names))  # pyright: ignore


class _Visible:
    """What a registry has of some pools and models."""

    def __init__(self, registry: CollectorRegistry, names: Collection[str]):
        self._registry, self._names = registry, names

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            part.samples = [one for one in metric.samples if self._shown(one.labels)]
            if part.samples:
                yield part

    def _shown(self, labels: Mapping[str, str]) -> bool:
        name = labels.get("pool", labels.get("model_name"))
        return name in self._names
