"""Certificates for agents: as SPIFFE wants them, no longer than the admission, and off the moment an agent falls."""

from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from spiffe import SpiffeId, X509Bundle
from spiffe import TrustDomain as SpiffeTrustDomain
from spiffe.svid.x509_svid import X509Svid

from broker.app import create_app
from broker.authority import AUTHORITY_S, CRL_S, ROTATE_S
from broker.errors import BrokerCode
from broker.keyring import KEEP_AFTER_S, PUBLISH_BEFORE_S
from broker.svids import trust_domain_of
from broker.wire.errors import WireCode, WireError
from broker.wire.svid import SvidRequest, SvidResponse, TrustBundle, judge_svid, request_for, spiffe_id, split_id
from tests.broker_world import URL, Agent, World, outcome, write_bundle

DOMAIN = "simulated.broker.test"


def fresh_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    found = await World.make(tmp_path, database=request.param == "sqlite")
    yield found
    await found.broker.close()


@pytest_asyncio.fixture
async def plain(tmp_path: Path) -> AsyncIterator[World]:
    found = await World.make(tmp_path)
    yield found
    await found.broker.close()


async def issued(agent: Agent, key: ec.EllipticCurvePrivateKey | None = None) -> SvidResponse:
    request = request_for(key or fresh_key())
    answer = await agent.acting(lambda session: agent.world.broker.svids.issue(session, request))
    return SvidResponse.from_dict(answer.to_dict())


def judged(world: World, answer: SvidResponse, bundle: TrustBundle | None = None) -> str:
    try:
        judge_svid(answer.certificate, bundle or world.broker.svids.bundle(), at=world.broker.clock())
    except WireError as error:
        return str(error.code)
    return "ok"


# ── what is issued ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_certificate_is_an_x509_svid_for_the_agents_own_tls_key(plain: World) -> None:
    agent, key = await plain.admitted(), fresh_key()
    answer = await issued(agent, key)
    leaf = x509.load_der_x509_certificate(answer.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://{DOMAIN}/{agent.subject}"] == [answer.spiffe_id]
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not any((usage.value.key_cert_sign, usage.value.crl_sign, usage.value.key_agreement))
    assert leaf.public_key() == key.public_key()
    assert plain.kinds()[-1] == "svid.issued"


@pytest.mark.asyncio
async def test_it_lives_no_longer_than_the_admission(plain: World) -> None:
    agent = await plain.admitted()
    plain.machine.clock.advance(200)
    leaf = x509.load_der_x509_certificate((await issued(agent)).certificate)
    record = plain.broker.administration.agent(agent.subject)
    assert leaf.not_valid_after_utc.timestamp() == record.expires_at_s
    assert leaf.not_valid_after_utc - plain.broker.clock() < timedelta(seconds=101)


@pytest.mark.asyncio
async def test_other_software_takes_it_for_what_it_is(plain: World) -> None:
    """cryptography's own path validation, and the SPIFFE library's parser."""
    agent, key = await plain.admitted(), fresh_key()
    answer = await issued(agent, key)
    leaf = x509.load_der_x509_certificate(answer.certificate)
    authorities = [x509.load_der_x509_certificate(raw) for raw in answer.bundle.authorities]
    at = plain.broker.clock()
    builder = verification.PolicyBuilder().store(verification.Store(authorities)).time(at.replace(tzinfo=None))
    chain = builder.build_client_verifier().verify(leaf, []).chain
    assert chain == [leaf, authorities[0]]
    raw_key = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    svid = X509Svid.parse_raw(answer.certificate, raw_key)
    assert svid.spiffe_id == SpiffeId(answer.spiffe_id)
    bundle = X509Bundle.parse_raw(svid.spiffe_id.trust_domain, b"".join(answer.bundle.authorities))
    assert bundle.x509_authorities == set(authorities)


@pytest.mark.asyncio
async def test_the_bundle_says_who_signed_it_and_every_member_is_covered(plain: World) -> None:
    bundle = (await issued(await plain.admitted())).bundle
    key = plain.broker.identity.key.public_key()
    bundle.verify(key)
    changes: list[dict[str, Any]] = [
        {"trust_domain": "other"},
        {"authorities": (b"x",)},
        {"crls": ()},
        {"sequence": bundle.sequence + 1},
        {"at_s": bundle.at_s + 1},
    ]
    for change in changes:
        with pytest.raises(WireError) as refused:
            replace(bundle, **change).verify(key)
        assert refused.value.code is WireCode.SVID_BUNDLE
    with pytest.raises(WireError):
        bundle.verify(fresh_key().public_key())


@pytest.mark.asyncio
async def test_the_spiffe_bundle_is_a_key_set_of_authorities_and_token_keys(plain: World) -> None:
    document = plain.broker.svids.document()
    uses = [key["use"] for key in document["keys"]]
    assert uses == ["x509-svid", "jwt-svid"]
    assert len(document["keys"][0]["x5c"]) == 1
    assert "kid" not in document["keys"][0]
    assert document["spiffe_sequence"] == 1
    assert document["spiffe_refresh_hint"] > 0


# ── what is not issued ─────────────────────────────────────────────────────────────────────────────────────────────


def csr(key: Any) -> SvidRequest:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    found = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    return SvidRequest(csr=found.public_bytes(Encoding.DER))


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["garbage", "forged", "P-384", "Ed25519", "identity"])
async def test_a_request_without_a_fresh_p256_key_of_the_callers_own_is_refused(plain: World, what: str) -> None:
    agent = await plain.admitted()
    good = csr(fresh_key()).csr
    request = {
        "garbage": SvidRequest(csr=b"0\x03\x02\x01\x00"),
        "forged": SvidRequest(csr=good[:-1] + bytes([good[-1] ^ 1])),
        "P-384": csr(ec.generate_private_key(ec.SECP384R1())),
        "Ed25519": csr(ed25519.Ed25519PrivateKey.generate()),
        "identity": csr(agent.key),
    }[what]
    got = await outcome(agent.acting(lambda session: plain.broker.svids.issue(session, request)))
    assert got == WireCode.SVID_REQUEST


