"""A hostile caller at every door: what strangers can fill, replay and outlast, and what a role cannot do alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from attestation.errors import Code
from broker.wire.bodies import AttestationRequest, VerificationRequest
from tests.broker_world import Agent, World, outcome


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()


# ── what strangers can fill ────────────────────────────────────────────────────────────────────────────────────────


def borrowed(agent: Agent, *, forged: bool) -> AttestationRequest:
    """Evidence made of a quote that anybody can have: of another domain, or with its body changed to fit."""
    client_nonce, answer = agent.challenge()
    binding = agent.binding(answer.nonce)
    if forged:
        quote = bytearray(agent.td.quote(binding.report_data))
        quote[48 + 136] ^= 1  # MRTD: no platform has signed this
    else:
        quote = bytearray(agent.world.agent("public").td.quote(b"published long ago".ljust(64, b".")))
    evidence = agent.evidence(binding, client_nonce, quote=bytes(quote))
    return AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("forged", "code"), [(True, Code.QUOTE_SIGNATURE), (False, Code.BINDING_REPORT_DATA)], ids=["forged", "replayed"]
)
async def test_t32_a_certificate_chain_that_anybody_can_copy_fills_neither_log_nor_archive(
    world: World, forged: bool, code: Code
) -> None:
    agent = world.agent()
    before = world.kinds()
    request = borrowed(agent, forged=forged)
    assert await outcome(agent.attest(request)) == code
    assert world.kinds() == before


@pytest.mark.asyncio
async def test_t32_a_forged_quote_that_a_relying_service_brings_earns_no_entry(world: World) -> None:
    quote = bytearray(world.machine.launch("td").quote(b"q" * 64))
    quote[48 + 136] ^= 1
    before = world.kinds()
    answer = await world.broker.verification.verify(VerificationRequest(quote=bytes(quote)))
    assert (answer.ok, answer.code) == (False, Code.QUOTE_SIGNATURE)
    assert world.kinds() == before
