"""What a PCS or PCCS answers ↔ the members of a collateral set.

Decides how a document's exact signed text is cut out of its answer, in which encodings a CRL may come, and which header
holds an issuer chain. Whether any of it is signed is decided in `endorsements`.

Sources: Intel SGX and TDX Provisioning Certification Service API v4; Intel's PCCS (hex CRLs, `rootcacrl`); the v3
names of headers are still in use.
"""

from __future__ import annotations

import json
import re
from typing import Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.certificates import Certificate
from attestation.checks import Unmet
from attestation.errors import Code, CollateralUnavailable
from attestation.net.transport import Answer
from attestation.pem import pem_blocks, pem_decode
from attestation.pki import TrustRoots

TCB_CHAIN_HEADERS: Final = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
IDENTITY_CHAIN_HEADERS: Final = ("sgx-enclave-identity-issuer-chain",)
CRL_CHAIN_HEADERS: Final = ("sgx-pck-crl-issuer-chain",)
_MAX_VALUES: Final = 100_000
"""Commas and brackets of one answer; the largest real one has 1,100."""
_NOT_FOUND: Final = frozenset((404, 410, 461, 462))
_SIGNATURE: Final = re.compile(r'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')


def expect_found(answer: Answer, what: str) -> Answer:
    """The answer if it is one. Raises CollateralUnavailable: collateral.not_found, collateral.answer_invalid."""
    if answer.status == 200:
        return answer
    if answer.status in _NOT_FOUND:
        raise CollateralUnavailable(Code.COLLATERAL_NOT_FOUND, f"{what}: status {answer.status}")
    raise _invalid(f"{what}: status {answer.status}")


def signed_document(answer: Answer, member: str) -> tuple[str, bytes]:
    """(exact text, signature) of {"<member>": {…}, "signature": "<128 hex>"}.

    The text is cut out, never written anew: one other blank and its signature would not verify.
    Raises CollateralUnavailable collateral.answer_invalid.
    """
    try:
        text = answer.body.decode("utf-8")
        if sum(map(text.count, ",[{")) > _MAX_VALUES:
            raise _invalid(f"{member}: more than {_MAX_VALUES} values")
        head = re.match(rf'\s*\{{\s*"{member}"\s*:\s*', text)
        start = head.end() if head else -1
        if start < 0 or text[start : start + 1] != "{":
            raise _invalid(f"{member}: the body does not begin with it")
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{member}: the body is not JSON in UTF-8") from error
    tail = _SIGNATURE.fullmatch(text, end)
    if tail is None:
        raise _invalid(f"{member}: no signature of 64 bytes after it")
    return text[start:end], bytes.fromhex(tail[1])


def crl(answer: Answer, what: str) -> bytes:
    """DER of a CRL that came as DER, PEM or hex. Raises CollateralUnavailable collateral.answer_invalid."""
    body = answer.body
    try:
        if body[:1] == b"\x30" and not body[:64].isalnum():
            return body
        if b"-----BEGIN X509 CRL-----" in body[:64]:
            return x509.load_pem_x509_crl(body).public_bytes(Encoding.DER)
        return bytes.fromhex(body.decode("ascii"))
    except ValueError as error:
        raise _invalid(f"{what}: neither DER nor PEM nor hex") from error


def issuer_chain(answer: Answer, names: tuple[str, ...], what: str) -> str:
    """The PEM text of a chain header, percent-decoded. Raises CollateralUnavailable collateral.answer_invalid."""
    for name in names:
        if name in answer.headers:
            # A "+" is base64 here; only in the boundary lines can it have been a blank.
            return re.sub(
                r"-----(BEGIN|END)\+CERTIFICATE-----", r"-----\1 CERTIFICATE-----", unquote(answer.headers[name])
            )
    raise _invalid(f"{what}: no header {' or '.join(names)}")


def root_crl_address(chain: str, roots: TrustRoots) -> str:
    """Where the trusted root that `chain` ends in says that its CRL is.

    The address is read from our own copy of the root, so that no answer can send us elsewhere.
    Raises CollateralUnavailable collateral.answer_invalid.
    """
    try:
        presented = Certificate.parse(pem_decode(pem_blocks(chain.encode())[-1]))
    except Unmet as unmet:
        raise _invalid(f"issuer chain: {unmet.detail}") from unmet
    trusted = roots.holding(presented.point)
    if trusted is None:
        raise _invalid(f"the issuer chain ends in {presented.common_name!r}, which is not a trusted root")
    try:
        found = x509.load_der_x509_certificate(trusted.der).extensions
        points = found.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise _invalid(f"{trusted.common_name} names no address for its CRL") from error
    for point in points:
        for name in point.full_name or ():
            if isinstance(name, x509.UniformResourceIdentifier):
                return name.value
    raise _invalid(f"{trusted.common_name} names no address for its CRL")


def _invalid(detail: str) -> CollateralUnavailable:
    return CollateralUnavailable(Code.COLLATERAL_ANSWER, detail)