@pytest.mark.asyncio
async def test_names_in_the_request_count_for_nothing(plain: World) -> None:
    agent, key = await plain.admitted(), fresh_key()
    wanted = x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/agent/acme/somebody-else")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([wanted]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = SvidRequest(csr=builder.sign(key, SHA256()).public_bytes(Encoding.DER))
    answer = await agent.acting(lambda session: plain.broker.svids.issue(session, request))
    assert judge_svid(answer.certificate, answer.bundle, at=plain.broker.clock()).subject == agent.subject


@pytest.mark.asyncio
async def test_a_revoked_agent_gets_none(plain: World) -> None:
    agent = await plain.admitted()
    await plain.broker.administration.revoke(plain.settings.admins[0], agent.subject, "gone")
    got = await outcome(agent.acting(lambda session: plain.broker.svids.issue(session, request_for(fresh_key()))))
    assert got == BrokerCode.AGENT_REVOKED


# ── what becomes of it ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t30_a_revoked_agents_certificates_are_on_the_crl_within_a_second(world: World) -> None:
    agent, other = await world.admitted("a"), await world.admitted("b")
    first, second, stays = await issued(agent), await issued(agent), await issued(other)
    assert {judged(world, one) for one in (first, second, stays)} == {"ok"}
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "gone")
    world.machine.clock.advance(1)
    assert [judged(world, one) for one in (first, second, stays)] == [WireCode.SVID_REVOKED] * 2 + ["ok"]


