"""What can be wrong with something received, said the same way on both ends of the wire."""

from enum import StrEnum
from typing import Final

from attestation.errors import CloisterError


class WireCode(StrEnum):
    """Public and stable: add, never rename or reuse."""

    BODY_FIELD_INVALID = "body.field_invalid"
    BODY_FIELD_MISSING = "body.field_missing"
    BODY_FIELD_UNKNOWN = "body.field_unknown"
    BODY_NOT_JSON = "body.not_json"
    BODY_NOT_PROTOBUF = "body.not_protobuf"
    BODY_TOO_LARGE = "body.too_large"
    CHALLENGE_EVIDENCE = "challenge.evidence_mismatch"
    CHALLENGE_NOT_EXPECTED = "challenge.not_expected"
    CHALLENGE_SIGNATURE = "challenge.signature_invalid"
    CHALLENGE_STALE = "challenge.evidence_stale"
    CHALLENGE_WRONG_BROKER = "challenge.wrong_broker"
    CHANNEL_MALFORMED = "channel.malformed"
    CHANNEL_SIGNATURE = "channel.signature_invalid"
    DPOP_MALFORMED = "dpop.malformed"
    DPOP_SIGNATURE = "dpop.signature_invalid"
    ENVELOPE_MALFORMED = "envelope.malformed"
    ENVELOPE_SIGNATURE = "envelope.signature_invalid"
    LOG_MALFORMED = "log.malformed"
    LOG_PROOF = "log.proof_invalid"
    LOG_SIGNATURE = "log.signature_invalid"
    MAILBOX_KEY_SIGNATURE = "mailbox.key_signature_invalid"
    REFERENCE_MALFORMED = "reference.malformed"
    RELEASE_MISMATCH = "release.mismatch"
    RELEASE_SIGNATURE = "release.signature_invalid"
    REVOCATIONS_SIGNATURE = "revocations.signature_invalid"
    STATE_SIGNATURE = "state.signature_invalid"
    SVID_BUNDLE = "svid.bundle_invalid"
    SVID_CRL_STALE = "svid.crl_stale"
    SVID_DOMAIN = "svid.wrong_domain"
    SVID_EXPIRED = "svid.expired"
    SVID_MALFORMED = "svid.malformed"
    SVID_NOT_ISSUED = "svid.not_issued"
    SVID_REQUEST = "svid.request_invalid"
    SVID_REVOKED = "svid.revoked"


