"""Traces: what a span says, what it never says, and that nobody pays for them who did not ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from broker import tracing
from broker.errors import BrokerCode
from broker.wire import api_pb2 as pb
from broker.wire.errors import WireCode
from tests.broker_world import World
from tests.grpc_client import dialled
from tests.test_broker_http import RELEASE, VALUE, ask, serving

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.listen(provider)
    yield exporter
    tracing.listen(None)
    provider.shutdown()


def said(span: ReadableSpan) -> dict[str, object]:
    return {str(name).removeprefix("cloister."): value for name, value in (span.attributes or {}).items()}


@pytest.mark.asyncio
async def test_a_call_says_its_route_status_and_code_and_nothing_of_the_caller(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    world = await World.make(tmp_path)
    await world.put("acme/open/a", VALUE)
    agent = await world.admitted()
    async with serving(world) as door:
        await door.call("POST", RELEASE, ask(), by=agent)
        answer = await door.http.post("/v1/challenges", content=b"{", headers={"traceparent": THEIRS})
    released, refused = spans.get_finished_spans()[-2:]
    assert said(released)["route"] == "/v1/secrets/{name:path}:release"
    assert (said(released)["status"], said(refused)["status"]) == (200, 400)
    assert said(refused)["code"] == WireCode.BODY_NOT_JSON
    assert said(refused)["correlation_id"] == answer.headers["x-correlation-id"]
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert not any(word in told for word in (agent.jkt, "acme", "127.0.0.1"))
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_callers_trace_is_linked_to_and_not_joined(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    world = await World.make(tmp_path)
    async with serving(world) as door, dialled(world) as grpc:
        for parent in (THEIRS, "nonsense", "x" * 1000):
            await door.http.get("/v1/log/checkpoint", headers={"traceparent": parent})
        await grpc.call("Broker.GetCheckpoint", pb.Nothing(), metadata=(("traceparent", THEIRS),))
    first, second, third, over_grpc = spans.get_finished_spans()
    for span in (first, over_grpc):
        assert [format(link.context.trace_id, "032x") for link in span.links] == [THEIRS[3:35]]
        assert format(span.context.trace_id, "032x") != THEIRS[3:35]
        assert span.parent is None
    assert not second.links
    assert not third.links
    assert over_grpc.name == "/cloister.v1.Broker/GetCheckpoint"
    await world.broker.close()


@pytest.mark.asyncio
async def test_what_is_proved_on_threads_has_a_span_inside_its_call(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    world = await World.make(tmp_path)
    async with serving(world) as door:
        quote = world.machine.launch("x").quote(b"\1" * 64)
        await door.call("POST", "/v1/verifications", pb_json(quote))
    proved, call = spans.get_finished_spans()
    assert (proved.name, proved.parent) == ("prove", call.context)
    await world.broker.close()


def pb_json(quote: bytes) -> dict[str, object]:
    from broker.wire.bodies import VerificationRequest

    return VerificationRequest(quote=quote).to_dict()


def test_nobody_is_traced_who_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tracing.configure({})
    assert not tracing.configure({tracing.WANTED: "none"})
    monkeypatch.setattr(tracing, "entry_points", lambda **_: ())
    assert not tracing.configure({tracing.WANTED: "otlp"})
    with tracing.call("/x", "id", THEIRS) as span, tracing.part("y") as inner:
        span.say(code=BrokerCode.BROKER_BUSY)
        inner.say(waiting=1)


def test_an_exception_is_told_by_its_type_alone(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.part("x"):
        raise ValueError("a secret")
    assert "a secret" not in "".join(span.to_json() for span in spans.get_finished_spans())
    assert said(spans.get_finished_spans()[0])["exception"] == "ValueError"
