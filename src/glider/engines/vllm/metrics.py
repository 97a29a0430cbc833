"""What is counted beside vLLM's own metrics, under the names that `glider serve` has."""

from functools import cache


class PoolMetrics:
    """Counters in prometheus_client's own registry, which vLLM's `/metrics` shows."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self.requests = Counter("glider:requests", "Requests by what was decided of them.", ("pool", "verdict"))
        buckets = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)
        self.routing = Histogram("glider:routing_seconds", "Making a request's condition.", ("pool",), buckets=buckets)

    def count(self, pool: str, verdict: str | None, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(pool, verdict or "none").inc()
        self.routing.labels(pool).observe(seconds)


@cache
def metrics() -> PoolMetrics:
    """Those of this process."""
    return PoolMetrics()
