"""The bodies of the KBS protocol, read strictly where something rests on them and liberally where nothing does.

Decides which protocol versions and TEEs are spoken and what a well-formed attestation is. Unknown members are skipped,
as every implementation of the protocol does; what REPORT_DATA is compared with is rebuilt from the known ones alone.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from attestation.encoding import strict_json
from attestation.guest import MAX_ADDITIONAL, GuestEvidence, runtime_text
from broker.errors import BrokerCode, BrokerError
from broker.kbs.jwe import TeeKey
from broker.wire.errors import WireCode, WireError

VERSIONS: Final = ("0.4.0",)
TEE: Final = "tdx"
MAX_BODY: Final = 2 << 20
MAX_NONCE: Final = 64
MAX_DEPTH: Final = 16
COOKIE: Final = "kbs-session-id"
_SESSION: Final = re.compile(r"[0-9a-f]{32}")
_SEMVER: Final = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(?:[-+][0-9A-Za-z.+-]{1,64})?")


def read_request(raw: bytes) -> None:
    """POST auth: a guest that names a version and a TEE that are spoken here.

    Raises WireError body.*; BrokerError kbs.version_unsupported, kbs.tee_unsupported.
    """
    members = _object(raw)
    version, tee = members.get("version"), members.get("tee")
    if not isinstance(version, str) or not _SEMVER.fullmatch(version) or not isinstance(tee, str):
        raise _invalid("need version (a semantic version) and tee")
    if "extra-params" not in members:
        raise WireError(WireCode.BODY_FIELD_MISSING, "extra-params")
    if version not in VERSIONS:
        raise BrokerError(BrokerCode.KBS_VERSION, f"the guest speaks {version[:40]}, this is {', '.join(VERSIONS)}")
    if tee != TEE:
        raise BrokerError(BrokerCode.KBS_TEE, f"tee {tee[:40]!a}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttestBody:
    """POST attest. `nonce` is the text that the guest hashed, `raw_nonce` the bytes that it spells."""

    nonce: str
    raw_nonce: bytes
    key: TeeKey
    evidence: GuestEvidence = field(repr=False)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Raises WireError body.*; BrokerError kbs.key_unsupported, kbs.tee_unsupported; MalformedEvidence."""
        members = _object(raw)
        runtime, tee = _member(members, "runtime-data"), _member(members, "tee-evidence")
        if members.get("tee", TEE) != TEE:
            raise BrokerError(BrokerCode.KBS_TEE, "the body names another TEE than the one at auth")
        nonce = runtime.get("nonce")
        if not isinstance(nonce, str) or len(nonce) > MAX_NONCE:
            raise _invalid("runtime-data.nonce")
        key = TeeKey.read(runtime.get("tee-pubkey"))
        primary, additional = _member(tee, "primary_evidence"), tee.get("additional_evidence", "")
        if not isinstance(additional, str) or len(additional) > MAX_ADDITIONAL:
            raise _invalid("additional_evidence must be text")
        evidence = GuestEvidence(
            quote=_base64(primary.get("quote"), "quote"),
            event_log=_base64_or_none(primary.get("cc_eventlog"), "cc_eventlog"),
            runtime=_runtime(nonce, key.members, additional),
            init_data=_init_data(members.get("init-data")),
        )
        return cls(nonce=nonce, raw_nonce=_nonce(nonce), key=key, evidence=evidence)


def session_of(cookies: Mapping[str, list[str]]) -> str | None:
    """The session that the request's cookies name, if they name exactly one."""
    found = set(cookies.get(COOKIE, ()))
    name = found.pop() if len(found) == 1 else ""
    return name if _SESSION.fullmatch(name) else None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = strict_json(raw, max_depth=MAX_DEPTH)
    except ValueError as error:
        raise WireError(WireCode.BODY_NOT_JSON, str(error)[:120]) from None
    if not isinstance(found, dict):
        raise WireError(WireCode.BODY_NOT_JSON, "not a JSON object")
    return found


def _member(members: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = members.get(name)
    if not isinstance(found, dict):
        raise _invalid(f"{name} must be an object")
    return found


def _invalid(what: str) -> WireError:
    return WireError(WireCode.BODY_FIELD_INVALID, what)


def _base64(text: object, what: str) -> bytes:
    """Standard base64 with padding, in its one spelling."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        raise _invalid(f"{what} is not base64") from None
    if not raw or base64.b64encode(raw).decode("ascii") != text:
        raise _invalid(f"{what} is not base64 of anything")
    return raw


def _base64_or_none(text: object, what: str) -> bytes | None:
    return None if text is None or text == "" else _base64(text, what)


def _nonce(text: str) -> bytes:
    """Not one of ours unless it is the very spelling that was sent."""
    try:
        return _base64(text, "nonce")
    except WireError:
        return b""


def _runtime(nonce: str, key: Mapping[str, str], additional: str) -> bytes:
    try:
        return runtime_text(nonce, key, additional)
    except UnicodeEncodeError:
        raise _invalid("runtime data are not Unicode") from None


def _init_data(found: object) -> bytes | None:
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("format") != "toml" or not isinstance(found.get("body"), str):
        raise _invalid('init-data must be null or {"format": "toml", "body": text}')
    return str(found["body"]).encode()
