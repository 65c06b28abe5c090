"""Faults in what goes with a quote: event logs, and the binding and proof that an agent sends."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import Code
from attestation.evidence import Binding, Evidence, Role, proof_message
from simulator import ccel
from simulator.domain import SimulatedTd
from simulator.registry import BINDING, EVENT_LOG, Exhibit, fault
from simulator.scene import Scene
from simulator.seed import SigningKey, sha256, sha384, sign

_LAUNCH_TAG: Final = b"cloister/launch/v1\0"
_MAX_LOG: Final = 4 << 20

# --- event logs ---


@fault("event-log-rubbish", Code.EVENTLOG_MALFORMED, "the event log ends inside a record", EVENT_LOG)
def _log_rubbish(scene: Scene) -> Exhibit:
    td = scene.td()
    return scene.exhibit(scene.quote(td), event_log=td.event_log()[:-5])


@fault("endless-event-log", Code.EVENTLOG_TOO_LARGE, "an event log of more than 4 MiB", EVENT_LOG)
def _log_endless(scene: Scene) -> Exhibit:
    td = scene.td()
    return scene.exhibit(scene.quote(td), event_log=td.event_log().ljust(_MAX_LOG + 1, b"\0"))


@fault("cut-event-log", Code.EVENTLOG_REPLAY, "the last event was cut off the event log", EVENT_LOG)
def _log_cut(scene: Scene) -> Exhibit:
    td = _launched(scene)
    return scene.exhibit(scene.quote(td), event_log=ccel.encode(td.records[:-1]))


@fault("reordered-event-log", Code.EVENTLOG_REPLAY, "two events of the log changed places", EVENT_LOG)
def _log_reordered(scene: Scene) -> Exhibit:
    td = scene.td()
    first, second, *rest = td.records
    return scene.exhibit(scene.quote(td), event_log=ccel.encode((second, first, *rest)))


@fault(
    "edited-event-digest",
    Code.EVENTLOG_REPLAY,
    "the log claims another kernel than the one that was measured",
    EVENT_LOG,
)
def _log_edited(scene: Scene) -> Exhibit:
    td = scene.td()
    records = [replace(r, digest=sha384(b"a good kernel")) if r.register == 1 else r for r in td.records]
    return scene.exhibit(scene.quote(td), event_log=ccel.encode(records))


@fault("unlogged-extension", Code.EVENTLOG_REPLAY, "RTMR3 was extended and the log does not say so", EVENT_LOG)
def _log_silent(scene: Scene) -> Exhibit:
    td = scene.td()
    td.extend_unlogged(3, sha384(b"a program that nobody should know of"))
    return scene.exhibit(scene.quote(td), event_log=td.event_log())


@fault("foreign-event-log", Code.EVENTLOG_REPLAY, "the event log of another image", EVENT_LOG)
def _log_foreign(scene: Scene) -> Exhibit:
    other = scene.td(image="another-image")
    return scene.exhibit(event_log=other.event_log())


@fault("relabelled-launch", Code.EVENTLOG_DIGEST, "a launch event whose text is not what was measured", EVENT_LOG)
def _log_relabelled(scene: Scene) -> Exhibit:
    td = scene.td()
    text = _LAUNCH_TAG + sha384(b"a well-known program") + b"researcher"
    td.extend(3, sha384(b"quite another program"), data=text)
    return scene.exhibit(scene.quote(td), event_log=td.event_log())


@fault("short-launch-event", Code.EVENTLOG_LAUNCH, "a launch event without a whole code digest", EVENT_LOG)
def _log_short(scene: Scene) -> Exhibit:
    td = scene.td()
    text = _LAUNCH_TAG + bytes(20)
    td.extend(3, sha384(text), data=text)
    return scene.exhibit(scene.quote(td), event_log=td.event_log())


@fault(
    "enclave-event-log", Code.EVENTLOG_NOT_A_TD, "an event log beside an SGX quote, which has no registers", EVENT_LOG
)
def _log_enclave(scene: Scene) -> Exhibit:
    return scene.exhibit(scene.platform.sgx_quote(scene.report_data), scene.documents("sgx"))


def _launched(scene: Scene) -> SimulatedTd:
    td = scene.td()
    text = _LAUNCH_TAG + sha384(b"a program") + b"researcher"
    td.extend(3, sha384(text), data=text)
    return td


# --- what an agent sends ---


@fault(
    "relayed-evidence", Code.BINDING_REPORT_DATA, "fresh evidence of an honest agent, made for another broker", BINDING
)
def _relayed(scene: Scene) -> Exhibit:
    return _sent(scene, made_for={"broker_id": sha256(b"another broker")})


@fault("replayed-evidence", Code.BINDING_REPORT_DATA, "old evidence, bound to an earlier nonce", BINDING)
def _replayed(scene: Scene) -> Exhibit:
    return _sent(scene, made_for={"nonce": sha256(b"an earlier nonce")})


@fault("reflected-evidence", Code.BINDING_REPORT_DATA, "the broker's own evidence, sent back as an agent's", BINDING)
def _reflected(scene: Scene) -> Exhibit:
    return _sent(scene, made_for={"role": Role.BROKER})


@fault("diverted-evidence", Code.BINDING_REPORT_DATA, "evidence made for another tenant", BINDING)
def _diverted(scene: Scene) -> Exhibit:
    return _sent(scene, made_for={"tenant": "another"})


@fault("swapped-sealing-key", Code.BINDING_REPORT_DATA, "secrets shall be sealed to a key outside the domain", BINDING)
def _swapped_key(scene: Scene) -> Exhibit:
    return _sent(scene, made_for={"sealing_key": _sealing_key(scene, "honest")})


@fault("stolen-evidence", Code.EVIDENCE_PROOF, "somebody without the identity key presents the evidence", BINDING)
def _stolen(scene: Scene) -> Exhibit:
    return _sent(scene, signer=scene.key("thief"))


@fault("short-nonce", Code.EVIDENCE_FIELD, "a binding with a nonce of 16 bytes", BINDING)
def _short_nonce(scene: Scene) -> Exhibit:
    return _edited(scene, nonce="A" * 22)


@fault("p384-identity-key", Code.EVIDENCE_KEY, "an identity key on another curve", BINDING)
def _p384(scene: Scene) -> Exhibit:
    scalar = int.from_bytes(scene.machine.seed.derive("fault/p384", 40), "big")
    key = ec.derive_private_key(scalar, ec.SECP384R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _edited(scene, identity_key=_base64url(spki))


@fault("unknown-suite", Code.EVIDENCE_SUITE, "a sealing suite that nobody knows", BINDING)
def _suite(scene: Scene) -> Exhibit:
    return _edited(scene, suite="rot13")


@fault("extra-evidence-member", Code.EVIDENCE_MALFORMED, "a member that does not belong there", BINDING)
def _extra(scene: Scene) -> Exhibit:
    exhibit = _sent(scene)
    return replace(exhibit, evidence=(exhibit.evidence or {}) | {"collateral": {}})


@fault("oversized-evidence", Code.EVIDENCE_TOO_LARGE, "a quote of 2 MiB", BINDING)
def _oversized(scene: Scene) -> Exhibit:
    exhibit = _sent(scene)
    return replace(exhibit, evidence=(exhibit.evidence or {}) | {"quote": "A" * (3 << 20)})


def _binding(scene: Scene) -> Binding:
    """What a broker expects here."""
    return Binding(
        role=Role.AGENT,
        tenant="lab",
        broker_id=sha256(b"broker"),
        nonce=sha256(b"nonce", struct.pack("<q", scene.at)),
        identity_key=_spki(scene.key("identity")),
        suite="x25519",
        sealing_key=_sealing_key(scene, "claimed"),
        trust_file_digest=sha256(b"trust file"),
    )


def _sent(scene: Scene, *, made_for: dict[str, Any] | None = None, signer: SigningKey | None = None) -> Exhibit:
    """Evidence under the expected binding, its quote made for that binding with the changes in `made_for`."""
    expected = _binding(scene)
    td = scene.td()
    quote = scene.quote(td, replace(expected, **made_for or {}).report_data)
    client_nonce = sha256(b"client nonce")
    message = proof_message(expected.broker_id, client_nonce, expected.nonce, quote, td.event_log())
    proof = sign(signer or scene.key("identity"), message)
    sent = Evidence(quote=quote, event_log=td.event_log(), binding=expected, proof=proof)
    exhibit = scene.exhibit(
        quote,
        event_log=td.event_log(),
        binding=expected,
        evidence=sent.to_dict(),
        client_nonce=client_nonce,
    )
    return replace(exhibit, report_data=expected.report_data)


def _edited(scene: Scene, **members: str) -> Exhibit:
    exhibit = _sent(scene)
    evidence = dict(exhibit.evidence or {})
    evidence["binding"] = evidence["binding"] | members
    return replace(exhibit, evidence=evidence)


def _spki(key: SigningKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _sealing_key(scene: Scene, label: str) -> bytes:
    private = X25519PrivateKey.from_private_bytes(scene.machine.seed.derive(f"fault/sealing/{label}", 32))
    return private.public_key().public_bytes_raw()


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
