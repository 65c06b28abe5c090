"""Traces: one span for each call, and one for each piece of evidence that is proved, where somebody asked for them.

Decides what a span may say: route, status, code and correlation id, the very things that metrics and answers say; never
a name, a subject or an address. A caller's own trace is linked to, not joined: nobody outside chooses ids or sampling.
Without the extra `otel`, or without OTEL_TRACES_EXPORTER in the environment, none of this costs anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Tracer, TracerProvider

NAME: Final = "cloister.broker"
WANTED: Final = "OTEL_TRACES_EXPORTER"
MAX_PARENT: Final = 128
logger = logging.getLogger("cloister.broker.tracing")
_tracer: Tracer | None = None


class Span(Protocol):
    """What a call is told to say of itself."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def say(self, **attributes: str | int) -> None: ...


class _Silent:
    """Nobody listens."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return

    def say(self, **attributes: str | int) -> None:
        return


_SILENT: Final = _Silent()


class _Spoken:
    """A span of OpenTelemetry's. An exception is named by its type: its text could hold anything."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._span: Any = None

    def __enter__(self) -> Self:
        self._span = self._manager.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.say(exception=kind.__name__)
        self._manager.__exit__(None, None, None)

    def say(self, **attributes: str | int) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(f"cloister.{name}", value)


def configure(environ: Mapping[str, str]) -> bool:
    """Send spans where the standard OTEL_* variables say; whether anybody asked and the extra is there."""
    if environ.get(WANTED, "none") in ("", "none"):
        return False
    found = entry_points(group="opentelemetry_configurator", name="sdk_configurator")
    if not found:
        logger.error("tracing.missing", extra={"why": f"{WANTED} is set: pip install 'cloister[otel]'"})
        return False
    next(iter(found)).load()().configure()
    from opentelemetry.trace import get_tracer_provider

    listen(get_tracer_provider())
    return True


def listen(provider: TracerProvider | None) -> None:
    """Send spans to that provider; to nobody with None."""
    global _tracer  # one process has one destination, like its log
    _tracer = provider.get_tracer(NAME) if provider is not None else None


def call(route: str, correlation_id: str, traceparent: str | None) -> Span:
    """The span of one call, REST or gRPC. `traceparent` (W3C Trace Context) is the caller's own."""
    if _tracer is None:
        return _SILENT
    from opentelemetry.trace import SpanKind

    attributes = {"cloister.route": route, "cloister.correlation_id": correlation_id}
    links = _links(traceparent)
    manager = _tracer.start_as_current_span(
        route, kind=SpanKind.SERVER, attributes=attributes, links=links, record_exception=False
    )
    return _Spoken(manager)


def part(name: str) -> Span:
    """A part of the call that is under way."""
    if _tracer is None:
        return _SILENT
    return _Spoken(_tracer.start_as_current_span(name, record_exception=False))


def _links(traceparent: str | None) -> list[Link]:
    if traceparent is None or len(traceparent) > MAX_PARENT:
        return []
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    theirs = get_current_span(context).get_span_context()
    return [Link(theirs)] if theirs.is_valid else []
