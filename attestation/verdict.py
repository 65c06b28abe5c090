"""The verdict on a quote: everything a policy may ask about, its signed token, and the only two doors to one.

Decides what is carried on from a verified quote and how it is written into an attestation result (EAR). A `Verdict`
comes from `Verdict.of`, which wants a VerifiedQuote, or from `open_token`, which wants our own signature; nothing
else makes one. Whether the verdict is good enough for anything is left to policies.

Two kinds of token, which can't be mistaken for each other: an *admission* says who an agent is (subject, confirmation
key; typ `eat+jwt`) and opens to a Verdict again; a *verification result* answers a relying service's question (own
issuer, key and typ, no subject, no confirmation key) and opens to plain claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import ear, tokens, verdict_agreement, verdict_claims, verdict_facts
from attestation.checks import Check
from attestation.ear import NOT_APPRAISED, Appraisal, Tier
from attestation.encoding import b64url, compact_json
from attestation.errors import AttestationError, Code, TokenRefused, VerificationFailed
from attestation.eventlog import EventLog, Launch
from attestation.evidence import Binding, Role
from attestation.quote import Tee
from attestation.tcb import TcbStatus
from attestation.verdict_agreement import LABELS
from attestation.verifier import VerifiedQuote

ADMISSION_TYPE: Final = "eat+jwt"
RESULT_TYPE: Final = "cloister-result+jwt"
BUILD: Final = "cloister"
_EXTENSION: Final = "cloister_verdict"
_RESULT: Final = "cloister_verification"
_POLICY_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_ID: Final = 64
_NONCE: Final = "<nonce>"  # stands where an agent's own will
_SEAL: Final = object()  # stays in this module; guards against mistakes, not against hostile code


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A genuine quote, in the words of policies. Measurements and ids are lower-case hex; absent ones are empty or
    None.

    subject                    "agent/<tenant>/<jkt>", empty unless a Binding was compared admission
    REPORT_DATA was compared with a Binding: only then can it become an admission compared
    REPORT_DATA was compared with anything at all launches                   programs measured into RTMR3, in order.
    Other RTMR3 events may stand between them; policies
                               compare with `event_digests[3]`, see `only_launches`
    event_digests              per register, what was extended into it, empty without an event log
    valid_until                the earliest end of everything that the verdict rests on
    simulated                  the trust root is not Intel's
    """

    subject: str
    tenant: str
    role: str
    tee: Tee
    tcb_status: TcbStatus
    platform_tcb_status: TcbStatus
    module_tcb_status: TcbStatus | None
    qe_tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]
    tcb_date: datetime
    tcb_evaluation_number: int
    qe_evaluation_number: int
    fmspc: str
    ppid: str
    piid: str | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
    mr_td: str
    mr_seam: str
    rtmrs: tuple[str, ...]
    mr_config_id: str
    mr_owner: str
    mr_owner_config: str
    mr_service_td: str  # of the service TDs bound to it; empty where the TD report has no such field (before 1.5)
    td_attributes: str
    xfam: str
    mr_enclave: str
    mr_signer: str
    report_data: str
    launches: tuple[Launch, ...]
    event_log_present: bool
    event_digests: tuple[tuple[str, ...], ...]
    allowances: tuple[str, ...]
    identity_key: bytes = field(repr=False)
    jkt: str
    suite: str
    sealing_key: bytes = field(repr=False)
    nonce: str
    broker_id: str
    trust_file_digest: str
    init_data_digest: str
    quote_digest: str
    collateral_digest: str
    root_sha256: str
    simulated: bool
    verified_at: datetime
    valid_until: datetime
    compared: bool
    admission: bool
    seal: InitVar[object]  # also makes dataclasses.replace() fail

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a Verdict comes from Verdict.of() or open_token() only")

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("nothing else is a Verdict")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Verdict cannot be copied or pickled; keep its token")

    @classmethod
    def of(cls, verified: VerifiedQuote, *, event_log: EventLog | None = None, binding: Binding | None = None) -> Self:
        """The verdict on a verified quote, with the event log that came with it.

        `binding` may repeat what the quote was compared with; another one is a TypeError, as is anything that only
        looks like a VerifiedQuote or an EventLog.
        Raises VerificationFailed: eventlog.replay_mismatch, .digest_mismatch, .launch_invalid, .not_a_td.
        """
        if type(verified) is not VerifiedQuote:
            raise TypeError("a Verdict is made of a VerifiedQuote")
        if event_log is not None and type(event_log) is not EventLog:
            raise TypeError("the event log of a Verdict is an EventLog")
        bound = verified.compared if type(verified.compared) is Binding else None
        if binding is not None and binding != bound:
            raise TypeError("the quote was not compared with this binding; verify it against it")
        return cls(
            **verdict_facts.judged(verified),
            **verdict_facts.measured(verified.quote),
            **verdict_facts.logged(verified.quote, event_log),
            **verdict_facts.bound(bound),
            compared=type(verified.compared) in (bytes, Binding),
            seal=_SEAL,
        )

    @property
    def only_launches(self) -> bool:
        """Whether RTMR3 was extended by the recorded launches and by nothing else. False without an event log."""
        return self.event_log_present and len(self.event_digests[3]) == len(self.launches)

    def to_claims(self) -> dict[str, Any]:
        """JSON members of every field, reversible by `open_token` alone."""
        return verdict_claims.write(self)


