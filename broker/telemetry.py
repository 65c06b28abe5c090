"""What the broker tells its operator: JSON lines on a stream, and counters for Prometheus.

Decides the shape of both. Labels come from closed sets (routes of the table, codes, states), so nobody outside can make
the number of time series grow. Refusals that earn no log entry of their own are counted here and written to the audit
log as one sum a minute.
"""

import json
import logging
from collections import Counter as Tally
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Final, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@final
class JsonLines(logging.Formatter):
    """One JSON object a line. Tracebacks are reduced to the exception's type: their text could hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, default=str, ensure_ascii=True)


def log_to(stream: IO[str], level: str) -> None:
    """Send everything under `cloister` to the stream as JSON lines, once."""
    root = logging.getLogger("cloister")
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False


@final
class _Live:
    """Values that are read when somebody looks."""

    def __init__(self, read: Callable[[], dict[str, dict[str, float]]]) -> None:
        self._read = read

    def collect(self) -> list[Metric]:
        found: list[Metric] = []
        for name, values in self._read().items():
            family = GaugeMetricFamily(f"cloister_{name}", name.replace("_", " "), labels=["of"])
            for label, value in values.items():
                family.add_metric([label], value)
            found.append(family)
        return found


@final
class Metrics:
    """Counters of one broker, in a registry of their own."""

    def __init__(self, live: Callable[[], dict[str, dict[str, float]]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Live(live))
        labels = ["route", "status"]
        self._requests = Counter("cloister_requests", "answered requests", labels, registry=self._registry)
        self._seconds = Histogram(
            "cloister_request_seconds", "time to answer", ["route"], buckets=_BUCKETS, registry=self._registry
        )
        self._refusals = Counter("cloister_refusals", "refusals by code", ["code"], registry=self._registry)
        self._started = Gauge("cloister_started_seconds", "when the broker started", registry=self._registry)
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # as few as there are label sets
        self._uncounted: Tally[str] = Tally()

    def started(self, at: datetime) -> None:
        self._started.set(at.timestamp())

    def answered(self, route: str, status: int, seconds: float) -> None:
        known = self._answers.get((route, status))
        if known is None:
            known = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._answers[route, status] = known
        counter, histogram = known
        counter.inc()
        histogram.observe(seconds)

    def refused(self, code: str) -> None:
        self._refusals.labels(code).inc()
        self._uncounted[code] += 1

    def take_refusals(self) -> dict[str, int]:
        """Refusals by code since the last call."""
        found, self._uncounted = dict(self._uncounted), Tally()
        return found

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)
