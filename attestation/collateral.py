"""The collateral of a judgement: nine members, kept exactly as they were signed.

Decides what a collateral file is, and bounds it. What the documents in it say is read by `documents`, the certificates
and CRLs by `certificates`; whether any of it may be believed is `verifier`'s business.

Sources: Intel SGX and TDX Provisioning Certification Service API v4; the member names are those of `dcap-qvl`'s
collateral JSON, which other tools read and write too.
"""

from __future__ import annotations

import json
import re
from binascii import unhexlify
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NoReturn, Self, final

from attestation.errors import Code, MalformedEvidence

MAX_COLLATERAL: Final = 4 << 20
"""Bytes of the whole file, or of the nine members together. Real sets have 15 to 40 KiB."""

SMALL: Final = 256 * 1024  # characters; real sets have 20,000 to 40,000
_MAX_ITEMS: Final = 50_000  # objects, arrays and commas, where a text is large
_LONG_NUMBER: Final = re.compile(r"[:,\[]\s*+-?\d{20}")
"""Bounds on the time and memory that a large text can claim; a small one can't claim much."""

_SIGNATURE: Final = 64
_BINARIES: Final = ("tcb_info_signature", "qe_identity_signature", "pck_crl", "root_ca_crl")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What a platform is judged by, besides its quote. Nothing in it may be believed yet.

    Texts are the exact signed bytes (never re-serialise them), issuer chains are PEM, CRLs DER, signatures r ‖ s.
    `digest` is SHA-256 over the nine members in the order below, each with its length as u32 in front: equal digests,
    equal collateral.
    """

    tcb_info: str
    tcb_info_signature: bytes
    tcb_info_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    qe_identity_issuer_chain: str
    pck_crl: bytes
    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    _digest: list[bytes] = field(init=False, repr=False, compare=False, default_factory=list)  # once somebody asked

    def __post_init__(self) -> None:
        """Raises MalformedEvidence: collateral.malformed, collateral.too_large."""
        total = sum([_size(name, getattr(self, name)) for name in MEMBERS])
        if total > MAX_COLLATERAL:
            raise MalformedEvidence(Code.COLLATERAL_TOO_LARGE, f"{total} bytes, at most {MAX_COLLATERAL}")
        for name in ("tcb_info_signature", "qe_identity_signature"):
            size = len(getattr(self, name))
            if size != _SIGNATURE:
                raise _malformed(f"{name} has {size} bytes, not {_SIGNATURE}")

    @property
    def digest(self) -> bytes:
        """32 bytes."""
        if not self._digest:
            hasher = sha256()
            for name in MEMBERS:
                value = getattr(self, name)
                raw = value.encode() if isinstance(value, str) else value
                hasher.update(len(raw).to_bytes(4, "big"))
                hasher.update(raw)
            self._digest.append(hasher.digest())
        return self._digest[0]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads a collateral file: all nine members, others ignored. Signatures and CRLs are hex.

        Raises MalformedEvidence: collateral.malformed, collateral.too_large.
        """
        document = parse_object(text, "collateral")
        members: dict[str, Any] = {}
        for name in MEMBERS:
            value = document.get(name)
            if type(value) is not str:
                raise _malformed(f"member {name} is {'missing' if name not in document else 'not a string'}")
            members[name] = _hex(name, value) if name in _BINARIES else value
        return cls(**members)

    def to_json(self) -> str:
        """The file that `from_json` reads."""
        return json.dumps(
            {name: getattr(self, name).hex() if name in _BINARIES else getattr(self, name) for name in MEMBERS},
            ensure_ascii=True,
        )


MEMBERS: Final = (
    "tcb_info",
    "tcb_info_signature",
    "tcb_info_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
    "qe_identity_issuer_chain",
    "pck_crl",
    "pck_crl_issuer_chain",
    "root_ca_crl",
)


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """One JSON object, read so that two readers can't disagree: no duplicate names, no NaN, no infinities; bounded.

    Raises MalformedEvidence: collateral.malformed, collateral.too_large; TypeError for other than text or bytes.
    """
    if not isinstance(text, str | bytes):
        raise TypeError(f"{what} is read from text or bytes, not {type(text).__name__}")
    if len(text) > MAX_COLLATERAL:
        raise MalformedEvidence(Code.COLLATERAL_TOO_LARGE, f"{what}: {len(text)} bytes, at most {MAX_COLLATERAL}")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        if len(decoded) > SMALL and (sum(map(decoded.count, "{[,")) > _MAX_ITEMS or _LONG_NUMBER.search(decoded)):
            raise MalformedEvidence(Code.COLLATERAL_TOO_LARGE, f"{what}: large, and full of members or digits")
        document = _DECODER.decode(decoded)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and absurd numbers are ValueErrors too
        raise _malformed(f"{what} is not JSON: {type(error).__name__}") from error
    if type(document) is not dict:
        raise _malformed(f"{what} is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


PLAIN_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
"""Keeps the last of two members with one name: only for those who count the members themselves."""
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _size(name: str, value: object) -> int:
    """Bytes of a member, which must be of its type."""
    if name in _BINARIES:
        if type(value) is not bytes:
            raise _malformed(f"{name} is not bytes")
        return len(value)
    if type(value) is not str:
        raise _malformed(f"{name} is not text")
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise _malformed(f"{name} holds lone surrogates") from error


def _hex(name: str, value: str) -> bytes:
    try:
        return unhexlify(value)
    except ValueError as error:
        raise _malformed(f"{name} is not hex") from error


def _malformed(detail: str) -> MalformedEvidence:
    return MalformedEvidence(Code.COLLATERAL_MALFORMED, detail)
