"""Tokens of the KBS protocol: an EAR that other tools read, which ends with what it stands for."""

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.encoding import b64url
from attestation.errors import TokenRefused
from simulator.broker_fixture import BrokerUnderTest
from tests.kbs_client import decrypt, over_http, unb64u
from tests.kbs_world import NAME, RULES, SECRET, attested, bundle, claims, forged, guest, header, refused
from tests.kbs_world import kbs as kbs
from tests.kbs_world import own as own


def test_the_token_is_an_ear_in_the_dialect_of_confidential_containers(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    told = claims(client.token)
    assert header(client.token).keys() == {"typ", "alg", "jwk"}
    assert told["exp"] - told["iat"] == 300
    assert told["iss"] == f"{kbs.url}/kbs"
    module = told["submods"]["cpu0"]
    assert module["ear.status"] == "affirming"
    assert len(module["ear.trustworthiness-vector"]) == 8
    evidence = module["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"]["tee-pubkey"] == client.jwk
    assert evidence["tdx"]["tcb_status"] == "UpToDate"
    assert evidence["tdx"]["quote"]["body"]["report_data"] == client.report_data().hex()


def test_its_certificate_chains_to_our_ca_and_to_no_other(kbs: BrokerUnderTest, tmp_path: Path) -> None:
    jwk = header(attested(kbs).token)["jwk"]
    leaf = x509.load_der_x509_certificate(base64.b64decode(jwk["x5c"][0]))
    answer = over_http(kbs.url)("GET", "/v1/kbs/ca", b"", {})
    ca = x509.load_pem_x509_certificate(answer.raw)
    leaf.verify_directly_issued_by(ca)
    spki = leaf.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert spki[1:] == unb64u(jwk["x"]) + unb64u(jwk["y"])
    with BrokerUnderTest(kbs.machine, tmp_path, bundle=bundle(), tenant="acme") as stranger:
        other = x509.load_pem_x509_certificate(over_http(stranger.url)("GET", "/v1/kbs/ca", b"", {}).raw)
    with pytest.raises(ValueError, match="Issuer"):
        leaf.verify_directly_issued_by(other)


def test_a_key_in_the_header_is_never_believed(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    token = forged(client.token, ec.generate_private_key(ec.SECP256R1()))
    refused(client.resource(NAME, by="bearer", token=token), 401, "TokenVerifierError", "kbs.token_invalid")


def test_a_token_whose_header_is_no_object_is_none_of_ours(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    for head in (b"[]", b"1", b'"ES256"', b"null"):
        token = ".".join((b64url(head), *client.token.split(".")[1:]))
        refused(client.resource(NAME, by="bearer", token=token), 401, "TokenVerifierError", "kbs.token_invalid")


def test_our_own_key_signs_nothing_else_that_would_be_taken(kbs: BrokerUnderTest) -> None:
    client = attested(kbs)
    key = kbs.broker.kbs._tokens._keys.signing
    again = forged(client.token, key)
    assert client.resource(NAME, by="bearer", token=again).status == 200
    for changes, code in (
        ({"iss": f"{kbs.url}"}, "kbs.token_invalid"),
        ({"iat": claims(again)["iat"] + 600}, "kbs.token_invalid"),
        ({"exp": "never"}, "kbs.token_invalid"),
        ({"exp": 1}, "kbs.token_expired"),
        ({"cloister": None}, "kbs.token_invalid"),
    ):
        answer = client.resource(NAME, by="bearer", token=forged(client.token, key, **changes))
        refused(answer, 401, "TokenVerifierError", code)


def test_no_token_of_one_door_opens_another(kbs: BrokerUnderTest) -> None:
    """Admission tokens and results are none here; a KBS token is none of theirs."""
    client = attested(kbs)
    send = over_http(kbs.url)
    shown = {"Authorization": f"DPoP {client.token}", "DPoP": "x.y.z"}
    assert send("POST", "/v1/secrets/acme/open/a:release", b"{}", shown).status == 401
    with pytest.raises(TokenRefused, match=r"token\.header_not_allowed"):
        kbs.broker.identity.open(client.token, kbs.broker.clock())
    quote = base64.urlsafe_b64encode(kbs.machine.launch("result").quote(bytes(range(64)))).decode().rstrip("=")
    result = send("POST", "/v1/verifications", json.dumps({"quote": quote}).encode(), {}).json["result"]
    refused(client.resource(NAME, by="bearer", token=result), 401, "TokenVerifierError", "kbs.token_invalid")


def test_nonces_cookies_and_tokens_end(own: BrokerUnderTest) -> None:
    late = guest(own)
    late.auth()
    own.machine.clock.advance(61)
    refused(late.attest(), 401, "AttestationError", "challenge.expired")
    client = attested(own)
    own.machine.clock.advance(301)
    refused(client.resource(NAME), 401, "TokenNotFound", "kbs.token_missing")
    refused(client.resource(NAME, by="bearer"), 401, "TokenVerifierError", "kbs.token_expired")
    assert client.fetch(NAME) == SECRET
    assert client.handshakes == 2


def test_a_change_of_policy_is_felt_at_the_next_use(own: BrokerUnderTest) -> None:
    client = attested(own)
    assert client.resource(NAME).status == 200
    shut = bundle(RULES.replace('context.via == "kbs"', 'context.via == "cloister"'), version=2)
    for name, raw in shut.items():
        (own.policy_folder / name).write_bytes(raw)
    own.reload_policy()
    refused(client.resource(NAME), 403, "PolicyDeny", "policy.condition_not_met")


def test_a_guest_that_no_longer_passes_is_refused_whatever_token_it_holds(own: BrokerUnderTest) -> None:
    client = attested(own)
    own.machine.recover("revoke-pck", platform=0)
    assert own.refresh_collateral()
    refused(client.resource(NAME, by="bearer"), 403, "PolicyDeny", "chain.revoked")


def test_a_token_outlives_the_process_because_its_evidence_is_judged_again(own: BrokerUnderTest) -> None:
    client = attested(own)
    own.broker.kbs._guests.clear()
    own.broker.kbs._sessions.clear()
    assert decrypt(client.resource(NAME, by="bearer").json, client.key) == SECRET
