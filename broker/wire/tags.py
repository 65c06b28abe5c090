"""Domain tags: what a signature, digest or MAC is *for* is part of what it covers.

One tag per kind. A signature made for one purpose can then never be shown for another, even by the same key.
The tags of REPORT_DATA and of the proof of possession live in `attestation.evidence`; DPoP proofs and tokens are
separated by the `typ` of their JWT header.
"""

from enum import StrEnum

from attestation.encoding import framed
from attestation.evidence import sealing_thumbprint

__all__ = ["Tag", "sealing_thumbprint", "tagged", "u64"]


class Tag(StrEnum):
    """Public and stable: add, never rename or reuse."""

    ACCEPTANCE = "cloister/acceptance/v1"  # broker: when it took an envelope in
    BROKER_EVIDENCE = "cloister/broker-evidence/v1"  # digest of a broker's evidence about itself
    BROKER_KEYS = "cloister/broker-keys/v1"  # log key: the broker's other keys
    CHALLENGE = "cloister/challenge/v1"  # broker: both nonces
    CHANNEL_BATCH = "cloister/channel-batch/v2"  # sender: channel, numbers, chain of the batches; v1: of the frames
    CHANNEL_CHAIN = "cloister/channel-chain/v1"  # where a channel's hash chain begins
    CHANNEL_NAME = "cloister/channel-name/v1"  # what a channel is called, of its sender and its key
    ENVELOPE = "cloister/envelope/v1"  # sender: header and body
    ENVELOPE_INFO = "cloister/envelope-info/v1"  # HPKE info of an envelope's body
    KEYS_RELEASE = "cloister/keys-release/v1"  # broker: grant and ciphertext of kept keys
    KEY_GRANT = "cloister/key-grant/v1"  # digest of a grant, HPKE info of kept keys
    MAILBOX_KEY = "cloister/mailbox-key/v1"  # owner: a mailbox's epoch key
    PEER_PROOF = "cloister/peer-proof/v1"  # nonce in the binding of a quote that one agent makes for another
    PERMIT = "cloister/permit/v1"  # digest of a release permit, HPKE info of a release
    RELEASE = "cloister/release/v1"  # broker: permit and ciphertext
    UNSEAL = "cloister/unseal/v1"  # HPKE info of a share on its way to a sealed broker
    REVOCATIONS = "cloister/revocations/v1"  # broker: who may no longer speak, over a reader's nonce
    TRUST_BUNDLE = "cloister/trust-bundle/v1"  # broker: authorities of agents' certificates, and their CRLs
    SEALING_KEY = "cloister/sealing-key/v1"  # thumbprint of a public sealing key and its suite
    STATE = "cloister/state/v1"  # broker: number and digest of a reader's checkpoint, over its nonce
    STATE_SEAL = "cloister/state-seal/v1"  # associated data of a sealed checkpoint
    TOOL = "cloister/tool/v1"  # digest of a served tool's description
    TOPIC_KEY = "cloister/topic-key/v1"  # broker: a topic's epoch key
    TOMBSTONE = "cloister/tombstone/v1"  # broker: how a parcel ended that was not handled


def tagged(tag: Tag, *fields: bytes) -> bytes:
    """The tag and each field behind its u32 length (big-endian), so that no two lists of fields give the same bytes."""
    return framed(tag.encode("ascii"), *fields)


def u64(number: int) -> bytes:
    """A number as 8 bytes, big-endian: the form in which numbers enter `tagged`."""
    return number.to_bytes(8, "big")
