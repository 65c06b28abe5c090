"""Direct channels: both ends proved by certificates that the broker issued, and cut when one of them falls."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from broker.app import create_app
from broker.wire.errors import WireCode, WireError
from broker.wire.svid import Leaf, TrustBundle
from enclave import direct
from enclave.errors import AgentError, BrokerRefused, Code
from enclave.runtime import Runtime
from enclave.svid import MAX_BUNDLE_AGE_S, SvidKeeper
from enclave.trustfile import TrustFile, render
from tests.broker_world import URL, World

HOST = "127.0.0.1"


class Pair:
    """A broker and its agents, in one loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transport = httpx2.ASGITransport(create_app(world.broker, background=False))
        raw = render(
            tenant="acme", log_key=world.broker.identity.log_key, broker_url=URL, roots_pem=(world.machine.root_pem,)
        )
        self.trust = TrustFile.parse(raw)
        self.runtimes: list[Runtime] = []

    async def agent(self, label: str) -> Runtime:
        runtime = Runtime(
            domain=self.world.machine.launch(label),
            trust=self.trust,
            broker_url=URL,
            mailbox=f"acme/mail/{label}",
            transport=self.transport,
        )
        self.runtimes.append(runtime)
        await runtime.attest()
        return runtime

    async def revoke(self, runtime: Runtime) -> None:
        await self.world.broker.administration.revoke(self.world.settings.admins[0], runtime.admission.subject, "gone")


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    world = await World.make(tmp_path)
    found = Pair(world)
    yield found
    for runtime in found.runtimes:
        await runtime.close()
    await world.broker.close()


async def echo(peer: direct.Peer) -> None:
    while line := await peer.reader.readline():
        peer.writer.write(peer.subject.encode() + b" said " + line)


async def listen(
    server: Runtime, *, handle: Callable[[direct.Peer], Awaitable[None]] = echo, accepts: bool = True
) -> tuple[asyncio.Server, int]:
    found = await direct.serve(server.svids, handle, HOST, 0, accepts=lambda _: accepts)
    return found, int(found.sockets[0].getsockname()[1])