class Admission(NamedTuple):
    """A token that was opened: its verdict, and what the token itself says."""

    verdict: Verdict
    token_id: str
    issued_at: datetime
    expires_at: datetime
    policy_digest: str
    status: Tier


def sign_admission(
    verdict: Verdict,
    *,
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    issuer: str,
    audience: str,
    at: datetime,
    ttl_s: int,
    policy_digest: str,
    jti: str,
    appraisal: Appraisal = NOT_APPRAISED,
) -> str:
    """The EAR token of an admitted agent, bound to its identity key. It ends no later than the verdict does.

    `policy_digest` is 64 lower-case hex digits, `jti` 1 to 64 characters. Raises TokenRefused: token.not_admissible,
    token.expired, token.lifetime, token.too_large, token.claims_invalid; TypeError for what is not a Verdict.
    """
    _expect_verdict(verdict)
    if not verdict.admission or verdict.role != Role.AGENT:
        raise TokenRefused(Code.TOKEN_NOT_ADMISSIBLE, "only an agent's quote, compared with its Binding, is admitted")
    if not _POLICY_DIGEST.fullmatch(policy_digest):
        raise TokenRefused(Code.TOKEN_CLAIMS, "a policy digest is a SHA-256 in lower-case hex")
    stated = appraisal if appraisal.policy_digest == policy_digest else replace(appraisal, policy_digest=policy_digest)
    envelope = _envelope(issuer, audience, at, ttl_s, verdict.valid_until, jti)
    before, after = _appraised_text(verdict.tee, verdict.tcb_status, verdict.allowances, verdict.compared, stated)
    nonce = b64url(bytes.fromhex(verdict.nonce))
    inside = verdict_claims.to_json(verdict, verdict.event_digests)
    try:
        own = compact_json({**envelope, "sub": verdict.subject, "cnf": {"jkt": verdict.jkt}})
    except ValueError as error:
        raise TokenRefused(Code.TOKEN_CLAIMS, f"a claim cannot be written: {error}") from error
    told = own[:-1] + f',{before}{nonce}{after},"{_EXTENSION}":{inside}}}'.encode()
    return tokens.write_payload(told, typ=ADMISSION_TYPE, key=key, kid=kid)


def open_token(
    token: str, *, keys: tokens.Keys, issuer: str, audience: str, at: datetime, skew_s: int = tokens.SKEW_S
) -> Verdict:
    """The verdict inside an admission token that we signed. Raises TokenRefused: token.*"""
    return open_admission(token, keys=keys, issuer=issuer, audience=audience, at=at, skew_s=skew_s).verdict