@pytest.mark.asyncio
async def test_a_quarantined_agents_certificate_is_on_hold_until_it_passes_again(world: World, tmp_path: Path) -> None:
    agent = await world.admitted()
    answer = await issued(agent)
    folder = tmp_path / "bundle"
    write_bundle(
        folder,
        ('permit (principal, action == Action::"Admit"', 'forbid (principal, action == Action::"Admit"'),
        version=2,
    )
    await world.broker.administration.reload_policies(world.settings.admins[0])
    await world.broker.sessions.sweep()
    world.machine.clock.advance(1)
    crl = x509.load_der_x509_crl(world.broker.svids.bundle().crls[0])
    assert [entry.extensions[0].value.reason for entry in crl] == [x509.ReasonFlags.certificate_hold]
    assert judged(world, answer) == WireCode.SVID_REVOKED
    write_bundle(folder, version=3)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert await outcome(world.broker.sessions.of_subject(agent.subject, world.broker.clock())) == "ok"
    world.machine.clock.advance(1)
    assert judged(world, answer) == "ok"


@pytest.mark.asyncio
async def test_with_more_fallen_agents_than_a_crl_takes_nobody_is_believed(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.svids.MAX_FALLEN", 1)
    agent, other = await plain.admitted("a"), await plain.admitted("b")
    answer, _ = await issued(other), await issued(agent)
    await plain.broker.administration.revoke(plain.settings.admins[0], agent.subject, "gone")
    plain.machine.clock.advance(1)
    assert judged(plain, answer) == WireCode.SVID_CRL_STALE


@pytest.mark.asyncio
async def test_crl_numbers_rise_and_a_crl_lasts_a_minute(plain: World) -> None:
    answer = await issued(await plain.admitted())
    before = x509.load_der_x509_crl(answer.bundle.crls[0])
    plain.machine.clock.advance(1)
    after = x509.load_der_x509_crl(plain.broker.svids.bundle().crls[0])
    numbers = [crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for crl in (before, after)]
    assert numbers[0] < numbers[1]
    plain.machine.clock.advance(CRL_S)
    assert judged(plain, answer, answer.bundle) == WireCode.SVID_CRL_STALE
    assert judged(plain, answer) == "ok"


@pytest.mark.asyncio
async def test_an_expired_certificate_is_good_for_nothing_and_leaves_the_crl(world: World) -> None:
    agent = await world.admitted()
    answer = await issued(agent)
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "gone")
    world.machine.clock.advance(301)
    assert judged(world, answer) == WireCode.SVID_EXPIRED
    assert len(x509.load_der_x509_crl(world.broker.svids.bundle().crls[0])) == 0


@pytest.mark.asyncio
async def test_everybody_can_fetch_bundle_and_crl_where_the_certificate_says(plain: World) -> None:
    leaf = x509.load_der_x509_certificate((await issued(await plain.admitted())).certificate)
    (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    transport = httpx2.ASGITransport(create_app(plain.broker, background=False))
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
        crl = await http.get(point.full_name[0].value)
        assert crl.headers["content-type"] == "application/pkix-crl"
        assert x509.load_der_x509_crl(crl.content).issuer == leaf.issuer
        signed = TrustBundle.from_dict((await http.get("/v1/svids/bundle")).json())
        signed.verify(plain.broker.identity.key.public_key())
        found = X509Bundle.parse_raw(SpiffeTrustDomain(DOMAIN), b"".join(signed.authorities))
        document = (await http.get("/v1/spiffe/bundle")).json()
        told = [b64decode(key["x5c"][0]) for key in document["keys"] if key["use"] == "x509-svid"]
        assert {x509.load_der_x509_certificate(raw) for raw in told} == found.x509_authorities
        unknown = await http.get("/v1/spiffe/crls/nobody")
        assert (unknown.status_code, unknown.json()["code"]) == (404, BrokerCode.SVID_AUTHORITY)
        assert (await http.post("/v1/spiffe/authorities:rotate", json={})).status_code == 401
        assert (await http.post("/v1/svids", json={"csr": ""})).status_code == 401


# ── rotation ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_new_authority_is_published_before_it_signs_and_the_old_one_stays_as_long_as_it_is_needed(
    world: World,
) -> None:
    agent, svids = await world.admitted(), world.broker.svids
    old = await issued(agent)
    await svids.rotate("root")
    bundle = svids.bundle()
    assert (len(bundle.authorities), len(bundle.crls), bundle.sequence) == (2, 2, 2)
    assert bundle.authorities[1] == old.bundle.authorities[0]
    world.machine.clock.advance(PUBLISH_BEFORE_S - 100)
    await agent.attest()
    late = await issued(agent)  # still by the old one
    world.machine.clock.advance(101)
    await agent.attest()
    new = await issued(agent)
    authorities = [x509.load_der_x509_certificate(raw) for raw in new.bundle.authorities]
    issuers = [x509.load_der_x509_certificate(one.certificate).issuer for one in (late, new)]
    assert issuers == [authorities[1].subject, authorities[0].subject]
    assert (judged(world, late), judged(world, new)) == ("ok", "ok")
    assert judged(world, new, replace(new.bundle, authorities=bundle.authorities[1:])) == WireCode.SVID_NOT_ISSUED
    world.machine.clock.advance(KEEP_AFTER_S)
    assert len(svids.bundle().authorities) == 1


