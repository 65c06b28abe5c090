"""A decision in one file: evidence, collateral, policy, time, log entry and proof, so that anybody can take it again.

Decides the file's form and what it proves. Everything is recomputed from the parts: digests, the log proof, the quote,
the verdict and the policy's answer; nothing is believed because the file says so. What stays with the reader are the
trust roots and, unless an agent's quote names the broker, the log's public key.

The file is gzip over one JSON object of at most MAX_TEXT bytes:
    format       "cloister/decision/v1"
    log_key      the log's public key as a C2SP vkey
    receipt      index, entry, proof, checkpoint: the entry of the log that holds the decision, as the log proves it
    evidence     digest → blob, base64url: the record that the entry names, and the parts that the record names
    collateral   the nine members of a collateral file
    policy       path → text of the bundle's files, signatures left out
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from attestation.collateral import Collateral
from attestation.encoding import b64url, from_b64url, strict_json
from attestation.errors import AttestationError
from attestation.transparency import LogError, parse_verifier_key
from policies.bundle import digest_of
from policies.codes import DecisionCode

FORMAT: Final = "cloister/decision/v1"
MAX_FILE: Final = 64 << 10
MAX_TEXT: Final = 2 << 20
MAX_PROOF: Final = 64
_MEMBERS: Final = frozenset(("format", "log_key", "receipt", "evidence", "collateral", "policy"))
_TEXTS: Final = frozenset(
    ("kind", "subject", "resource", "policy", "evidence", "collateral", "permit", "nonce", "source_ip")
)
_LISTS: Final = frozenset(("codes", "labels"))
_LAST_MS: Final = 253_402_300_799_000  # the end of the year 9999
_NUMBERS: Final = {"at_ms": _LAST_MS, "judged_at_ms": _LAST_MS, "version": 2**53, "platform_addresses": 2**31}
_RECEIPT: Final = frozenset(("index", "entry", "proof", "checkpoint"))


class DecisionError(Exception):
    """The file is no decision that could be checked."""

    def __init__(self, code: DecisionCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision as somebody tells it. Believe what `decided.check` finds, and nothing else."""

    log_key: str
    index: int
    entry: bytes = field(repr=False)
    proof: tuple[bytes, ...] = field(repr=False)
    checkpoint: str = field(repr=False)
    evidence: Mapping[bytes, bytes] = field(repr=False)
    collateral: Collateral = field(repr=False)
    policy: Mapping[str, bytes] = field(repr=False)

    @property
    def facts(self) -> dict[str, Any]:
        """The entry's members."""
        return read_entry(self.entry)

    @property
    def raw_log_key(self) -> bytes:
        return parse_verifier_key(self.log_key)[1]

    @property
    def policy_digest(self) -> str:
        return digest_of(self.policy).hex()

    def to_bytes(self) -> bytes:
        """The file. Raises DecisionError decision.too_large."""
        members = {
            "format": FORMAT,
            "log_key": self.log_key,
            "receipt": {
                "index": self.index,
                "entry": b64url(self.entry),
                "proof": [b64url(sibling) for sibling in self.proof],
                "checkpoint": self.checkpoint,
            },
            "evidence": {b64url(digest): b64url(blob) for digest, blob in self.evidence.items()},
            "collateral": json.loads(self.collateral.to_json()),
            "policy": {name: content.decode("utf-8") for name, content in self.policy.items()},
        }
        raw = gzip.compress(json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode(), 9, mtime=0)
        if len(raw) > MAX_FILE:
            raise DecisionError(DecisionCode.TOO_LARGE, f"{len(raw)} bytes, at most {MAX_FILE}")
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises DecisionError decision.too_large, decision.malformed."""
        members = _object(_inflated(raw))
        if members.keys() != _MEMBERS or members["format"] != FORMAT:
            raise _malformed(f"not an object with the members {', '.join(sorted(_MEMBERS))}")
        receipt = members["receipt"]
        if not isinstance(receipt, dict) or receipt.keys() != _RECEIPT or type(receipt["index"]) is not int:
            raise _malformed("the receipt has index, entry, proof and checkpoint")
        try:
            made = cls(
                log_key=_text(members["log_key"]),
                index=receipt["index"],
                entry=from_b64url(_text(receipt["entry"])),
                proof=tuple(from_b64url(_text(sibling)) for sibling in receipt["proof"][:MAX_PROOF]),
                checkpoint=_text(receipt["checkpoint"]),
                evidence={from_b64url(name): from_b64url(_text(blob)) for name, blob in members["evidence"].items()},
                collateral=Collateral.from_json(json.dumps(members["collateral"])),
                policy={name: _text(content).encode() for name, content in members["policy"].items()},
            )
            parse_verifier_key(made.log_key)
            read_entry(made.entry)
        except (AttestationError, LogError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise _malformed(str(error)[:200]) from error
        return made


def read_entry(entry: bytes) -> dict[str, Any]:
    """The members of a log entry, each of its type. Raises DecisionError decision.malformed."""
    try:
        members = strict_json(entry)
    except ValueError as error:
        raise _malformed(f"the entry is not JSON: {error}") from error
    if not isinstance(members, dict) or "at_ms" not in members or "kind" not in members:
        raise _malformed("the entry lacks at_ms or kind")
    for name, value in members.items():
        if not _fits(name, value):
            raise _malformed(f"{name} of the entry has not its type")
    return members


def _fits(name: str, value: object) -> bool:
    """Whether a member that is read here has its type and bound; others may be anything."""
    if name in _TEXTS:
        return isinstance(value, str)
    if name in _NUMBERS:
        return type(value) is int and 0 <= value <= _NUMBERS[name]
    if name in _LISTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return True


def _inflated(raw: bytes) -> bytes:
    """Never more than MAX_TEXT, whatever the file promises."""
    if len(raw) > MAX_FILE:
        raise DecisionError(DecisionCode.TOO_LARGE, f"more than {MAX_FILE} bytes")
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = inflate.decompress(raw, MAX_TEXT)
    except zlib.error as error:
        raise _malformed(f"not gzip: {error}") from error
    if inflate.unconsumed_tail:
        raise DecisionError(DecisionCode.TOO_LARGE, f"inflates to more than {MAX_TEXT} bytes")
    if not inflate.eof or inflate.unused_data:
        raise _malformed("the gzip stream is cut, or something follows it")
    return text


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = strict_json(text)
    except ValueError as error:
        raise _malformed(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _malformed("not a JSON object")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text was expected")
    return value


def _malformed(detail: str) -> DecisionError:
    return DecisionError(DecisionCode.MALFORMED, detail)
