"""Roots, roles and the SGX extension, with Intel's own certificates where they are at hand."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import pck
from attestation.certificates import Certificate, Crl
from attestation.chains import claimed_platform
from attestation.checks import Unmet
from attestation.errors import AttestationError, Code, MalformedEvidence
from attestation.pck import PckFacts
from attestation.pem import pem_blocks, pem_decode
from attestation.pki import PCK_CHAIN, TCB_CHAIN, KnownCertificates, TrustRoots, in_roles
from attestation.quote import Quote
from tests import vectors_real
from tests.pki_factory import AT, CA, PCK, ROOT, SGX, Cert, CrlParts, SgxParts, World, integer, octets, seq, tlv

INTEL = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
INTEL_POINT = (
    "0ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5"
    "67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"
)


def certificate(cert: Cert) -> Certificate:
    return Certificate.parse(cert.der())


def test_intels_root_is_the_one_that_intel_publishes() -> None:
    roots = TrustRoots.intel()
    (root,) = roots.certificates
    assert roots.sha256 == (INTEL,) == (sha256(root.der).hexdigest(),)
    assert root.point.hex() == INTEL_POINT
    assert root.common_name == ROOT
    assert (root.is_ca, root.path_length, root.signs_certificates, root.signs_crls) == (True, 1, True, True)
    assert (root.not_before, root.not_after) == (1526899510, 2524607999)
    assert f"{root.serial:x}" == "22650cd65a9d3489f383b49552bf501b392706ac"


def test_intels_root_is_read_once() -> None:
    assert TrustRoots.intel() is TrustRoots.intel()


def test_roots_are_found_by_key() -> None:
    world = World()
    roots = TrustRoots.from_pem(world.pem(["root"]))
    edition = certificate(Cert(ROOT, ROOT, "root", "root", True, 1, serial=5))
    assert roots.holding(edition.point) is roots.certificates[0]
    assert roots.holding(TrustRoots.intel().certificates[0].point) is None


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_roots_that_are_no_certificates_are_refused(pem: bytes) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        TrustRoots.from_pem(pem)
    assert caught.value.code is Code.ROOTS_MALFORMED


def test_a_certificate_is_read_as_it_was_written() -> None:
    found = certificate(Cert(CA, ROOT, "ca", "root", True, 0, serial=77, not_before=AT - 5, not_after=AT + 5))
    assert (found.common_name, found.serial, found.not_before, found.not_after) == (CA, 77, AT - 5, AT + 5)
    assert (found.is_ca, found.path_length, found.signs_certificates, found.signs_crls) == (True, 0, True, True)
    assert (found.signs_data, found.sgx_extension, found.missing, found.unknown_critical) == (False, None, (), ())
    assert not found.self_issued


def test_roles_are_found_by_name_and_put_in_order() -> None:
    world = World()
    parts = {name: Certificate.parse(world.cert(name)) for name in world.certs}
    chain = in_roles([parts["root"], parts["leaf"], parts["ca"]], PCK_CHAIN)
    assert chain == (parts["leaf"], parts["ca"], parts["root"])
    with pytest.raises(Unmet, match="need one TCB signer"):
        in_roles([parts["leaf"], parts["root"]], TCB_CHAIN)


def test_a_certificate_is_parsed_once_and_its_signature_checked_once() -> None:
    world = World()
    known = KnownCertificates(TrustRoots.from_pem(world.pem(["root"])))
    leaf, ca, root = (known.parse(body) for body in pem_blocks(world.pem(["leaf", "ca", "root"])))
    assert known.parse(pem_blocks(world.pem(["leaf"]))[0]) is leaf
    assert known.issued(ca, leaf)
    assert known.issued(ca, leaf)
    assert not known.issued(root, leaf)
    assert (
        KnownCertificates(TrustRoots.from_pem(world.pem(["root"])), known).parse(pem_blocks(world.pem(["leaf"]))[0])
        is leaf
    )


# -- the SGX extension


def facts(parts: SgxParts, ca: str = CA) -> PckFacts:
    return PckFacts.of(certificate(Cert(PCK, ca, "leaf", "ca", False, sgx=parts.der())), ca)


def test_the_sgx_extension_is_read_as_it_was_written() -> None:
    found = facts(SgxParts(svns=[255, 128, 127, *range(13)], pcesvn=65_535))
    assert list(found.cpu_svn) == [255, 128, 127, *range(13)]
    assert found.pce_svn == 65_535
    assert (found.ppid, found.piid, found.pceid, found.fmspc) == (b"P" * 16, b"I" * 16, bytes(2), b"\x90\xc0\x6f\0\0\0")
    assert (found.sgx_type, found.dynamic_platform, found.cached_keys, found.smt_enabled) == (1, True, False, True)
    assert found.ca == "platform"


def test_a_processor_certificate_knows_less() -> None:
    found = facts(SgxParts(platform=False), "Intel SGX PCK Processor CA")
    assert (found.piid, found.dynamic_platform, found.cached_keys, found.smt_enabled) == (None,) * 4
    assert found.ca == "processor"


@given(
    svns=st.lists(st.integers(0, 255) | st.integers(0, 20), min_size=16, max_size=16),
    pcesvn=st.integers(0, 65_535) | st.integers(0, 127),
    platform=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=2),
)
def test_at_one_glance_an_extension_says_what_it_says_item_by_item(
    svns: list[int], pcesvn: int, platform: bool, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(SgxParts(svns=svns, pcesvn=pcesvn, platform=platform).der())
    for at, value in flips:
        raw[at % len(raw)] = value
    seen = pck._DRAWINGS[platform].read(bytes(raw))
    if not flips and max(*svns, pcesvn) < 128:
        assert seen is not None
    if seen is not None:
        assert seen == pck._read(bytes(raw), platform)


def test_the_claimed_platform_is_read_without_being_believed() -> None:
    world = World()
    world.certs["leaf"].signer = "rogue"
    assert claimed_platform(Quote.parse(world.input().raw)).fmspc.hex() == "90c06f000000"


# -- CRLs


def test_a_crl_is_read_as_it_was_written() -> None:
    world = World()
    world.pck_crl.revoked = [5, 2**150, 7]
    crl = Crl.parse(world.pck_crl.der())
    assert (crl.number, crl.has_authority_key_id, crl.partial) == (7, True, "")
    assert [crl.revokes(serial) for serial in (5, 2**150, 7, 6, 0)] == [True, True, True, False, False]
    assert (crl.this_update, crl.next_update) == (world.pck_crl.this_update, world.pck_crl.next_update)


# -- Intel's own


@vectors_real.needed
def test_every_real_certificate_and_crl_is_read() -> None:
    folder = vectors_real.folder()
    assert folder is not None
    roots = TrustRoots.intel()
    for path in sorted((folder / "pki").glob("*.der")):
        raw = path.read_bytes()
        if path.name.startswith("crl-"):
            crl = Crl.parse(raw)
            assert crl.number is not None
            assert crl.next_update is not None
            assert not crl.partial
        else:
            found = Certificate.parse(raw)
            assert found.missing == found.unknown_critical == ()
            if found.self_issued:
                assert roots.holding(found.point) is not None


@vectors_real.needed
def test_both_editions_of_intels_root_hold_the_same_key() -> None:
    folder = vectors_real.folder()
    assert folder is not None
    editions = [Certificate.parse(path.read_bytes()) for path in folder.glob("pki/intel-sgx-root-ca-*.der")]
    assert len({edition.der for edition in editions}) == 2
    assert {edition.point.hex() for edition in editions} == {INTEL_POINT}


def test_reading_certificates_needs_no_more_than_cryptography() -> None:
    """The verifier is for relying services: nothing of the broker, the agents or the simulator comes with it."""
    program = "import sys, attestation.verifier; print(sorted({name.split('.')[0] for name in sys.modules}))"
    folder = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder, env={**os.environ}
    )
    for foreign in ("fastapi", "pydantic", "jwt", "cedarpy", "grpc", "broker", "simulator", "enclave", "policies"):
        assert f"'{foreign}'" not in done.stdout


def test_odd_extensions_of_one_byte_do_no_harm() -> None:
    for value in (b"", b"\x30", seq(), octets(b""), tlv(0x05), integer(1)):
        world = World()
        world.certs["leaf"].drop = (SGX,)
        world.certs["leaf"].extra = [(SGX, False, value)]
        with pytest.raises((Unmet, AttestationError)):
            PckFacts.of(Certificate.parse(world.cert("leaf")), CA)


def test_a_pem_body_is_strict_base64() -> None:
    assert pem_decode(b"\nAAAA\n") == b"\0\0\0"
    for body in (b"\nAAA\n", b"\nAAAA=\n", b"\n=AAA\n", b"\nAA=A\n", b"\nAAAA-\n", b"\nAAAA====\n", b"\nAB==\n"):
        with pytest.raises(Unmet):
            pem_decode(body)


def test_what_a_refused_crl_says_is_short() -> None:
    """A list of hundreds of extensions, or one with a name of a mile, must not fill a log."""
    many = [(bytes.fromhex("06072b0601050507") + bytes((at,)), True, b"") for at in range(128)]
    assert 0 < len(Crl.parse(CrlParts(ROOT, "root", extra=many).der()).partial) <= 40
    long = (tlv(0x06, b"\x2b" + b"\x01" * 5000), True, b"")
    with pytest.raises(Unmet) as caught:
        Crl.parse(CrlParts(ROOT, "root", extra=[long, long]).der())
    assert "occurs twice" in caught.value.detail
    assert len(caught.value.detail) < 80
