"""The KBS protocol from outside: a client written from its description attests, fetches, is refused as it must be."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import MalformedEvidence, VerificationFailed
from attestation.guest import GuestEvidence, init_data_digest, runtime_text
from attestation.verifier import Verifier
from broker.errors import BrokerError
from broker.judging import Judge
from broker.kbs.jwe import TeeKey
from broker.kbs.messages import AttestBody, read_request
from broker.wire.bodies import PutSecretRequest
from broker.wire.errors import WireError
from simulator import ccel
from simulator.broker_fixture import BrokerUnderTest
from simulator.guest.sandbox import missing
from simulator.lab import Lab
from simulator.machine import Machine
from tests.kbs_client import KbsClient, decrypt, ec_jwk, jcs, over_http, unb64u
from tests.kbs_world import NAME, ROOT, SECRET, attested, attester, bundle, claims, entries, guest, refused
from tests.kbs_world import kbs as kbs
from tests.kbs_world import own as own

# ── the way as it should be ────────────────────────────────────────────────────────────────────────────────────────


def test_a_guest_attests_and_fetches_what_policy_names_for_kbs(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    assert client.fetch(NAME) == SECRET
    assert client.handshakes == 1


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-521", "RSA-OAEP-256"],
)
def test_each_kind_of_key_opens_what_is_sealed_to_it(kbs: BrokerUnderTest, key: Any) -> None:
    assert guest(kbs, key=key).fetch(NAME) == SECRET


@pytest.mark.parametrize("by", ["cookie", "bearer", "both"])
def test_cookie_and_bearer_serve_alike(kbs: BrokerUnderTest, by: str) -> None:
    client = attested(kbs)
    answer = client.resource(NAME, by=by, token="stale.stale.stale" if by == "both" else None)
    assert decrypt(answer.json, client.key) == SECRET


def test_the_cookie_is_that_of_the_protocol_and_its_end_never_moves(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    first = client.auth()
    name, _, value = first.cookie.partition("=")
    assert (name, len(value), first.json["extra-params"]) == ("kbs-session-id", 32, "")
    told = [part.strip() for part in first.headers["set-cookie"].split(";")]
    ends = parsedate_to_datetime(told[1].removeprefix("Expires="))
    assert len(told) == 2
    assert timedelta(seconds=299) < ends - kbs.machine.clock.now() <= timedelta(seconds=300)
    assert len(base64.b64decode(client.nonce)) == 32
    second = client.attest()
    assert second.cookie == first.cookie
    again = parsedate_to_datetime(second.headers["set-cookie"].partition("Expires=")[2])
    assert abs((again - ends).total_seconds()) <= 1


@pytest.mark.parametrize("extra", ["", {}, {"supported-hash-algorithms": ["sha384"]}])
def test_older_and_newer_spellings_of_extra_params_pass(kbs: BrokerUnderTest, extra: Any) -> None:
    assert guest(kbs).auth(**{"extra-params": extra}).status == 200


def test_init_data_may_be_absent_or_null_and_else_are_those_of_mrconfigid(kbs: BrokerUnderTest) -> None:
    document = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"aa.toml" = "x = 1"\n'
    td = kbs.machine.launch("init", mr_config_id=hashlib.sha384(document.encode()).digest())
    for body, status in ((None, 200), (document, 200), (document + "\n", 403), (None, 200)):
        client = guest(kbs, td=td)
        client.auth()
        sent = client.body()
        sent["init-data"] = None if body is None else {"format": "toml", "body": body}
        answer = client.attest(sent)
        assert answer.status == status
    del sent["init-data"]
    client.auth()
    sent = {name: value for name, value in client.body().items() if name != "init-data"}
    assert client.attest(sent).status == 200


def test_evidence_of_further_devices_is_bound_and_nothing_is_claimed_of_it(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    more = json.dumps({"sampledevice": {"svn": "2", "report_data": "AAAA"}})
    assert client.attest(client.body(more)).status == 200
    assert list(claims(client.token)["submods"]) == ["cpu0"]


def test_a_guest_without_firmware_log_announces_two_algorithms_and_writes_one(kbs: BrokerUnderTest) -> None:
    spec = b"Spec ID Event03\0" + bytes.fromhex("00000000 00 02 00 02 02000000 0c00 3000 1200 2000 00")
    head = (1).to_bytes(4, "little") + (3).to_bytes(4, "little") + bytes(20) + len(spec).to_bytes(4, "little") + spec
    assert len(head) == 69
    td = kbs.machine.launch("aael")
    log = head + td.event_log()[len(ccel.HEADER) :] + b"\xff" * 8
    client = guest(kbs, td=td)
    client.attester = lambda report_data: (td.quote(report_data), log)
    assert client.fetch(NAME) == SECRET


def test_a_guest_whose_platform_nobody_knew_waits_for_its_collateral(tmp_path: Path) -> None:
    machine = Machine.create(seed="unknown platform")
    with BrokerUnderTest(machine, tmp_path, bundle=bundle(), tenant="acme") as served:
        served.put_secret(NAME, SECRET)
        assert guest(served, td=machine.launch("new", platform=1)).fetch(NAME) == SECRET


# ── what is refused, each with its status ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", ["0.1.0", "0.3.0", "0.4.1", "1.0.0"])
def test_other_versions_are_refused_in_the_words_that_guests_look_for(kbs: BrokerUnderTest, version: str) -> None:
    answer = guest(kbs).auth(version=version)
    refused(answer, 400, "AttestationError", "kbs.version_unsupported")
    assert "KBS Client Protocol Version Mismatch" in answer.json["detail"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tee": "sample"}, "kbs.tee_unsupported"),
        ({"tee": "snp"}, "kbs.tee_unsupported"),
        ({"tee": None}, "body.field_invalid"),
        ({"version": "four"}, "body.field_invalid"),
        ({"version": 4}, "body.field_invalid"),
    ],
)
def test_other_tees_and_malformed_requests_are_refused(
    kbs: BrokerUnderTest, changes: dict[str, Any], code: str
) -> None:
    refused(guest(kbs).auth(**changes), 400, "AttestationError", code)


def test_a_request_lacks_nothing(kbs: BrokerUnderTest) -> None:
    send = over_http(kbs.url)
    for body in (b"", b"[]", b"{", b'{"version":"0.4.0","version":"0.4.0","tee":"tdx","extra-params":""}'):
        refused(send("POST", "/kbs/v0/auth", body, {}), 400, "AttestationError", "body.not_json")
    lacking = b'{"version":"0.4.0","tee":"tdx"}'
    refused(send("POST", "/kbs/v0/auth", lacking, {}), 400, "AttestationError", "body.field_missing")


def test_a_nonce_serves_once_whatever_comes_of_it(kbs: BrokerUnderTest) -> None:
    won = attested(kbs)
    refused(won.attest(), 401, "AttestationError", "challenge.used")
    lost = guest(kbs)
    lost.auth()
    refused(lost.attest(lost.body(report_data=b"\1" * 64)), 403, "AttestationError", "binding.report_data_mismatch")
    refused(lost.attest(), 401, "AttestationError", "challenge.used")


def test_a_nonce_is_good_for_its_own_cookie_alone(kbs: BrokerUnderTest) -> None:
    one, two = guest(kbs), guest(kbs)
    one.auth()
    two.auth()
    refused(one.attest(cookie=two.cookie), 401, "AttestationError", "challenge.forged")
    refused(two.attest(cookie=""), 401, "AttestationError", "kbs.session_unknown")
    refused(two.attest(cookie="kbs-session-id=zz"), 401, "AttestationError", "kbs.session_unknown")
    both = f"{one.cookie}; {two.cookie}"
    refused(two.attest(cookie=both), 401, "AttestationError", "kbs.session_unknown")
    assert two.attest().status == 200


@pytest.mark.parametrize("nonce", ["", "x", "AAAA", base64.b64encode(bytes(32)).decode()])
def test_a_nonce_that_was_not_given_out_is_refused(kbs: BrokerUnderTest, nonce: str) -> None:
    client = guest(kbs)
    client.auth()
    client.nonce = nonce
    refused(client.attest(client.body(report_data=b"\1" * 64)), 401, "AttestationError", "challenge.forged")


def test_a_nonce_of_the_brokers_own_protocol_is_none_here_nor_the_other_way_round(kbs: BrokerUnderTest) -> None:
    caller = bytes(32)
    body = json.dumps({"client_nonce": base64.urlsafe_b64encode(caller).decode().rstrip("=")}).encode()
    given = unb64u(over_http(kbs.url)("POST", "/v1/challenges", body, {}).json["nonce"])
    client = guest(kbs)
    client.auth()
    client.nonce = base64.b64encode(given).decode()
    refused(client.attest(), 401, "AttestationError", "challenge.forged")
    fresh = guest(kbs)
    fresh.auth()
    foreign = kbs.broker.admission._challenges
    with pytest.raises(BrokerError, match=r"challenge\.forged"):
        foreign.check(base64.b64decode(fresh.nonce), bytes.fromhex(fresh.cookie.partition("=")[2]), kbs.broker.clock())


def test_a_key_that_is_swapped_after_hashing_is_refused(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    body = client.body()
    client.key = ec.generate_private_key(ec.SECP256R1())
    body["runtime-data"]["tee-pubkey"] = client.jwk
    refused(client.attest(body), 403, "AttestationError", "binding.report_data_mismatch")


def test_additional_evidence_that_is_altered_by_a_byte_is_refused(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    body = client.body('{"sampledevice":{}}')
    body["tee-evidence"]["additional_evidence"] = '{"sampledevice": {}}'
    refused(client.attest(body), 403, "AttestationError", "binding.report_data_mismatch")


def test_members_of_the_key_beyond_the_protocols_are_not_hashed(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    wide = {**client.jwk, "use": "enc", "kid": "1"}
    hashed_too = client.body(report_data=client.report_data(jwk=wide))
    hashed_too["runtime-data"]["tee-pubkey"] = wide
    refused(client.attest(hashed_too), 403, "AttestationError", "binding.report_data_mismatch")
    client.auth()
    sent_only = client.body()
    sent_only["runtime-data"]["tee-pubkey"] = {**client.jwk, "use": "enc"}
    assert client.attest(sent_only).status == 200


def test_the_tee_does_not_change_between_the_calls(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    body = client.body()
    refused(client.attest({**body, "tee": "sample"}), 400, "AttestationError", "kbs.tee_unsupported")
    client.auth()
    body = client.body()
    body["tee-evidence"]["primary_evidence"] = {"svn": "1", "report_data": base64.b64encode(bytes(48)).decode()}
    refused(client.attest(body), 400, "AttestationError", "body.field_invalid")


def test_a_body_beyond_the_bound_is_refused_in_the_protocols_words(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    client.auth()
    answer = client.send("POST", "/kbs/v0/attest", b" " * ((2 << 20) + 1), {"Cookie": client.cookie})
    refused(answer, 413, "AttestationError", "body.too_large")


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "AAAA", "alg": "A256KW"},
        {"kty": "EC", "crv": "P-384", "alg": "ECDH-ES+A256KW", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES", "x": "A" * 43, "y": "A" * 43},
        {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "A" * 43, "y": "A" * 43},
        {"kty": "RSA", "alg": "RSA1_5", "n": "A" * 342, "e": "AQAB"},
        {"kty": "RSA", "alg": "RSA-OAEP-256", "n": "_" * 86, "e": "AQAB"},
        {**ec_jwk(ec.generate_private_key(ec.SECP256R1()).public_key()), "d": "AAAA"},
        [],
        None,
    ],
)
def test_a_key_to_which_nothing_could_be_sealed_is_refused(jwk: Any) -> None:
    with pytest.raises(BrokerError, match=r"kbs\.key_unsupported"):
        TeeKey.read(jwk)


def test_what_the_policy_does_not_permit_is_403_and_a_guest_attests_once(kbs: BrokerUnderTest) -> None:
    for name in ("acme/open/top", "acme/agents/a", "other/open/a", "acme/shut/a"):
        client = guest(kbs)
        with pytest.raises(SystemExit, match="403"):
            client.fetch(name)
        assert client.handshakes == 1
        refused(client.resource(name), 403, "PolicyDeny", "policy.")


def test_a_permit_that_does_not_speak_of_kbs_releases_nothing_there(kbs: BrokerUnderTest) -> None:
    refused(attested(kbs).resource("acme/agents/a"), 403, "PolicyDeny", "policy.condition_not_met")


def test_what_is_not_there_is_404(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    refused(client.resource("acme/open/none"), 404, "PluginInternalError", "secret.unknown")
    for name in ("acme/open", "acme/open/a/b", "acme/.open/a", "acme/op en/a", "a//b", ""):
        refused(client.resource(name.replace(" ", "%20")), 404, "InvalidRequestPath", "secret.name_invalid")


def test_whoever_is_refused_does_not_learn_what_exists(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    there, absent = client.resource("acme/agents/a"), client.resource("acme/shut/none")
    assert (there.status, absent.status) == (403, 403)


@pytest.mark.parametrize("where", ["", "nothing", "resource-policy", "attestation-policy", "reference-value/a"])
def test_other_plugins_and_methods_are_404(kbs: BrokerUnderTest, where: str) -> None:
    send = over_http(kbs.url)
    refused(send("POST", f"/kbs/v0/{where}", b"{}", {}), 404, "PluginNotFound", "route.unknown")
    refused(send("GET", "/kbs/v0/auth", b"", {}), 404, "PluginNotFound", "route.unknown")
    refused(send("POST", f"/kbs/v0/resource/{NAME}", b"new", {}), 404, "PluginNotFound", "route.unknown")


def test_without_a_credential_it_is_401_so_that_guests_attest(kbs: BrokerUnderTest) -> None:
    client = guest(kbs)
    refused(client.resource(NAME, by="none"), 401, "TokenNotFound", "kbs.token_missing")
    client.auth()
    refused(client.resource(NAME), 401, "TokenNotFound", "kbs.token_missing")
    refused(client.resource(NAME, by="bearer", token="a.b.c"), 401, "TokenVerifierError", "kbs.token_invalid")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["EC", "P-256", "0.4.0", "tdx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
PLACES = (
    ("init-data",),
    ("runtime-data",),
    ("runtime-data", "nonce"),
    ("runtime-data", "tee-pubkey"),
    ("runtime-data", "tee-pubkey", "kty"),
    ("runtime-data", "tee-pubkey", "crv"),
    ("runtime-data", "tee-pubkey", "x"),
    ("tee-evidence",),
    ("tee-evidence", "primary_evidence"),
    ("tee-evidence", "primary_evidence", "quote"),
    ("tee-evidence", "primary_evidence", "cc_eventlog"),
    ("tee-evidence", "additional_evidence"),
)
GOOD: dict[str, Any] = {
    "init-data": None,
    "runtime-data": {
        "nonce": base64.b64encode(bytes(32)).decode(),
        "tee-pubkey": ec_jwk(ec.derive_private_key(7, ec.SECP256R1()).public_key()),
    },
    "tee-evidence": {"primary_evidence": {"quote": "AAAA", "cc_eventlog": None}, "additional_evidence": ""},
}


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=150)
def test_whatever_stands_in_a_body_is_read_or_refused_by_code(place: tuple[str, ...], value: object) -> None:
    body = json.loads(json.dumps(GOOD))
    inside = body
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    with suppress(BrokerError, WireError, MalformedEvidence):
        found = AttestBody.read(json.dumps(body).encode())
        found.evidence.log()
        if found.evidence.init_data is not None:
            init_data_digest(found.evidence.init_data)
    with suppress(BrokerError, WireError):
        read_request(json.dumps({"version": value, "tee": value, "extra-params": value}).encode())


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_whatever_bytes_come_are_refused_by_code(raw: bytes) -> None:
    for read in (AttestBody.read, read_request):
        with pytest.raises((BrokerError, WireError, MalformedEvidence)):
            read(raw)


# ── known answers ──────────────────────────────────────────────────────────────────────────────────────────────────

SCALAR = 0x20888F31FE0D3D06B6D30D1BFCBB11EA2985D3C4F4620C71D0BBB4C93800A45B
NONCE = "g+nR1WUqp4ih7hBZZtMEqv14zaktQElOKwyO2GC0E2s="
DEVICE = '{"sampledevice":{"svn":"2","report_data":"nmovE2bhlSnQGJIS70AxtfTYah/IlpW/H4qbAV7jOZXUmg6ep3gWMh5rLOP1jvLK"}}'
JWE = {
    "protected": "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIn"
    "giOiJseklwNzRaUFpWbmVhdGMxdlpHcTJFMzJtMktOTDJJVERrbVp6TXZFRHAwIiwieSI6InlzeGpDMEJsVkxtQkM1S29JNXFaYlU5LVkwYnFq"
    "WmRqUy1pRW5UR2NiRjQifX0",
    "encrypted_key": "z2hD2wLM64yLjQN9go7LupKc8Ly3GIdPdiLjmo7MhIasCtGV2WTfwg",
    "iv": "ejw1kQS2m2aI56t-",
    "ciphertext": "9FKZlNobpaUeYws",
    "tag": "9D7dNRDbrA6p4P_Nry4kJQ",
}


def test_known_answers_of_runtime_data() -> None:
    jwk = ec_jwk(ec.derive_private_key(SCALAR, ec.SECP256R1()).public_key())
    known = {
        "": "b002fe74d76dd09b248d4fe637e980b213847e3d98558246c263182060a3ece9f2c20642efcb40cf65720eb13ab7e4e5",
        DEVICE: "3eadf3094bf15b8b104ac7182d601de068c19be46c45d01c42b9b963823b3e71cd68c6c1ed03bb061a2e99ce6dde541e",
    }
    for additional, digest in known.items():
        evidence = GuestEvidence(quote=b"", runtime=runtime_text(NONCE, TeeKey.read(jwk).members, additional))
        assert evidence.report_data.hex() == digest + "00" * 16
    device = hashlib.sha384(jcs({"nonce": NONCE, "tee-pubkey": jwk})).hexdigest()
    assert device == "9e6a2f1366e19529d0189212ef4031b5f4d86a1fc89695bf1f8a9b015ee33995d49a0e9ea77816321e6b2ce3f58ef2ca"
    check = hashlib.sha384(jcs({"a": "test", "b": 1, "c": {"d": "e"}})).hexdigest()
    assert check == "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"


def test_known_answer_of_a_jwe() -> None:
    assert decrypt(JWE, ec.derive_private_key(SCALAR, ec.SECP256R1())) == b"hello agent"


def test_the_protected_header_has_the_order_that_guests_rebuild() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwe = TeeKey.read(ec_jwk(key.public_key())).encrypt(b"x")
    raw = unb64u(jwe["protected"])
    told = json.loads(raw)
    assert list(told) == ["alg", "enc", "epk"]
    assert list(told["epk"]) == ["crv", "kty", "x", "y"]
    assert raw == json.dumps(told, separators=(",", ":")).encode()
    assert list(jwe) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    assert decrypt(jwe, key) == b"x"


# ── from a machine ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lab_releases_its_secrets_to_guests(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        put = PutSecretRequest(value=SECRET)
        lab.call(lambda broker: broker.administration.put_secret(broker.settings.admins[0], "lab/x/y", put))
        client = KbsClient(send=over_http(lab.broker_url), attester=attester(lab.machine.launch("guest")))
        assert client.fetch("lab/x/y") == SECRET


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_an_unmodified_guest_in_a_trust_domain_fetches_from_a_lab(tmp_path: Path) -> None:
    """`sim run`: the client takes its quote from configfs and knows nothing of this project."""
    with Lab(tmp_path) as lab:
        secret = tmp_path / "secret"
        secret.write_bytes(SECRET)
        command = [sys.executable, "-m", "cloister"]
        keys = ["--broker", lab.broker_url, "--key-file", str(lab.admin_key_file)]
        put = [*command, "secret", "put", "lab/x/y", str(secret), *keys]
        subprocess.run(put, cwd=ROOT, check=True, capture_output=True)
        client = [sys.executable, str(ROOT / "tests" / "kbs_client.py"), lab.broker_url, "lab/x/y"]
        sandboxed = [*command, "sim", "run", "--machine", str(lab.machine_folder), "--", *client]
        done = subprocess.run(sandboxed, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, SECRET), done.stderr.decode()


def test_t32_evidence_of_strangers_is_verified_beside_the_event_loop(
    own: BrokerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []
    verify, chain = Verifier.verify, Judge.require_chain

    def noting(work: Any) -> Any:
        def noted(*args: Any, **named: Any) -> Any:
            try:
                return work(*args, **named)
            except VerificationFailed:
                failed.append(threading.current_thread().name)
                raise

        return noted

    monkeypatch.setattr(Verifier, "verify", noting(verify))
    monkeypatch.setattr(Judge, "require_chain", noting(chain))

    def forged(report_data: bytes) -> tuple[bytes, bytes | None]:
        quote = bytearray(own.machine.launch("guest").quote(report_data))
        quote[48 + 136] ^= 1
        return bytes(quote), None

    attested(own)
    forger = KbsClient(send=over_http(own.url), attester=forged)
    stranger = guest(own, td=Machine.create(seed="another stranger").launch("guest"))
    for client, code in ((forger, "quote.signature_invalid"), (stranger, "chain.")):
        client.auth()
        refused(client.attest(), 403, "AttestationError", code)
    assert len(failed) == 2
    assert all(name.startswith("verify") for name in failed)
    assert not entries(own, "guest.refused")
