"""SPIFFE's Workload API in the trust domain, asked by a SPIFFE client that somebody else wrote."""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx2
import pytest
import pytest_asyncio
from cryptography import x509
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
from spiffe.errors import PySpiffeError

from broker.app import create_app
from enclave.agent import Agent
from enclave.errors import AgentError, BrokerRefused, Code
from enclave.runtime import Runtime
from enclave.trustfile import TrustFile, render
from enclave.workload import WorkloadApi
from enclave.workload_messages import MESSAGES, SERVICE
from tests.broker_world import URL, World, write_bundle

T = TypeVar("T")
DOMAIN = TrustDomain("simulated.broker.test")
AUDIENCE = "https://api.example"
MAIL = 'permit (principal, action in [Action::"Send"'
TOKEN_RULE = f'''permit (principal, action == Action::"IssueToken", resource == Tenant::"acme")
when {{ principal.simulated && context.audience == "{AUDIENCE}" }};

@id("mail2")
'''


class Scene:
    def __init__(self, world: World, runtime: Runtime, socket: Path) -> None:
        self.world, self.runtime, self.socket = world, runtime, socket

    @property
    def subject(self) -> str:
        return self.runtime.admission.subject

    async def ask(self, question: Callable[[WorkloadApiClient], T]) -> T:
        """In a thread: the client blocks."""

        def work() -> T:
            with WorkloadApiClient(socket_path=f"unix:{self.socket}", default_timeout=10.0) as client:
                return question(client)

        return await asyncio.to_thread(work)

    async def raw(self, method: str, request: Any, *, header: bool = True) -> Any:
        """Without the client library, which would not leave the header out."""
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            call: Any = channel.unary_stream(
                f"/{SERVICE}/{method}", lambda message: message.SerializeToString(), lambda raw: raw
            )
            metadata = (("workload.spiffe.io", "true"),) if header else ()
            return await anext(aiter(call(request, metadata=metadata, timeout=10)))


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = await World.make(tmp_path)
    write_bundle(tmp_path / "bundle", (MAIL, TOKEN_RULE + MAIL), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    raw = render(
        tenant="acme", log_key=world.broker.identity.log_key, broker_url=URL, roots_pem=(world.machine.root_pem,)
    )
    runtime = Runtime(
        domain=world.machine.launch("workload"),
        trust=TrustFile.parse(raw),
        broker_url=URL,
        mailbox="acme/mail/w",
        transport=httpx2.ASGITransport(create_app(world.broker, background=False)),
    )
    await runtime.attest()
    socket = tmp_path / "spiffe.sock"
    async with WorkloadApi(runtime.svids, socket):
        yield Scene(world, runtime, socket)
    assert not socket.exists()
    await runtime.close()
    await world.broker.close()


@pytest.mark.asyncio
async def test_an_unmodified_client_gets_the_agents_certificate_and_bundle(scene: Scene) -> None:
    svid = await scene.ask(lambda client: client.fetch_x509_svid())
    assert svid.spiffe_id == SpiffeId(f"spiffe://{DOMAIN.name}/{scene.subject}")
    context = await scene.ask(lambda client: client.fetch_x509_context())
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(DOMAIN)
    assert bundle is not None
    (authority,) = bundle.x509_authorities
    svid.leaf.verify_directly_issued_by(authority)
    assert svid.private_key.public_key() == svid.leaf.public_key()
    bundles = await scene.ask(lambda client: client.fetch_x509_bundles())
    assert bundles.get_bundle_for_trust_domain(DOMAIN) == bundle


@pytest.mark.asyncio
async def test_an_unmodified_client_gets_and_validates_tokens(scene: Scene) -> None:
    token = await scene.ask(lambda client: client.fetch_jwt_svid(audience={AUDIENCE}))
    assert token.spiffe_id == SpiffeId(f"spiffe://{DOMAIN.name}/{scene.subject}")
    assert set(token.audience) == {AUDIENCE}
    bundle = (await scene.ask(lambda client: client.fetch_jwt_bundles())).get_bundle_for_trust_domain(DOMAIN)
    assert bundle is not None
    assert JwtSvid.parse_and_validate(token.token, bundle, {AUDIENCE}).spiffe_id == token.spiffe_id
    validated = await scene.ask(lambda client: client.validate_jwt_svid(token.token, AUDIENCE))
    assert validated.spiffe_id == token.spiffe_id


def _validate(token: str, audience: str, client: WorkloadApiClient) -> JwtSvid:
    return client.validate_jwt_svid(token, audience)


@pytest.mark.asyncio
async def test_a_token_for_somebody_else_or_changed_on_the_way_does_not_validate(scene: Scene) -> None:
    token = (await scene.ask(lambda client: client.fetch_jwt_svid(audience={AUDIENCE}))).token
    head, body, signature = token.split(".")
    other = "A" if signature[5] != "A" else "B"
    for text, audience in (
        (token, "https://other.example"),
        (f"{head}.{body}.{signature[:5]}{other}{signature[6:]}", AUDIENCE),
        (f"{head}.{body}", AUDIENCE),
        (scene.runtime.admission.token, AUDIENCE),  # an admission is no JWT-SVID
    ):
        with pytest.raises(PySpiffeError):
            await scene.ask(partial(_validate, text, audience))


@pytest.mark.asyncio
async def test_a_token_that_policy_does_not_allow_is_not_handed_out(scene: Scene) -> None:
    with pytest.raises(PySpiffeError, match="policy"):
        await scene.ask(lambda client: client.fetch_jwt_svid(audience={"https://other.example"}))
    with pytest.raises(PySpiffeError, match="exactly one audience"):
        await scene.ask(lambda client: client.fetch_jwt_svid(audience={AUDIENCE, "https://b.example"}))
    stranger = SpiffeId(f"spiffe://{DOMAIN.name}/agent/acme/x")
    with pytest.raises(PySpiffeError, match="not this agent"):
        await scene.ask(lambda client: client.fetch_jwt_svid(audience={AUDIENCE}, subject=stranger))


@pytest.mark.asyncio
async def test_the_crl_comes_with_certificates_and_bundles(scene: Scene) -> None:
    for method in ("FetchX509SVID", "FetchX509Bundles"):
        raw = await scene.raw(method, MESSAGES[f"{method.removeprefix('Fetch')}Request"]())
        answer = MESSAGES[f"{method.removeprefix('Fetch')}Response"].FromString(raw)
        (crl,) = answer.crl
        assert len(x509.load_der_x509_crl(crl)) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"])
async def test_a_request_without_the_header_is_refused(scene: Scene, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await scene.raw(method, MESSAGES[f"{method.removeprefix('Fetch')}Request"](), header=False)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
async def test_the_socket_is_the_owners_alone(scene: Scene) -> None:
    assert stat.S_IMODE(scene.socket.stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_a_group_that_is_named_can_use_it_too_and_nobody_else(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "shared.sock"
    async with WorkloadApi(scene.runtime.svids, path, group=os.getgid()):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())


@pytest.mark.asyncio
async def test_a_socket_that_cannot_be_given_to_its_group_is_not_served(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    path = tmp_path / "shared.sock"
    with pytest.raises(PermissionError):
        await WorkloadApi(scene.runtime.svids, path, group=1).open()
    assert not path.exists()


@pytest.mark.asyncio
@pytest.mark.parametrize("group", ["no-such-group", "root"])
async def test_an_agent_does_not_start_with_a_group_that_is_none_for_agents(
    scene: Scene, tmp_path: Path, group: str
) -> None:
    agent = Agent("named", spiffe_socket=tmp_path / "agent.sock", spiffe_group=group)
    with pytest.raises(AgentError) as refused:
        await agent.start(domain=scene.world.machine.launch("named"), trust=scene.runtime.trust, broker_url=URL)
    assert refused.value.code is Code.AGENT_GROUP


def _watch(
    client: WorkloadApiClient, seen: list[Any], told: tuple[threading.Event, threading.Event], failed: threading.Event
) -> None:
    """Note each certificate's serial number; one event for the first, one for the second."""

    def success(context: Any) -> None:
        seen.append(context.default_svid.leaf.serial_number)
        told[min(len(set(seen)), 2) - 1].set()

    client.stream_x509_contexts(success, lambda _: failed.set(), retry_connect=False)


@pytest.mark.asyncio
async def test_clients_that_wait_are_told_of_the_next_certificate(scene: Scene) -> None:
    first, wanted, failed = threading.Event(), threading.Event(), threading.Event()
    seen: list[Any] = []
    client = WorkloadApiClient(socket_path=f"unix:{scene.socket}")
    try:
        _watch(client, seen, (first, wanted), failed)
        assert await asyncio.to_thread(first.wait, 10)
        keeper = scene.runtime.svids
        await keeper._fetch()
        assert await asyncio.to_thread(wanted.wait, 10)
        assert seen[0] != seen[-1]
        assert not failed.is_set()
    finally:
        await asyncio.to_thread(client.close)


@pytest.mark.asyncio
async def test_t30_nothing_is_handed_out_once_the_broker_has_revoked_the_agent(scene: Scene) -> None:
    await scene.world.broker.administration.revoke(scene.world.settings.admins[0], scene.subject, "gone")
    keeper = scene.runtime.svids
    keeper._svid = None
    with pytest.raises(BrokerRefused) as refused:
        await keeper.current()
    keeper._refuse(refused.value)
    with pytest.raises(PySpiffeError, match=r"agent\.revoked"):
        await scene.ask(lambda client: client.fetch_x509_svid())


@pytest.mark.asyncio
async def test_an_agent_serves_it_by_naming_a_socket(scene: Scene, tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    agent = Agent("named", spiffe_socket=socket)
    await agent.start(
        domain=scene.world.machine.launch("named"),
        trust=scene.runtime.trust,
        broker_url=URL,
        transport=httpx2.ASGITransport(create_app(scene.world.broker, background=False)),
    )
    try:
        there = Scene(scene.world, agent.running, socket)
        svid = await there.ask(lambda client: client.fetch_x509_svid())
        assert svid.spiffe_id == SpiffeId(f"spiffe://{DOMAIN.name}/{agent.verdict.subject}")
    finally:
        await agent.stop()
    assert not socket.exists()
