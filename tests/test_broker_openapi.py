"""The OpenAPI document and the broker, held against each other: generated requests to every endpoint, by everybody who
may come through its door, end in no failure of the broker's and in no answer that the document does not describe.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from broker.app import TITLE, VERSION
from broker.calls import Endpoint
from broker.limits import Rates
from broker.rest.openapi import document
from broker.rest.routes import ENDPOINTS
from tests.broker_world import URL, Agent, World
from tests.test_broker_http import Client, serving

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(document(ENDPOINTS, title=TITLE, version=VERSION, server=URL))
# 503 is an answer here, not a failure: each with who gives it.
UNAVAILABLE = {"collateral.pending", "collateral.unavailable", "broker.busy", "broker.deadline"}


@schemathesis.serializer("application/x-protobuf")
def octets(_: schemathesis.SerializationContext, value: object) -> bytes:
    """Whatever was generated; what is no protobuf must be refused like anything else that is none."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


class Doors:
    """The application, and one of each who may come in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client, agent: Agent) -> None:
        self.loop, self.client, self.agent = loop, client, agent

    def send(self, case: Any, by: str) -> None:
        kwargs = case.as_transport_kwargs(base_url=URL)
        wanted = {name: kwargs.get(name) for name in ("method", "url", "params", "json", "data", "headers")}
        prepared = requests.Request(**wanted).prepare()
        body = prepared.body or b""
        raw = body if isinstance(body, bytes) else str(body).encode()
        answer = self.loop.run_until_complete(self._answer(str(prepared.method), str(prepared.url), raw, by))
        if answer.status_code == 503 and answer.json()["code"] in UNAVAILABLE:
            return
        case.validate_response(answer, checks=CHECKS)

    async def _answer(self, method: str, url: str, body: bytes, by: str) -> httpx2.Response:
        """The address goes out as it was generated, the proof names it as the server reads it."""
        path, client = unquote(urlsplit(url).path), self.client
        for _ in range(2):
            proofs: dict[str, str] = {}
            if by == "agent":
                proofs = self.agent.headers(method, path, body, nonce=client.nonce)
            elif by:
                proofs = client.world.admin_headers(method, path, body, nonce=client.nonce)
            answer = await client.http.request(method, url, content=body, headers=proofs)
            fresh = answer.headers.get("dpop-nonce")
            if answer.status_code != 401 or fresh in (None, client.nonce):
                break
            client.nonce = fresh
        return answer


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()

    async def made() -> Doors:
        no_limits = Rates(source_per_s=0, tenant_per_s=0)
        world = await World.make(tmp_path_factory.mktemp("openapi"), rates=no_limits)
        await world.put("acme/open/a", b"a")
        client = await stack.enter_async_context(serving(world))
        return Doors(loop, client, await world.admitted())

    found = loop.run_until_complete(made())
    yield found
    loop.run_until_complete(stack.aclose())
    loop.run_until_complete(found.client.world.broker.close())
    loop.close()


def operations() -> list[object]:
    by_door = {"OPEN": ("",), "AGENT": ("agent",), "ADMIN": ("admin",), "EITHER": ("agent", "admin")}
    found: list[object] = []
    for endpoint in ENDPOINTS:
        found += [pytest.param(endpoint, by, id=f"{endpoint.name}-{by}") for by in by_door[endpoint.door.name]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("endpoint", "by"), operations())
def test_generated_requests_end_as_the_document_says(doors: Doors, endpoint: Endpoint, by: str) -> None:
    path = endpoint.path.replace(":path}", "}").replace(":int}", "}")

    operation = SCHEMA[path][endpoint.method]
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if endpoint.sends else [])]

    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes)))
    @settings(
        max_examples=6, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        doors.send(case, by)

    check()
