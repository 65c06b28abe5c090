"""Signed CoRIMs: only the named key's word counts, whole, in force, and with nothing critical left unread."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.corim import UNSIGNED, Imported, Unsigned, import_corim
from policies.cose import SignerKey
from policies.errors import BundleError
from policies.keys import manifest_signer

cbor2 = pytest.importorskip("cbor2")

from tests.corim_files import AT, MEANT, ONE, PrivateKey, good, manifest, signed, triple  # noqa: E402 - needs cbor2

KEY = ec.derive_private_key(7, ec.SECP256R1())
OTHER = ec.derive_private_key(8, ec.SECP256R1())
DAY = timedelta(days=1)


def read(raw: bytes, signer: SignerKey | Unsigned | None = None, at: datetime = AT) -> Imported:
    return import_corim("x", raw, signer=signer or KEY.public_key(), environment=MEANT, at=at)


def refusal(raw: bytes, signer: SignerKey | Unsigned | None = None, at: datetime = AT) -> str:
    with pytest.raises(BundleError) as error:
        read(raw, signer, at)
    return error.value.code


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        pytest.param(KEY, -7, id="ES256"),
        pytest.param(KEY, -9, id="ESP256"),
        pytest.param(ec.derive_private_key(9, ec.SECP384R1()), -35, id="ES384"),
        pytest.param(ec.derive_private_key(9, ec.SECP521R1()), -36, id="ES512"),
        pytest.param(ed25519.Ed25519PrivateKey.from_private_bytes(b"\1" * 32), -8, id="EdDSA"),
        pytest.param(ed25519.Ed25519PrivateKey.from_private_bytes(b"\1" * 32), -19, id="Ed25519"),
        pytest.param(rsa.generate_private_key(65537, 2048), -37, id="PS256"),
    ],
)
def test_the_named_keys_signature_is_verified(key: PrivateKey, algorithm: int) -> None:
    raw = signed(good(), key, algorithm=algorithm)
    found = read(raw, key.public_key())
    assert (found.verified, dict(found.values[0])["mr_td"]) == (True, ONE.hex())
    assert refusal(raw[:-1] + bytes([raw[-1] ^ 1]), key.public_key()) == "manifest.signature_invalid"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(signed(good(), OTHER), id="another key"),
        pytest.param(signed(good(), KEY, algorithm=-8), id="an algorithm of another kind of key"),
        pytest.param(signed(good(), KEY, algorithm=-35), id="an algorithm of another curve"),
        pytest.param(signed(good(), KEY, algorithm=-37), id="an algorithm of RSA"),
        pytest.param(signed(good(), KEY, changes={1: None}), id="no algorithm"),
        pytest.param(signed(good(), KEY, changes={1: None}, unprotected={1: -7}), id="an algorithm that is unsigned"),
        pytest.param(signed(good(), KEY, changes={1: "ES256"}), id="an algorithm in words"),
        pytest.param(signed(good(), KEY).replace(ONE, b"\x09" * 48), id="tampered with"),
        pytest.param(signed(good(), OTHER, unprotected={33: b"certificate"}), id="a chain of its own"),
    ],
)
def test_no_other_signature_counts(raw: bytes) -> None:
    assert refusal(raw) == "manifest.signature_invalid"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(signed(good(), KEY, changes={2: [99], 99: 1}), id="unknown"),
        pytest.param(signed(good(), KEY, changes={2: [99]}), id="not there"),
        pytest.param(signed(good(), KEY, changes={2: [4]}), id="known and not there"),
        pytest.param(signed(good(), KEY, changes={2: []}), id="empty"),
        pytest.param(signed(good(), KEY, changes={2: 3}), id="no list"),
        pytest.param(signed(good(), KEY, unprotected={2: [3]}), id="not signed"),
        pytest.param(signed(good(), KEY, unprotected={3: "application/rim+cbor"}), id="twice"),
    ],
)
def test_a_critical_header_that_is_not_understood_refuses(raw: bytes) -> None:
    assert refusal(raw) == "manifest.header_not_understood"


def test_critical_headers_that_are_understood_and_others_that_are_not_critical_pass() -> None:
    assert read(signed(good(), KEY, changes={2: [1, 3, 8], 99: 1}, unprotected={33: b"certificate"})).verified


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({3: None}, id="no content type"),
        pytest.param({3: "application/eat+cwt"}, id="something else"),
        pytest.param({3: None, 258: -16, 259: "application/rim+cbor"}, id="a hash of it"),
        pytest.param({8: None}, id="no signer"),
        pytest.param({15: {1: "Mallory"}}, id="two signers"),
        pytest.param({15: {1: "ACME", 4: 1_900_000_000}}, id="two ends"),
    ],
)
def test_a_header_that_does_not_say_what_is_signed_by_whom_is_refused(changes: dict[int, Any]) -> None:
    assert refusal(signed(good(), KEY, changes=changes)) == "manifest.header_not_understood"


def test_a_manifest_that_is_not_in_its_envelope_is_refused() -> None:
    protected, unprotected, _, signature = cbor2.loads(signed(good(), KEY)).value
    detached = cbor2.CBORTag(18, [protected, unprotected, None, signature])
    assert refusal(cbor2.dumps(detached)) == "manifest.header_not_understood"


def test_the_content_type_may_name_the_profile() -> None:
    kind = 'application/rim+cbor; profile="2.16.840.1.113741.1.16.1"'
    assert read(signed(good(), KEY, changes={3: kind})).verified


def test_cwt_claims_serve_as_well_as_corim_meta() -> None:
    end = int((AT + DAY).timestamp())
    claims = {1: "ACME", 5: end - 200_000, 4: end}
    assert read(signed(good(), KEY, changes={8: None, 15: claims})).until == AT + DAY
    both = signed(good(), KEY, meta={0: {0: "ACME"}, 1: {0: AT - DAY, 1: AT + DAY}}, changes={15: {1: "ACME"}})
    assert refusal(both) == "manifest.header_not_understood"


@pytest.mark.parametrize("window", [{1: AT - DAY}, {1: AT}, {0: AT + DAY, 1: AT + 2 * DAY}])
def test_a_signature_that_is_not_in_force_is_refused(window: dict[int, datetime]) -> None:
    assert refusal(signed(good(), KEY, meta={0: {0: "ACME"}, 1: window})) == "manifest.not_in_force"
    claims = {1: "ACME", **{{0: 5, 1: 4}[key]: int(value.timestamp()) for key, value in window.items()}}
    assert refusal(signed(good(), KEY, changes={8: None, 15: claims})) == "manifest.not_in_force"


def test_the_nearest_end_of_manifest_and_signature_holds() -> None:
    payload = good(validity={1: AT + 3 * DAY})
    assert read(signed(payload, KEY)).until == AT + 3 * DAY
    assert read(signed(payload, KEY, meta={0: {0: "ACME"}, 1: {1: AT + DAY}})).until == AT + DAY
    assert refusal(signed(payload, KEY), at=AT + 3 * DAY) == "manifest.not_in_force"


def test_who_asks_for_a_signature_gets_no_unsigned_file_and_the_other_way_round() -> None:
    assert refusal(good()) == "manifest.unsigned"
    assert refusal(signed(good(), KEY), UNSIGNED) == "manifest.signature_invalid"


def test_an_envelope_is_looked_into_only_when_its_signature_is_good() -> None:
    other = manifest(triple({2: [[7, ONE]]}, environment={0: {1: "secret"}}))
    with pytest.raises(BundleError) as error:
        read(signed(other, OTHER))
    assert "secret" not in str(error.value)


@settings(max_examples=60)
@given(data=st.data())
def test_no_damaged_envelope_is_taken(data: st.DataObject) -> None:
    raw = bytearray(signed(good(), KEY))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BundleError):
        read(bytes(raw))


def pem(path: Path, *, authority: bool = False, begin: datetime = AT - DAY, end: datetime = AT + DAY) -> Path:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ACME")])
    made = (
        x509.CertificateBuilder(name, name, KEY.public_key(), 1, begin, end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(OTHER, SHA256())
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return path


def test_the_signer_is_named_by_a_public_key_or_a_certificate(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path in (key, pem(tmp_path / "certificate.pem")):
        assert read(signed(good(), KEY), manifest_signer(path, at=AT)).verified


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"authority": True}, "manifest.signature_invalid"),
        ({"end": AT - timedelta(seconds=1)}, "manifest.not_in_force"),
        ({"begin": AT + timedelta(seconds=1)}, "manifest.not_in_force"),
    ],
)
def test_a_certificate_of_an_authority_or_of_another_time_names_no_signer(
    tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(BundleError) as error:
        manifest_signer(pem(tmp_path / "certificate.pem", **options), at=AT)
    assert error.value.code == code


@pytest.mark.parametrize("content", [b"", b"key", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_file_with_no_key_in_it_names_no_signer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(BundleError) as error:
        manifest_signer(tmp_path / "key.pem", at=AT)
    assert error.value.code == "manifest.signature_invalid"
