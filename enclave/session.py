"""The agent's half of attestation, without a socket: it takes what the broker sent and returns what to send.

    ask ─▶ ChallengeRequest   challenged ─▶ REPORT_DATA to quote   quoted ─▶ AttestationRequest   admitted ─▶ Admission

Decides that nothing of the agent leaves before the broker has proved, over this session's own nonce, that it is the one
that the trust file names and, where that file has reference values, that it runs in a trust domain that fits them; that
the quote carries exactly the Binding that was asked for; and that the admission that comes back is for these keys, this
nonce and this broker. Legal orders are a table. Randomness and time of waiting are arguments, so a session is a pure
machine; who moves the bytes is `client`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.evidence import Binding, Evidence, Role, proof_message
from attestation.quote import Quote
from attestation.verdict import Verdict, open_admission
from attestation.verifier import Verifier
from broker.wire.attested import MAX_AGE_S, judge
from broker.wire.bodies import AttestationRequest, AttestationResponse
from broker.wire.challenge import BrokerKeys, ChallengeRequest, ChallengeResponse
from broker.wire.jose import p256_from_spki
from broker.wire.log import Receipt
from enclave.clock import BrokerTime
from enclave.errors import Code, SessionError
from enclave.keys import AgentKeys
from enclave.trustfile import TrustFile

NONCE_LEN: Final = 32
MAX_CHALLENGE_S: Final = 120
ADMITTED: Final = "agent.admitted"  # kind of the log entry that an admission must have


class State(StrEnum):
    NEW = "new"
    ASKED = "asked"
    CHALLENGED = "challenged"
    SUBMITTED = "submitted"
    ADMITTED = "admitted"
    FAILED = "failed"
    CLOSED = "closed"


class Step(StrEnum):
    ASK = "ask"
    CHALLENGE = "challenge"
    QUOTE = "quote"
    ADMIT = "admit"
    FAIL = "fail"
    CLOSE = "close"


# Everything that is not here is refused. `ask` starts over from anywhere but the end: a new nonce, a new quote.
TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = {
    (State.NEW, Step.ASK): State.ASKED,
    (State.ASKED, Step.ASK): State.ASKED,
    (State.CHALLENGED, Step.ASK): State.ASKED,
    (State.SUBMITTED, Step.ASK): State.ASKED,
    (State.ADMITTED, Step.ASK): State.ASKED,
    (State.FAILED, Step.ASK): State.ASKED,
    (State.ASKED, Step.CHALLENGE): State.CHALLENGED,
    (State.CHALLENGED, Step.QUOTE): State.SUBMITTED,
    (State.SUBMITTED, Step.ADMIT): State.ADMITTED,
    **{(state, Step.FAIL): State.FAILED for state in (State.ASKED, State.CHALLENGED, State.SUBMITTED)},
    **{(state, Step.CLOSE): State.CLOSED for state in State},
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that has proved itself: everything later is checked with these keys, never with fetched ones."""

    broker_id: bytes
    issuer: str
    log_key: bytes
    identity: ec.EllipticCurvePublicKey = field(repr=False)
    token_keys: Mapping[str, ec.EllipticCurvePublicKey] = field(repr=False)

    @classmethod
    def of(cls, keys: BrokerKeys, identity: ec.EllipticCurvePublicKey, broker_id: bytes) -> Broker:
        """`keys` must have been verified. Raises SessionError: session.challenge_malformed."""
        try:
            token_keys = {key.kid: p256_from_spki(key.spki) for key in keys.token_keys}
        except ValueError as error:
            raise SessionError(Code.SESSION_CHALLENGE, f"token key: {error}") from None
        return cls(
            broker_id=broker_id, issuer=keys.issuer, log_key=keys.log_key, identity=identity, token_keys=token_keys
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the broker granted: a token that only this session's keys can use, and what it says about this agent."""

    token: str = field(repr=False)
    verdict: Verdict
    subject: str
    issued_at_s: float
    expires_at_s: float
    broker: Broker
    receipt: Receipt
    policy: str = ""  # digest of the one that admitted it, in hex


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A broker's evidence that was found good: it need not be sent again until it ends."""

    digest: bytes
    identity_key: bytes
    valid_until: datetime


@final
class Session:
    """One agent's dealings with one broker. Not thread-safe; after any failure it can only ask anew."""

    def __init__(self, keys: AgentKeys, trust: TrustFile, time: BrokerTime, *, role: Role = Role.AGENT) -> None:
        self.state = State.NEW
        self._keys = keys
        self._trust = trust
        self._time = time
        self._role = role
        self._client_nonce = b""
        self._binding: Binding | None = None
        self._broker: Broker | None = None
        self._deadline_s = 0.0
        self._verifier = Verifier(trust.roots)
        self._judged: _Judged | None = None
        self._unjudged: bytes | None = None

    def ask(self, nonce: bytes) -> ChallengeRequest:
        """Start, or start over, with 32 fresh random bytes."""
        if len(nonce) != NONCE_LEN:
            raise ValueError(f"the nonce must have {NONCE_LEN} bytes")
        self._step(Step.ASK)
        self._client_nonce, self._binding, self._broker = nonce, None, None
        if self._trust.broker_reference is None:
            return ChallengeRequest(client_nonce=nonce, known=self._unjudged)  # it need not be sent again
        known = self._judged if self._judged and self._time.now() < self._judged.valid_until else None
        return ChallengeRequest(client_nonce=nonce, known=known.digest if known else None)

    def challenged(self, answer: ChallengeResponse) -> bytes:
        """Verify the broker, then bind: the 64 bytes that the quote must carry.

        Raises WireError challenge.wrong_broker, challenge.signature_invalid (also for an answer to another's nonce),
        challenge.evidence_*, challenge.not_expected; VerificationFailed, MalformedEvidence for the broker's evidence;
        SessionError session.wrong_step, session.broker_not_attested, session.challenge_malformed.
        """
        self._step(Step.CHALLENGE)
        with _Failing(self):
            identity = answer.verify(self._trust.broker_id, client_nonce=self._client_nonce)
            self._judge_broker(answer)
            if not 0 < answer.expires_s <= MAX_CHALLENGE_S:
                raise SessionError(Code.SESSION_CHALLENGE, f"a challenge that lives {answer.expires_s} s")
            self._time.learn(answer.at_s)
            self._broker = Broker.of(answer.keys, identity, self._trust.broker_id)
            self._deadline_s = self._time.now_s() + answer.expires_s
            self._binding = Binding(
                role=self._role,
                tenant=self._trust.tenant,
                broker_id=self._trust.broker_id,
                nonce=answer.nonce,
                identity_key=self._keys.identity_key,
                suite=self._keys.suite,
                sealing_key=self._keys.sealing_key,
                trust_file_digest=self._trust.digest,
            )
            return self._binding.report_data

    def _judge_broker(self, answer: ChallengeResponse) -> None:
        """Where the trust file has reference values: nothing goes to a broker that does not prove them."""
        reference, known = self._trust.broker_reference, self._judged
        if reference is None:
            self._unjudged = answer.evidence_digest or None
            return
        at = datetime.fromtimestamp(max(answer.at_s, self._time.now_s() if self._time.known else 0), UTC)
        if answer.evidence is None:
            fits = known is not None and hmac.compare_digest(known.digest, answer.evidence_digest)
            if known is None or not fits or known.identity_key != answer.keys.identity_key or at > known.valid_until:
                self._judged = None
                raise SessionError(Code.SESSION_UNATTESTED, "the trust file wants the broker's own quote judged")
            return
        self._judged = None
        verdict = judge(
            answer.evidence,
            answer.keys,
            reference=reference,
            verifier=self._verifier,
            trust_file_digest=self._trust.digest,
            at=at,
        )
        oldest = datetime.fromtimestamp(answer.keys.issued_at_s + MAX_AGE_S, UTC)
        self._judged = _Judged(
            digest=answer.evidence_digest,
            identity_key=answer.keys.identity_key,
            valid_until=min(oldest, verdict.valid_until),
        )

    def quoted(self, quote: bytes, event_log: bytes | None) -> AttestationRequest:
        """Evidence with proof of possession, for the quote over what `challenged` returned.

        Raises MalformedEvidence for a quote that isn't one; SessionError session.wrong_step, session.quote_mismatch,
        session.challenge_expired.
        """
        binding = self._binding
        self._step(Step.QUOTE)
        assert binding is not None
        with _Failing(self):
            if not hmac.compare_digest(Quote.parse(quote).report_data, binding.report_data):
                raise SessionError(Code.SESSION_QUOTE, "REPORT_DATA is not the binding's")
            if self._time.now_s() > self._deadline_s:
                raise SessionError(Code.SESSION_EXPIRED, "the quote took longer than the challenge lives")
            message = proof_message(binding.broker_id, self._client_nonce, binding.nonce, quote, event_log)
            evidence = Evidence(quote=quote, event_log=event_log, binding=binding, proof=self._keys.sign(message))
            return AttestationRequest(evidence=evidence.to_dict(), client_nonce=self._client_nonce)

    def admitted(self, answer: AttestationResponse) -> Admission:
        """The admission, if the broker really granted it to these keys in answer to this evidence.

        Raises TokenRefused token.*, WireError log.*, SessionError session.wrong_step, session.admission_mismatch.
        """
        broker, binding = self._broker, self._binding
        self._step(Step.ADMIT)
        assert broker is not None
        assert binding is not None
        with _Failing(self):
            at = self._time.now()
            opened = open_admission(
                answer.token, keys=broker.token_keys, issuer=broker.issuer, audience=broker.issuer, at=at
            )
            verdict = opened.verdict
            same = (
                verdict.identity_key == binding.identity_key
                and verdict.sealing_key == binding.sealing_key
                and verdict.suite == binding.suite
                and verdict.nonce == binding.nonce.hex()
                and verdict.broker_id == binding.broker_id.hex()
                and verdict.tenant == binding.tenant
                and verdict.subject == answer.subject
            )
            if not same:
                raise SessionError(Code.SESSION_ADMISSION, f"the token speaks of {answer.subject!a}")
            answer.receipt.verify(broker.log_key)
            logged = read_entry(answer.receipt)
            if (logged.get("kind"), logged.get("subject")) != (ADMITTED, answer.subject):
                raise SessionError(Code.SESSION_ADMISSION, f"the log's entry {answer.receipt.index} is not of it")
            return Admission(
                token=answer.token,
                verdict=verdict,
                subject=answer.subject,
                issued_at_s=at.timestamp(),
                expires_at_s=opened.expires_at.timestamp(),
                broker=broker,
                receipt=answer.receipt,
                policy=opened.policy_digest,
            )

    def fail(self) -> None:
        """The exchange broke off (network, refusal): only `ask` is possible now."""
        self._step(Step.FAIL)

    def close(self) -> None:
        self._step(Step.CLOSE)

    def _step(self, step: Step) -> None:
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise SessionError(Code.SESSION_STEP, f"{step} in state {self.state}")
        self.state = following


def read_entry(receipt: Receipt) -> dict[str, Any]:
    """What the log says in the entry of a receipt that was verified; nothing for an entry that is no JSON object."""
    try:
        found = json.loads(receipt.entry)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@final
class _Failing:
    """Whatever is raised inside leaves the session failed."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._session.state = State.FAILED
