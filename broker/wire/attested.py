"""How a broker proves what it is: a quote over its keys, and the values that whoever asks expects of it.

Decides what a broker's quote binds, and when its evidence is good enough for a `BrokerReference`.
The quote binds the statement in which the log key vouches for the other keys: its digest stands where an agent's
Binding has the nonce. So a quote is made once for many challenges, and each challenge is answered with a signature of
the quoted identity key over both fresh nonces. Collateral comes with the evidence, because a domain that has not yet
judged the broker can ask nobody else; it is judged under the reader's own roots, and its digest is signed with the
answer, so that nobody on the way can put an older set in its place.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self, final

from attestation.collateral import Collateral
from attestation.eventlog import EventLog
from attestation.evidence import Binding, Role
from attestation.quote import Quote
from attestation.tcb import UP_TO_DATE, TcbStates, TcbStatus
from attestation.verdict import Verdict
from attestation.verifier import Verifier
from broker.wire.challenge import BrokerKeys
from broker.wire.errors import WireCode, WireError
from broker.wire.evidence import BrokerEvidence
from broker.wire.fields import Reader
from broker.wire.log import broker_id

RENEW_S: Final = 600
"""A broker quotes its keys so often, and no more often: a quote for each request would invite whoever wants to stop
it."""
MAX_AGE_S: Final = 2 * RENEW_S
"""Older evidence is refused; one renewal may fail."""
TENANT: Final = "broker"
PINNED: Final = ("mr_td", "rtmr1", "rtmr2")
REGISTERS: Final = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
MAX_LIST: Final = 64
_DIGEST: Final = 48
_IDS: Final = (6, 16)  # FMSPC; PPID and PIID


def binding_of(keys: BrokerKeys, *, suite: str, sealing_key: bytes, trust_file_digest: bytes) -> Binding:
    """What the broker's quote commits to: these very keys, vouched for by its log key at one moment."""
    return Binding(
        role=Role.BROKER,
        tenant=TENANT,
        broker_id=broker_id(keys.log_key),
        nonce=hashlib.sha256(keys.message()).digest(),
        identity_key=keys.identity_key,
        suite=suite,
        sealing_key=sealing_key,
        trust_file_digest=trust_file_digest,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerReference:
    """What a broker must be: pinned registers, the whole list of launches, platforms, and the TCB states that pass.

    MRTD covers firmware alone, so RTMR1 and RTMR2 are pinned beside it, and RTMR3 either as a value or as the whole
    ordered list of what was launched. `platforms` are PPIDs, PIIDs or FMSPCs, because a genuine quote alone does not
    say that nobody took the platform's key out; `any_platform_until` lets every platform pass, for a time.
    """

    registers: Mapping[str, bytes]
    launches: tuple[bytes, ...] | None
    platforms: tuple[bytes, ...]
    any_platform_until: datetime | None
    accept: TcbStates
    evaluation: int
    """Evaluation sets with a lower number are refused."""
    trust_files: tuple[bytes, ...]
    """Digests of other trust files under which the broker may run; the reader's own always may."""

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """Raises WireError: reference.malformed."""
        try:
            read = Reader(value, "reference")
            found = cls(
                registers={name: _hex(raw, name, (_DIGEST,)) for name in REGISTERS if (raw := _text(read, name))},
                launches=_launches(read, value),
                platforms=tuple(_hex(text, "platforms", _IDS) for text in _texts(read, "platforms")),
                any_platform_until=_moment(_text(read, "any_platform_until")),
                accept=_states(_texts(read, "tcb")),
                evaluation=read.number("tcb_evaluation", high=10_000, default=0),
                trust_files=tuple(_hex(text, "trust_files", (32,)) for text in _texts(read, "trust_files")),
            )
            read.end()
        except WireError as error:
            raise _bad(error.detail) from None
        found._demand()
        return found

    def _demand(self) -> None:
        missing = [name for name in PINNED if name not in self.registers]
        if missing:
            raise _bad(f"{', '.join(missing)} missing: firmware alone does not say which kernel runs")
        if ("rtmr3" in self.registers) == (self.launches is not None):
            raise _bad("either rtmr3 or launches must be named, and not both")
        if bool(self.platforms) == (self.any_platform_until is not None):
            raise _bad("either platforms or any_platform_until must be named, and not both")

    def to_dict(self) -> dict[str, Any]:
        """The same members again, for those who write trust files."""
        found: dict[str, Any] = {name: raw.hex() for name, raw in self.registers.items()}
        if self.launches is not None:
            found["launches"] = [digest.hex() for digest in self.launches]
        if self.any_platform_until is not None:
            found["any_platform_until"] = self.any_platform_until.isoformat()
        if self.platforms:
            found["platforms"] = [platform.hex() for platform in self.platforms]
        if self.trust_files:
            found["trust_files"] = [digest.hex() for digest in self.trust_files]
        return found | {"tcb": sorted(str(status) for status in self.accept), "tcb_evaluation": self.evaluation}

    def objections(self, verdict: Verdict, at: datetime) -> list[str]:
        """Everything that is not as expected, in words; nothing when all is."""
        measured = {"mr_td": verdict.mr_td} | {f"rtmr{i}": rtmr for i, rtmr in enumerate(verdict.rtmrs)}
        wrong = [
            f"{name} is {measured.get(name, 'absent')[:16]}…, expected {value.hex()[:16]}…"
            for name, value in self.registers.items()
            if measured.get(name) != value.hex()
        ]
        if self.launches is not None:
            launched = tuple(launch.digest for launch in verdict.launches)
            if launched != tuple(digest.hex() for digest in self.launches) or not verdict.only_launches:
                wrong.append(f"RTMR3 records {len(launched)} launches or other events, expected {len(self.launches)}")
        if not self._platform_fits(verdict, at):
            wrong.append(f"platform {verdict.ppid} is not listed")
        number = min(verdict.tcb_evaluation_number, verdict.qe_evaluation_number)
        if number < self.evaluation:
            wrong.append(f"evaluation set {number}, at least {self.evaluation}")
        return wrong

    def _platform_fits(self, verdict: Verdict, at: datetime) -> bool:
        if self.any_platform_until is not None:
            return at <= self.any_platform_until
        ids = {verdict.ppid, verdict.piid, verdict.fmspc}
        return any(platform.hex() in ids for platform in self.platforms)


def judge(
    evidence: BrokerEvidence,
    keys: BrokerKeys,
    *,
    reference: BrokerReference,
    verifier: Verifier,
    trust_file_digest: bytes,
    at: datetime,
) -> Verdict:
    """The verdict on a broker whose `keys` were verified, if it is what `reference` expects.

    1. evidence is young at `at`                        challenge.evidence_stale
    2. the broker runs under a trust file that may be   challenge.evidence_mismatch
    3. quote, collateral and event log are genuine and  VerificationFailed, MalformedEvidence
       bind these keys, in the role of a broker
    4. everything in `reference` is found               challenge.not_expected
    """
    age_s = at.timestamp() - keys.issued_at_s
    if not 0 <= age_s <= MAX_AGE_S:
        raise WireError(WireCode.CHALLENGE_STALE, f"quoted {age_s:.0f} s ago, at most {MAX_AGE_S}")
    if evidence.trust_file_digest not in (trust_file_digest, *reference.trust_files):
        detail = f"the broker runs under trust file {evidence.trust_file_digest.hex()}"
        raise WireError(WireCode.CHALLENGE_EVIDENCE, detail)
    binding = binding_of(
        keys,
        suite=evidence.suite,
        sealing_key=evidence.sealing_key,
        trust_file_digest=evidence.trust_file_digest,
    )
    verified = verifier.verify(
        Quote.parse(evidence.quote),
        Collateral.from_json(evidence.collateral),
        report_data=binding,
        at=at,
        accept=reference.accept,
    )
    log = None if evidence.event_log is None else EventLog.parse(evidence.event_log)
    verdict = Verdict.of(verified, event_log=log, binding=binding)
    if objections := reference.objections(verdict, at):
        raise WireError(WireCode.CHALLENGE_NOT_EXPECTED, "; ".join(objections))
    return verdict


def _bad(detail: str) -> WireError:
    return WireError(WireCode.REFERENCE_MALFORMED, detail)


def _text(read: Reader, name: str) -> str:
    return read.text_or_none(name, max_len=256) or ""


def _texts(read: Reader, name: str) -> tuple[str, ...]:
    return read.texts(name, max_items=MAX_LIST, max_len=256)


def _hex(text: str, name: str, sizes: tuple[int, ...]) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) not in sizes or found.hex() != text:
        raise _bad(f"{name} must be {' or '.join(str(2 * size) for size in sizes)} lower-case hex digits")
    return found


def _launches(read: Reader, value: object) -> tuple[bytes, ...] | None:
    """None when it is not named; an empty list says that nothing was launched."""
    found = tuple(_hex(text, "launches", (_DIGEST,)) for text in _texts(read, "launches"))
    return found if isinstance(value, Mapping) and "launches" in value else None


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.utcoffset() is None:
        raise _bad("any_platform_until must be a time with its offset, like 2027-01-31T00:00:00+00:00")
    return found


def _states(names: tuple[str, ...]) -> TcbStates:
    known = {str(status): status for status in TcbStatus if status is not TcbStatus.REVOKED}
    if unknown := [name for name in names if name not in known]:
        raise _bad(f"tcb knows {', '.join(known)}, not {unknown[0]!a}")
    return frozenset(known[name] for name in names) or UP_TO_DATE
