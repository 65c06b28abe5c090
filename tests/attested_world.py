"""A broker in a simulated trust domain, and agents who judge it."""

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from attestation.errors import AttestationError
from attestation.quote import Quote
from broker.wire.attested import BrokerReference
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.errors import WireError
from enclave.clock import BrokerTime
from enclave.errors import EnclaveError
from enclave.keys import AgentKeys
from enclave.session import Session, State
from enclave.trustfile import TrustFile, render
from simulator.domain import SimulatedTd
from tests.broker_world import URL, World

KEYS = AgentKeys.generate()


def reference_of(td: SimulatedTd, **changes: Any) -> BrokerReference:
    quote = Quote.parse(td.quote(b"r" * 64)).td
    members = {
        "mr_td": quote.mr_td.hex(),
        "rtmr1": quote.rtmrs[1].hex(),
        "rtmr2": quote.rtmrs[2].hex(),
        "launches": [],
        "platforms": [td.platform.ppid.hex()],
    }
    found = members | changes
    return BrokerReference.from_dict({name: value for name, value in found.items() if value is not None})


class Attested:
    """A broker in a simulated domain, and what agents are told about it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.td = world.machine.launch("broker", image="broker")

    def trust(self, *, roots: bytes | None = None, **changes: Any) -> TrustFile:
        return TrustFile.parse(
            render(
                tenant="acme",
                log_key=self.world.broker.identity.log_key,
                broker_url=URL,
                roots_pem=(roots or self.world.machine.root_pem,),
                reference=reference_of(self.td, **changes),
            )
        )

    async def begin(self, trust: TrustFile) -> None:
        await self.world.broker.attestor.begin(self.td, trust.digest)

    async def answer(self, request: ChallengeRequest) -> ChallengeResponse:
        """Over the wire and back."""
        broker = self.world.broker
        answer = broker.admission.challenge(
            ChallengeRequest.from_dict(request.to_dict()), await broker.attestor.proof()
        )
        return ChallengeResponse.from_dict(json.loads(json.dumps(answer.to_dict())))


@pytest_asyncio.fixture
async def attested(tmp_path: Path) -> AsyncIterator[Attested]:
    world = await World.make(tmp_path, prefetch=False)
    yield Attested(world)
    await world.broker.close()


def session_of(trust: TrustFile) -> Session:
    return Session(KEYS, trust, BrokerTime())


async def challenged(
    attested: Attested, session: Session, change: Callable[[ChallengeResponse], ChallengeResponse] = lambda a: a
) -> str:
    """ "ok", or the code with which the agent turns away."""
    answer = change(await attested.answer(session.ask(os.urandom(32))))
    try:
        session.challenged(answer)
    except (EnclaveError, WireError, AttestationError) as error:
        assert session.state is State.FAILED
        return str(error.code)
    return "ok"
