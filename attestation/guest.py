"""What a guest of Confidential Containers sends to be believed: a quote, its event log, and what REPORT_DATA is of.

Decides how the protocol's runtime data becomes the 64 bytes of REPORT_DATA (SHA-384 over the RFC 8785 text, padded
with zeros), and how init data are compared with MRCONFIGID. There is no proof of possession in that protocol, and the
key is one that secrets are encrypted to, not an identity. That the quote is genuine is `verifier`'s business.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from attestation.encoding import strict_json
from attestation.errors import Code, MalformedEvidence
from attestation.eventlog import EV_NO_ACTION, MAX_LOG, EventLog
from attestation.quote import MAX_QUOTE, Quote, Tee

MAX_INIT_DATA: Final = 256 << 10
MAX_ADDITIONAL: Final = 256 << 10
REPORT_DATA_SIZE: Final = 64
_REQUIRED: Final = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}
CONFIG_ID_SIZE: Final = 48
ALGORITHMS: Final = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
"""By which init data may be hashed. SM3 is in the protocol and not here."""
_FIRST: Final = struct.Struct("<II20sI")  # as in eventlog.py: register index, type, SHA-1 slot, size
_TWO_ALGORITHMS: Final = struct.Struct("<16sIBBBBIHHHHB")  # the Spec ID event of a guest without firmware log
_SHA384_AND_SM3: Final = (2, 0x000C, 48, 0x0012, 32)


def canonical(members: Mapping[str, Any]) -> bytes:
    """RFC 8785 for what stands here: objects of text under ASCII names."""
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def runtime_text(nonce: str, key: Mapping[str, str], additional: str) -> bytes:
    """What the quoting guest hashes. The nonce is text, as it was sent; so is the evidence of further devices."""
    return canonical({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": dict(key)})


def report_data_of(runtime: bytes) -> bytes:
    """SHA-384 of the runtime data's text, padded to the 64 bytes of REPORT_DATA."""
    return hashlib.sha384(runtime).digest().ljust(REPORT_DATA_SIZE, b"\0")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuestEvidence:
    """Unverified. `runtime` is the text that REPORT_DATA is of; `init_data` the document behind MRCONFIGID."""

    quote: bytes = field(repr=False)
    event_log: bytes | None = field(default=None, repr=False)
    runtime: bytes = field(repr=False)
    init_data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises MalformedEvidence evidence.too_large."""
        sizes = (
            ("quote", self.quote, MAX_QUOTE),
            ("event log", self.event_log or b"", MAX_LOG),
            ("runtime data", self.runtime, MAX_ADDITIONAL + (16 << 10)),
            ("init data", self.init_data or b"", MAX_INIT_DATA),
        )
        for name, value, most in sizes:
            if len(value) > most:
                raise MalformedEvidence(Code.EVIDENCE_TOO_LARGE, f"{name} has {len(value)} bytes, at most {most}")

    @property
    def report_data(self) -> bytes:
        return report_data_of(self.runtime)

    def key(self) -> dict[str, str]:
        """The public key in the runtime data. ValueError when there is none."""
        found = strict_json(self.runtime)
        key = found.get("tee-pubkey") if isinstance(found, dict) else None
        if not isinstance(key, dict) or key.get("kty") not in _REQUIRED:
            raise ValueError("the runtime data hold no public key")
        return {str(name): str(value) for name, value in key.items()}

    def log(self) -> EventLog | None:
        """The event log in either of the forms that guests send. Raises MalformedEvidence eventlog.*"""
        return None if self.event_log is None else EventLog.parse_ccel(_one_algorithm(self.event_log))

    def init_data_hold(self, quote: Quote) -> bool:
        """Whether the init data, where there are any, are those in the MRCONFIGID of a quote that was verified.

        Raises MalformedEvidence evidence.field_invalid.
        """
        if self.init_data is None:
            return True
        expected = init_data_digest(self.init_data)[:CONFIG_ID_SIZE].ljust(CONFIG_ID_SIZE, b"\0")
        return quote.tee is Tee.TDX and quote.td.mr_config_id == expected


def jwk_thumbprint(members: Mapping[str, str]) -> bytes:
    """RFC 7638: SHA-256 over the required members of an EC or RSA key."""
    return hashlib.sha256(canonical({name: members[name] for name in _REQUIRED[members["kty"]]})).digest()


def init_data_digest(document: bytes) -> bytes:
    """The digest of an init-data document, by the algorithm that it names, over its bytes as they are.

    Raises MalformedEvidence evidence.field_invalid.
    """
    try:
        found = tomllib.loads(document.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedEvidence(Code.EVIDENCE_FIELD, f"init data are not TOML: {str(error)[:120]}") from error
    make = ALGORITHMS.get(str(found.get("algorithm", "")).lower())
    if make is None or not isinstance(found.get("version"), str) or not isinstance(found.get("data"), dict):
        detail = f"init data need version, data, and algorithm: one of {', '.join(ALGORITHMS)}"
        raise MalformedEvidence(Code.EVIDENCE_FIELD, detail)
    return make(document).digest()


def _one_algorithm(raw: bytes) -> bytes:
    """A guest without a firmware log announces SHA-384 and SM3 and then writes SHA-384 alone; say so at its head.

    Nothing of the first record is measured, so nothing is changed that anybody could rely on.
    """
    end = _FIRST.size + _TWO_ALGORITHMS.size
    if len(raw) < end:
        return raw
    _, event_type, _, size = _FIRST.unpack_from(raw)
    signature, *_, count, first, first_size, second, second_size, vendor = _TWO_ALGORITHMS.unpack_from(raw, _FIRST.size)
    announced = (count, first, first_size, second, second_size)
    if event_type != EV_NO_ACTION or signature != b"Spec ID Event03\0" or announced != _SHA384_AND_SM3:
        return raw
    if size != _TWO_ALGORITHMS.size + vendor or vendor:
        return raw
    return EventLog(()).to_ccel() + raw[end:]