class WireError(CloisterError):
    """`code` is for machines, `detail` for the operator's log; neither ever holds a secret."""

    code: WireCode

    def __init__(self, code: WireCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.remedy = code, detail, MEANING[code][1]


MEANING: Final[dict[WireCode, tuple[str, str]]] = {
    WireCode.BODY_FIELD_INVALID: (
        "A field of the body has the wrong type, length or value.",
        "Compare the field named in the detail with /openapi.json.",
    ),
    WireCode.BODY_FIELD_MISSING: ("A mandatory field of the body is absent.", "Send the field named in the detail."),
    WireCode.BODY_FIELD_UNKNOWN: (
        "The body has a field that this endpoint does not know.",
        "Remove it, or check its spelling: unknown fields are refused rather than ignored.",
    ),
    WireCode.BODY_NOT_JSON: (
        "The body is not one JSON object, or names a member twice.",
        "Send one JSON object in UTF-8, with every member once.",
    ),
    WireCode.BODY_NOT_PROTOBUF: (
        "The request is not the message that the method takes.",
        "Generate the client from api.proto of this version.",
    ),
    WireCode.BODY_TOO_LARGE: ("The body is longer than this endpoint reads.", "Send less; /openapi.json has limits."),
    WireCode.CHALLENGE_EVIDENCE: (
        "The broker's evidence is not the one that its answer names, or was made under another trust file.",
        "Start the broker with the trust file that its agents have, or name that file's digest in trust_files.",
    ),
    WireCode.CHALLENGE_NOT_EXPECTED: (
        "The broker's trust domain is genuine, but is not what the trust file's reference values expect.",
        "Compare the detail with the broker that you deployed; correct whichever of the two is wrong.",
    ),
    WireCode.CHALLENGE_STALE: (
        "The broker quoted its keys too long ago, or in the future.",
        "Look in the broker's log for why it could not quote them again; compare its clock.",
    ),
    WireCode.CHALLENGE_SIGNATURE: (
        "The answer to a challenge is not signed by the broker it names.",
        "Do not go on: somebody may stand between you and the broker.",
    ),
    WireCode.CHALLENGE_WRONG_BROKER: (
        "The broker that answered is not the one in the trust file.",
        "Check the address; if the broker was set up anew, give its agents the new trust file.",
    ),
    WireCode.CHANNEL_MALFORMED: (
        "A channel's opening, batch or frame is not in canonical protobuf form, or a field is out of bounds.",
        "Build them with broker.wire.channel, within the limits named there.",
    ),
    WireCode.CHANNEL_SIGNATURE: (
        "A batch is not signed by the channel's sender, or frames are missing, changed or in another order.",
        "Sign each batch with the identity key that signed the channel's opening, and send it as it was signed.",
    ),
    WireCode.DPOP_MALFORMED: (
        "The DPoP proof is not an ES256 JWT of type dpop+jwt with the claims jti, htm, htu, iat and bh.",
        "Build proofs with broker.wire.dpop.build, or as RFC 9449 section 4.2 says plus the claim bh.",
    ),
    WireCode.DPOP_SIGNATURE: (
        "The DPoP proof is not signed by the key that it shows.",
        "Sign with the private half of the key in the proof's jwk header.",
    ),
    WireCode.ENVELOPE_MALFORMED: (
        "An envelope or its header is not in canonical protobuf form, or a field is out of bounds.",
        "Build envelopes with broker.wire.envelope, within the limits named there.",
    ),
    WireCode.ENVELOPE_SIGNATURE: (
        "An envelope is not signed by the sender that its header names.",
        "Sign with the identity key of the token under which you send.",
    ),
    WireCode.LOG_MALFORMED: (
        "A checkpoint or receipt is not in the form of a C2SP signed note and RFC 6962 proof.",
        "Fetch it again; if it stays so, do not trust the log.",
    ),
    WireCode.LOG_PROOF: (
        "A proof does not lead to the root hash of its checkpoint.",
        "Keep the receipt: it is evidence that the log was changed.",
    ),
    WireCode.LOG_SIGNATURE: (
        "A checkpoint is not signed by the log key.",
        "Compare the log key with the trust file; do not trust the log.",
    ),
    WireCode.MAILBOX_KEY_SIGNATURE: (
        "A mailbox key is not signed by the mailbox's owner.",
        "Do not seal to it: the broker may have put its own key there.",
    ),
    WireCode.REFERENCE_MALFORMED: (
        "The reference values for a broker are not complete or not in their form.",
        "Name mr_td, rtmr1, rtmr2, rtmr3 or launches, and platforms, as the detail says.",
    ),
    WireCode.RELEASE_MISMATCH: (
        "A released secret was sealed for another request, key, broker or name.",
        "Ask again with a fresh nonce; if it stays so, do not trust the broker.",
    ),
    WireCode.RELEASE_SIGNATURE: (
        "A released secret is not signed by the broker.",
        "Do not open it: HPKE alone does not say who sealed it.",
    ),
    WireCode.REVOCATIONS_SIGNATURE: (
        "A list of revocations is not signed by the broker, or answers another question.",
        "Ask again with a fresh nonce; until one verifies, mail is held.",
    ),
    WireCode.STATE_SIGNATURE: (
        "The number of a checkpoint is not signed by the broker for this mailbox and question.",
        "Ask again with a fresh nonce; if it stays so, treat the state as lost.",
    ),
    WireCode.SVID_BUNDLE: (
        "A trust bundle is not signed by the broker that it is said to come from.",
        "Do not use it: somebody may have put an authority of his own there.",
    ),
    WireCode.SVID_CRL_STALE: (
        "No CRL of a certificate's authority is in force.",
        "Fetch the trust bundle again; without it nobody knows whether the certificate still stands.",
    ),
    WireCode.SVID_DOMAIN: (
        "A certificate names an agent of another trust domain.",
        "Use certificates of this broker's trust domain; bundles of different domains are never mixed.",
    ),
    WireCode.SVID_EXPIRED: (
        "A certificate is not in force.",
        "Fetch a new one: certificates live as long as the admission that they stand for.",
    ),
    WireCode.SVID_MALFORMED: (
        "A certificate is not an X.509-SVID.",
        "Use a certificate from POST /v1/svids: one URI name, no CA, for servers and clients both.",
    ),
    WireCode.SVID_NOT_ISSUED: (
        "No authority of the trust bundle issued the certificate.",
        "Fetch the trust bundle again; if it stays so, do not trust the peer.",
    ),
    WireCode.SVID_REQUEST: (
        "The certificate request is not a PKCS #10 request signed by a fresh P-256 key.",
        "Make a key for TLS alone and sign the request with it.",
    ),
    WireCode.SVID_REVOKED: (
        "The certificate's agent may not act any more.",
        "Do not talk to it; the broker's log says why.",
    ),
}
