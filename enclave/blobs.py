"""Large payloads: what does not fit into a message travels beside it, sealed alike, and the message names its digest.

Decides when a payload is large, how a message refers to one, and that what is fetched is what the message meant: the
same bytes (by their digest, which stands in the sealed body), of the same sender, for the same mailbox, and with no
label that the message does not bear. To handlers a large message looks like any other.
"""

from __future__ import annotations

import json
from typing import Final

from attestation.verdict import Verdict
from broker.wire.blob import BlobRef
from broker.wire.envelope import Envelope, Header
from broker.wire.fields import parse_object
from enclave.errors import Code, EnvelopeRefused
from enclave.mailbox import MAX_PLAINTEXT, Inbox

MARK: Final = b'{"blob":'  # no body of a typed message begins so
MAX_REFERENCE: Final = 256


def is_large(plaintext: bytes) -> bool:
    return len(plaintext) > MAX_PLAINTEXT


def reference(envelope: Envelope) -> tuple[bytes, bytes, BlobRef]:
    """(what the message says instead, the bytes to keep at the broker, their name)."""
    raw = envelope.to_bytes()
    ref = BlobRef.of(raw)
    return json.dumps({"blob": ref.to_dict()}, separators=(",", ":")).encode(), raw, ref


def referred(plaintext: bytes) -> BlobRef | None:
    """The large payload that a message speaks of, or None for one that says all itself. Raises WireError body.*."""
    if not plaintext.startswith(MARK):
        return None
    return BlobRef.from_dict(parse_object(plaintext, max_len=MAX_REFERENCE).get("blob"))


def open_blob(inbox: Inbox, ref: BlobRef, raw: bytes, *, sender: Verdict, labels: frozenset[str]) -> bytes:
    """The payload of a message of that sender with those labels.

    Raises WireError envelope.malformed, envelope.signature_invalid; EnvelopeRefused envelope.*.
    """
    envelope = ref.open(raw)
    header = Header.from_bytes(envelope.header)
    if not labels.issuperset(header.labels):
        raise EnvelopeRefused(Code.ENVELOPE_BODY, "the payload bears labels that its message does not")
    return inbox.open_beside(envelope, header, sender)