@pytest.mark.asyncio
async def test_authorities_are_replaced_in_time_by_themselves(world: World) -> None:
    svids = world.broker.svids
    await svids.maintain()
    assert svids.bundle().sequence == 1
    world.machine.clock.advance(ROTATE_S + 1)
    await svids.maintain()
    assert len(svids.bundle().authorities) == 2
    world.machine.clock.advance(2 * AUTHORITY_S)  # nobody looked after it for half a year
    await svids.maintain()
    await world.broker.collateral.refresh()
    answer = await issued(await world.admitted())
    assert judged(world, answer) == "ok"
    assert world.kinds().count("authority.drawn") == 2


@pytest.mark.asyncio
async def test_an_authority_is_the_same_in_every_life_of_the_broker(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    agent = await world.admitted()
    answer = await issued(agent)
    before = world.broker.svids.bundle().authorities
    await world.restart()
    try:
        assert world.broker.svids.bundle().authorities == before
        assert judged(world, answer) == "ok"
    finally:
        await world.broker.close()


# ── judging ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Forge:
    """An authority of a test's own, with which it signs what no broker would."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.key = fresh_key()
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forge")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.authority = (
            self.builder(self.key, self.name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, SHA256())
        )

    def builder(self, key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.at - timedelta(minutes=1))
            .not_valid_after(self.at + timedelta(minutes=5))
        )

    def leaf(
        self,
        *names: str,
        ca: bool = False,
        signs: bool = True,
        issues: bool = False,
        critical: bool = True,
        server: bool = True,
    ) -> bytes:
        key = fresh_key()
        both = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
        usage = x509.KeyUsage(signs, False, False, False, False, issues, False, False, False)
        builder = (
            self.builder(key, x509.Name([]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=critical)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        )
        if names:
            uris = [x509.UniformResourceIdentifier(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=True)
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.DER)

    def bundle(self, trust_domain: str = "forge.test", *, crl: bool = True) -> TrustBundle:
        moment = self.at.astimezone(UTC).replace(tzinfo=None)
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(moment)
            .next_update(moment + timedelta(minutes=1))
            .sign(self.key, SHA256())
        )
        return TrustBundle.sign(
            fresh_key(),
            trust_domain=trust_domain,
            authorities=[self.authority.public_bytes(Encoding.DER)],
            crls=[made.public_bytes(Encoding.DER)] if crl else [],
            sequence=1,
            at_s=int(self.at.timestamp()),
        )


NAME = "spiffe://forge.test/agent/acme/x"


@pytest.mark.parametrize(
    ("names", "how", "code"),
    [
        ((NAME,), {}, "ok"),
        ((), {}, WireCode.SVID_MALFORMED),
        ((NAME, NAME + "y"), {}, WireCode.SVID_MALFORMED),
        (("https://forge.test/x",), {}, WireCode.SVID_MALFORMED),
        (("spiffe://forge.test",), {}, WireCode.SVID_MALFORMED),
        (("spiffe://forge.test/a/../b",), {}, WireCode.SVID_MALFORMED),
        (("spiffe://FORGE.test/a",), {}, WireCode.SVID_MALFORMED),
        (("spiffe://other.test/agent/acme/x",), {}, WireCode.SVID_DOMAIN),
        ((NAME,), {"ca": True}, WireCode.SVID_MALFORMED),
        ((NAME,), {"signs": False}, WireCode.SVID_MALFORMED),
        ((NAME,), {"issues": True}, WireCode.SVID_MALFORMED),
        ((NAME,), {"critical": False}, WireCode.SVID_MALFORMED),
        ((NAME,), {"server": False}, WireCode.SVID_MALFORMED),
    ],
    ids=str,
)
def test_a_certificate_with_anything_amiss_is_refused(names: tuple[str, ...], how: dict[str, Any], code: str) -> None:
    forge = Forge(datetime.now(UTC).replace(microsecond=0))
    try:
        judge_svid(forge.leaf(*names, **how), forge.bundle(), at=forge.at)
        found = "ok"
    except WireError as error:
        found = str(error.code)
    assert found == code


def test_without_a_crl_nobody_is_believed() -> None:
    forge = Forge(datetime.now(UTC).replace(microsecond=0))
    with pytest.raises(WireError) as refused:
        judge_svid(forge.leaf(NAME), forge.bundle(crl=False), at=forge.at)
    assert refused.value.code is WireCode.SVID_CRL_STALE


def test_another_authority_of_the_same_name_is_another_authority() -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    forge, twin = Forge(at), Forge(at)
    with pytest.raises(WireError) as refused:
        judge_svid(twin.leaf(NAME), forge.bundle(), at=at)
    assert refused.value.code is WireCode.SVID_NOT_ISSUED


@pytest.mark.parametrize("raw", [b"", b"0\x00", b"\x30\x03\x02\x01\x01", bytes(100)], ids=["none", "empty", "int", "0"])
def test_bytes_that_are_no_certificate_are_refused(raw: bytes) -> None:
    forge = Forge(datetime.now(UTC).replace(microsecond=0))
    with pytest.raises(WireError) as refused:
        judge_svid(raw, forge.bundle(), at=forge.at)
    assert refused.value.code is WireCode.SVID_MALFORMED


def test_members_of_a_bundle_that_are_no_certificates_or_crls_issue_and_revoke_nothing() -> None:
    forge = Forge(datetime.now(UTC).replace(microsecond=0))
    good = forge.bundle()
    mixed = replace(good, authorities=(b"no DER", *good.authorities), crls=(b"no DER", *good.crls))
    assert judge_svid(forge.leaf(NAME), mixed, at=forge.at).spiffe_id == NAME
    for wrong, code in (
        (replace(good, authorities=(b"no DER",)), WireCode.SVID_NOT_ISSUED),
        (replace(good, crls=(b"no DER",)), WireCode.SVID_CRL_STALE),
    ):
        with pytest.raises(WireError) as refused:
            judge_svid(forge.leaf(NAME), wrong, at=forge.at)
        assert refused.value.code is code


def test_ids_are_spelled_in_one_way_only() -> None:
    assert split_id(spiffe_id("a.test", "agent/acme/x")) == ("a.test", "agent/acme/x")
    for text in ("spiffe://a.test/", "spiffe://a.test//x", "spiffe://a:1/x", "spiffe://u@a/x", "spiffe://a/%41", "x"):
        with pytest.raises(ValueError, match="SPIFFE"):
            split_id(text)


def test_t38_the_trust_domain_of_simulated_agents_says_so() -> None:
    assert trust_domain_of("https://Broker.example:8443/x", simulated=False) == "broker.example"
    assert trust_domain_of("http://[::1]:1", simulated=True) == "simulated.--1"
    assert trust_domain_of("agents.example", simulated=True) == "simulated.agents.example"
    assert trust_domain_of("simulated.agents.example", simulated=True) == "simulated.agents.example"
    assert trust_domain_of("agents.example", simulated=False) == "agents.example"