def open_admission(
    token: str, *, keys: tokens.Keys, issuer: str, audience: str, at: datetime, skew_s: int = tokens.SKEW_S
) -> Admission:
    """As `open_token`, with the token's own id, times and policy. Raises TokenRefused: token.*"""
    claims = tokens.read(token, typ=ADMISSION_TYPE, keys=keys, issuer=issuer, audience=audience, at=at, skew_s=skew_s)
    label, module = ear.check(claims)
    verdict = _from_claims(claims.get(_EXTENSION), label, module)
    nonce = b64url(bytes.fromhex(verdict.nonce))
    told = (claims.get("sub"), claims.get("cnf"), module.get("eat_nonce"))
    if told != (verdict.subject, {"jkt": verdict.jkt}, nonce) or not verdict.admission:
        raise TokenRefused(Code.TOKEN_CLAIMS, "sub, cnf or nonce contradict the verdict inside")
    if at >= verdict.valid_until:
        raise _ended(verdict.valid_until)
    return Admission(
        verdict=verdict,
        token_id=tokens.text(claims, "jti", most=_MAX_ID),
        issued_at=datetime.fromtimestamp(claims["iat"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        policy_digest=_policy_digest(module),
        status=Tier(claims["ear_status"]),
    )


def sign_result(
    verdict: Verdict,
    *,
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    issuer: str,
    audience: str,
    at: datetime,
    ttl_s: int,
    jti: str,
    nonce: str = "",
    checks: Iterable[Check] = (),
    appraisal: Appraisal = NOT_APPRAISED,
) -> str:
    """The answer to a relying service that had a quote verified; `nonce` is the service's own, 8 to 88 characters.

    It names no subject and confirms no key. Raises TokenRefused: token.expired, token.lifetime, token.too_large,
    token.claims_invalid; TypeError for what is not a Verdict.
    """
    _expect_verdict(verdict)
    facts = {name: value for name, value in verdict.to_claims().items() if name not in verdict_facts.BOUND}
    payload = {
        **_envelope(issuer, audience, at, ttl_s, verdict.valid_until, jti),
        **_appraised(verdict.tee, verdict.tcb_status, verdict.allowances, verdict.compared, appraisal),
        _RESULT: {"ok": True, "code": None, "checks": _told(checks), "facts": facts},
    }
    return tokens.write(payload | _asked(nonce), typ=RESULT_TYPE, key=key, kid=kid)


def sign_refusal(
    failure: AttestationError,
    *,
    tee: Tee,
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    issuer: str,
    audience: str,
    at: datetime,
    ttl_s: int,
    jti: str,
    nonce: str = "",
) -> str:
    """The same for a quote that did not verify: `contraindicated`, with the code and every check that ran."""
    checks = failure.checks if isinstance(failure, VerificationFailed) else ()
    values = ear.vector_of_refusal(failure)
    payload = {
        **_envelope(issuer, audience, at, ttl_s, None, jti),
        **ear.frame(
            label=LABELS[tee], values=values, overall=Tier.CONTRAINDICATED, appraisal=NOT_APPRAISED, build=BUILD
        ),
        _RESULT: {"ok": False, "code": str(failure.code), "checks": _told(checks), "facts": None},
    }
    return tokens.write(payload | _asked(nonce), typ=RESULT_TYPE, key=key, kid=kid)


def open_result(
    token: str,
    *,
    keys: tokens.Keys,
    issuer: str,
    audience: str,
    at: datetime,
    nonce: str = "",
    skew_s: int = tokens.SKEW_S,
) -> dict[str, Any]:
    """The claims of a verification result; `ear_status` is the answer. With `nonce`, it must be the one asked with.

    What the result says of itself agrees with the facts in it: refused is `contraindicated` and has a code, verified
    has facts, still in force, that nothing revoked. Raises TokenRefused: token.*
    """
    claims = tokens.read(token, typ=RESULT_TYPE, keys=keys, issuer=issuer, audience=audience, at=at, skew_s=skew_s)
    label, module = ear.check(claims)
    if "sub" in claims or "cnf" in claims:
        raise TokenRefused(Code.TOKEN_CLAIMS, "a verification result names no subject and confirms no key")
    if not isinstance(claims.get(_RESULT), dict) or (nonce and claims.get("eat_nonce") != nonce):
        raise TokenRefused(Code.TOKEN_CLAIMS, "no verification inside, or the answer to another nonce")
    if verdict_agreement.demand_result(claims[_RESULT], claims["ear_status"]):
        facts = verdict_claims.read(claims[_RESULT]["facts"], without=verdict_facts.BOUND)
        verdict_agreement.demand_facts(facts, label, module)
        if at >= facts["valid_until"]:
            raise _ended(facts["valid_until"])
    return claims


def _expect_verdict(verdict: object) -> None:
    if type(verdict) is not Verdict:
        raise TypeError("a token is signed for a Verdict only")


def _ended(valid_until: datetime) -> TokenRefused:
    return TokenRefused(Code.TOKEN_EXPIRED, f"the verdict rests on what ended at {valid_until.isoformat()}")


def _envelope(
    issuer: str, audience: str, at: datetime, ttl_s: int, valid_until: datetime | None, jti: str
) -> dict[str, Any]:
    """Nothing is signed that the reader's door would refuse."""
    if at.utcoffset() is None:
        raise TypeError("at must be an aware datetime")
    if type(ttl_s) is not int or not 0 < ttl_s <= tokens.MAX_LIFE_S:
        raise TokenRefused(Code.TOKEN_LIFETIME, f"{ttl_s!r} s, need an integer from 1 to {tokens.MAX_LIFE_S}")
    if not issuer or not audience or not 0 < len(jti) <= _MAX_ID:
        raise TokenRefused(Code.TOKEN_CLAIMS, f"need an issuer, an audience, and an id of 1 to {_MAX_ID} characters")
    issued = int(at.timestamp())
    ends = issued + ttl_s if valid_until is None else min(issued + ttl_s, int(valid_until.timestamp()))
    if ends <= issued:
        raise TokenRefused(Code.TOKEN_EXPIRED, "what the verdict rests on has ended")
    return {"iss": issuer, "aud": audience, "iat": issued, "exp": ends, "jti": jti}


def _appraised(
    tee: Tee,
    status: TcbStatus,
    allowances: tuple[str, ...],
    compared: bool,
    appraisal: Appraisal,
    evidence_nonce: str = "",
) -> dict[str, Any]:
    values, overall = ear.judged(status, allowances, appraisal, compared=compared)
    return ear.frame(
        label=LABELS[tee],
        values=values,
        overall=overall,
        appraisal=appraisal,
        build=BUILD,
        evidence_nonce=evidence_nonce,
    )


@lru_cache(maxsize=256)
def _appraised_text(
    tee: Tee, status: TcbStatus, allowances: tuple[str, ...], compared: bool, appraisal: Appraisal
) -> tuple[str, str]:
    """The same as members of a JSON object, up to the nonce and behind it: agents who are alike have it in common."""
    members = _appraised(tee, status, allowances, compared, appraisal, evidence_nonce=_NONCE)
    before, after = compact_json(members)[1:-1].decode().split(_NONCE)
    return before, after


def _told(checks: Iterable[Check]) -> list[dict[str, Any]]:
    return [{"name": check.name, "code": str(check.code), "ok": check.ok} for check in checks]


def _asked(nonce: str) -> dict[str, str]:
    if not nonce:
        return {}
    if not 8 <= len(nonce) <= 88:
        raise TokenRefused(Code.TOKEN_CLAIMS, "a nonce has 8 to 88 characters")
    return {"eat_nonce": nonce}


def _policy_digest(module: Mapping[str, Any]) -> str:
    ids = module.get("ear_appraisal_policy_ids")
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], str) and ids[0].startswith("sha256:"):
        digest = ids[0].removeprefix("sha256:")
        if _POLICY_DIGEST.fullmatch(digest):
            return digest
    raise TokenRefused(Code.TOKEN_CLAIMS, "need one policy id, a SHA-256")


def _from_claims(found: object, label: str, module: Mapping[str, Any]) -> Verdict:
    values = verdict_claims.read(found)
    verdict_agreement.demand_facts(values, label, module)
    verdict_agreement.demand_admission(values)
    return Verdict(**values, seal=_SEAL)