async def heard(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends or cuts the connection."""
    try:
        return await reader.read()
    except (ConnectionError, ssl.SSLError):
        return b""


async def attempt(opening: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bytes:
    """What a server says to somebody who opens a connection and greets; nothing when there is none."""
    try:
        reader, writer = await opening
    except OSError:
        return b""
    writer.write(b"hello\n")
    try:
        return await heard(reader)
    finally:
        writer.transport.abort()


async def fresh(keeper: SvidKeeper) -> None:
    """The bundle of this moment, as `run` would have fetched it by now."""
    keeper._take(await keeper.host.call(lambda calls: calls.trust_bundle()))


@pytest.mark.asyncio
async def test_two_agents_prove_each_other_and_talk(pair: Pair) -> None:
    server, client = await pair.agent("server"), await pair.agent("client")
    listening, port = await listen(server)
    async with listening, direct.connect(client.svids, HOST, port, subject=server.admission.subject) as peer:
        peer.writer.write(b"hello\n")
        assert await peer.reader.readline() == f"{client.admission.subject} said hello\n".encode()
        assert peer.subject == server.admission.subject
        tls = peer.writer.get_extra_info("ssl_object")
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", direct.PROTOCOL)


@pytest.mark.asyncio
async def test_t15_another_agent_that_answers_at_the_address_is_not_talked_to(pair: Pair) -> None:
    server, client, wanted = [await pair.agent(name) for name in ("server", "client", "wanted")]
    heard: list[bytes] = []

    async def hear(peer: direct.Peer) -> None:
        heard.append(await peer.reader.read())

    listening, port = await listen(server, handle=hear)
    async with listening:
        with pytest.raises(AgentError) as refused:
            async with direct.connect(client.svids, HOST, port, subject=wanted.admission.subject) as peer:
                peer.writer.write(b"secret\n")
    assert refused.value.code is Code.PEER_REFUSED
    assert b"".join(heard) == b""


@pytest.mark.asyncio
async def test_a_server_turns_away_whom_it_does_not_accept(pair: Pair) -> None:
    server, client = await pair.agent("server"), await pair.agent("client")
    listening, port = await listen(server, accepts=False)
    async with listening, direct.connect(client.svids, HOST, port, subject=server.admission.subject) as peer:
        assert await heard(peer.reader) == b""


@pytest.mark.asyncio
async def test_whoever_shows_no_certificate_or_one_of_another_broker_is_turned_away(pair: Pair, tmp_path: Path) -> None:
    server = await pair.agent("server")
    listening, port = await listen(server)
    other = Pair(await World.make(tmp_path / "other"))
    stranger = await other.agent("stranger")
    try:
        async with listening:
            bare = ssl.create_default_context()
            foreign = direct._context(
                ssl.PROTOCOL_TLS_CLIENT, await stranger.svids.current(), await stranger.svids.bundle()
            )
            for context in (bare, foreign):
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols([direct.PROTOCOL])
                opening = asyncio.open_connection(HOST, port, ssl=context, server_hostname="")
                assert await attempt(opening) == b""
    finally:
        await stranger.close()
        await other.world.broker.close()


@pytest.mark.asyncio
async def test_t30_a_revoked_peer_is_refused_and_its_open_channels_are_cut(pair: Pair) -> None:
    server, client = await pair.agent("server"), await pair.agent("client")
    listening, port = await listen(server)
    async with listening, direct.connect(client.svids, HOST, port, subject=server.admission.subject) as peer:
        peer.writer.write(b"hello\n")
        assert await peer.reader.readline()
        await pair.revoke(client)
        pair.world.machine.clock.advance(1)
        await fresh(server.svids)
        assert await heard(peer.reader) == b""
        async with direct.connect(client.svids, HOST, port, subject=server.admission.subject) as again:
            assert await heard(again.reader) == b""


@pytest.mark.asyncio
async def test_a_client_refuses_a_revoked_server_before_it_sends_anything(pair: Pair) -> None:
    server, client = await pair.agent("server"), await pair.agent("client")
    listening, port = await listen(server)
    await pair.revoke(server)
    pair.world.machine.clock.advance(1)
    await fresh(client.svids)
    async with listening:
        with pytest.raises(WireError) as refused:
            async with direct.connect(client.svids, HOST, port, subject=server.admission.subject):
                pass
    assert refused.value.code is WireCode.SVID_REVOKED


@pytest.mark.asyncio
async def test_without_a_bundle_of_the_last_minute_nobody_is_believed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = await pair.agent("server"), await pair.agent("client")
    listening, port = await listen(server)
    async with listening, direct.connect(client.svids, HOST, port, subject=server.admission.subject) as peer:
        certificate = peer.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert client.svids.judge(certificate).subject == server.admission.subject
    now_s = client.time.now_s()
    monkeypatch.setattr(type(client.time), "now_s", lambda _: now_s + MAX_BUNDLE_AGE_S + 2)
    with pytest.raises(WireError) as refused:
        client.svids.judge(certificate)
    assert refused.value.code is WireCode.SVID_CRL_STALE


# ── what is believed of the broker's answers ───────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_certificate_is_kept_until_half_of_its_life_is_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await pair.agent("client")
    first = await client.svids.current()
    assert await client.svids.current() is first
    later_s = (first.begins_s + first.ends_s) / 2
    monkeypatch.setattr(type(client.time), "now_s", lambda _: later_s)
    pair.world.machine.clock.advance(later_s - first.begins_s)
    second = await client.svids.current()
    assert second.private_key is not first.private_key
    assert second.certificate != first.certificate


class Lying:
    """A network that puts a bundle or certificate of its own into the broker's answers."""

    def __init__(self, runtime: Runtime, change: Callable[[TrustBundle], TrustBundle]) -> None:
        self.runtime, self.change = runtime, change
        self.time = runtime.time
        self.admission = runtime.admission

    async def call(self, make: Any) -> Any:
        return self.change(await self.runtime.call(make))


@pytest.mark.asyncio
async def test_a_bundle_that_the_pinned_broker_did_not_sign_or_signed_long_ago_is_refused(pair: Pair) -> None:
    client = await pair.agent("client")
    broker = pair.world.broker

    def forged(bundle: TrustBundle) -> TrustBundle:
        return TrustBundle.sign(
            ec.generate_private_key(ec.SECP256R1()),
            trust_domain=bundle.trust_domain,
            authorities=bundle.authorities,
            crls=bundle.crls,
            sequence=bundle.sequence,
            at_s=bundle.at_s,
        )

    def old(bundle: TrustBundle) -> TrustBundle:
        return TrustBundle.sign(
            broker.identity.key,
            trust_domain=bundle.trust_domain,
            authorities=bundle.authorities,
            crls=bundle.crls,
            sequence=bundle.sequence,
            at_s=bundle.at_s - MAX_BUNDLE_AGE_S - 2,
        )

    for change in (forged, old):
        keeper = SvidKeeper(Lying(client, change))
        with pytest.raises(WireError) as refused:
            await keeper.bundle()
        assert refused.value.code is WireCode.SVID_BUNDLE


@pytest.mark.asyncio
async def test_a_certificate_for_another_key_or_agent_is_refused(pair: Pair) -> None:
    one, other = await pair.agent("one"), await pair.agent("other")

    class Swapped(Lying):
        async def call(self, make: Any) -> Any:
            return await other.call(make)  # asked in another agent's name

    keeper = SvidKeeper(Swapped(one, lambda bundle: bundle))
    with pytest.raises(WireError) as refused:
        await keeper.current()
    assert refused.value.code is WireCode.SVID_NOT_ISSUED


@pytest.mark.asyncio
async def test_a_revoked_agent_gets_no_certificate_and_its_keeper_says_why(pair: Pair) -> None:
    client = await pair.agent("client")
    await client.svids.current()
    await pair.revoke(client)
    client.svids._svid = None
    with pytest.raises(BrokerRefused) as refused:
        await client.svids.current()
    assert refused.value.code == "agent.revoked"


@pytest.mark.asyncio
async def test_a_keeper_in_the_background_fetches_and_says_when_the_broker_refuses(pair: Pair) -> None:
    client = await pair.agent("client")
    for refused in (False, True):
        if refused:
            await pair.revoke(client)
        keeper = SvidKeeper(client)
        change = keeper.change
        keeper.start()
        await change.wait()
        assert (keeper.refused is not None) is refused
        await keeper.stop()
    assert keeper.refused is not None
    assert keeper.refused.code == "agent.revoked"
    assert keeper.latest is None


def test_a_leaf_keeps_its_key_to_itself() -> None:
    assert "key" not in {name for name, one in Leaf.__dataclass_fields__.items() if one.repr}
