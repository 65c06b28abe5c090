"""Who the broker is and what it says about others: its statement of keys, admission tokens, peer tokens, results.

Decides issuers, audiences, lives and key ids. Admission tokens and verification results have different issuers, keys
and types, so neither can stand for the other. Certificates (X.509-SVID) for agents belong here, beside `admission`.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.checks import Check
from attestation.ear import Appraisal
from attestation.encoding import b64url
from attestation.errors import AttestationError
from attestation.quote import Tee
from attestation.tokens import write
from attestation.verdict import Admission, Verdict, open_admission, sign_admission, sign_refusal, sign_result
from broker.keyring import Keyring, TokenKey, published, signing
from broker.wire.bodies import peer_audience
from broker.wire.challenge import BrokerKeys, ChallengeRequest, ChallengeResponse
from broker.wire.challenge import TokenKey as PublicTokenKey
from broker.wire.evidence import BrokerEvidence
from broker.wire.jose import jwk, spki
from broker.wire.log import broker_id, raw_log_key

TOKEN_TTL_S: Final = 300
STATEMENT_LIFE_S: Final = 24 * 3600
STATEMENT_RENEW_S: Final = 600
RESULTS_PATH: Final = "/results"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A token and its end."""

    token: str = field(repr=False)
    expires_at_s: int
    token_id: str = field(default="", repr=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Evidence that these keys are held in the broker's trust domain; `digest` names the evidence."""

    keys: BrokerKeys
    evidence: BrokerEvidence
    digest: bytes


@final
class Identity:
    """Signs in the broker's name. `issuer` is its public URL, compared as a whole string by everybody."""

    def __init__(self, keyring: Keyring, *, issuer: str, log_name: str, ttl_s: int = TOKEN_TTL_S) -> None:
        self._keyring = keyring
        self.issuer: Final[str] = issuer
        self.log_name: Final[str] = log_name
        self.log_key: Final[bytes] = raw_log_key(keyring.log.public_key())
        self.broker_id: Final[bytes] = broker_id(self.log_key)
        self._ttl_s = ttl_s
        self._statement: BrokerKeys | None = None
        self._public: tuple[tuple[str, ...], Mapping[str, ec.EllipticCurvePublicKey]] = (), {}

    @property
    def results_issuer(self) -> str:
        return self.issuer + RESULTS_PATH

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The identity key: answers challenges, signs releases and acceptances, each under its own tag."""
        return self._keyring.identity

    def keys(self, at: datetime) -> BrokerKeys:
        """The log key's statement about the other keys; made anew every ten minutes and when they change."""
        now_s = int(at.timestamp())
        live = published(self._keyring.tokens, now_s)
        old, kids = self._statement, [key.kid for key in live]
        same = old is not None and [key.kid for key in old.token_keys] == kids
        if old is None or not same or not 0 <= now_s - old.issued_at_s < STATEMENT_RENEW_S:
            self._statement = old = BrokerKeys.sign(
                self._keyring.log,
                log_key=self.log_key,
                log_name=self.log_name,
                issuer=self.issuer,
                identity_key=spki(self.key.public_key()),
                token_keys=tuple(PublicTokenKey(kid=key.kid, spki=_spki(key)) for key in live),
                issued_at_s=now_s,
                not_after_s=now_s + STATEMENT_LIFE_S,
            )
        return old

    def answer(
        self, request: ChallengeRequest, *, nonce: bytes, expires_s: int, at: datetime, proof: Proof | None = None
    ) -> ChallengeResponse:
        """The broker's proof to an agent that wants to attest; with `proof`, of its trust domain too."""
        known = proof is not None and proof.digest == request.known
        return ChallengeResponse.sign(
            self.key,
            keys=proof.keys if proof else self.keys(at),
            broker_id=self.broker_id,
            client_nonce=request.client_nonce,
            nonce=nonce,
            at_s=int(at.timestamp()),
            expires_s=expires_s,
            evidence_digest=proof.digest if proof else b"",
            evidence=None if proof is None or known else proof.evidence,
        )

    # ── admissions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def admission(self, verdict: Verdict, *, at: datetime, appraisal: Appraisal, policy: str) -> Issued:
        """The token with which an agent enters here."""
        return self._admission(verdict, self.issuer, at, appraisal, policy)

    def for_peers(self, verdict: Verdict, *, at: datetime, appraisal: Appraisal, policy: str) -> Issued:
        """The token by which other agents judge this one; it opens no door."""
        return self._admission(verdict, peer_audience(self.issuer), at, appraisal, policy)

    def for_others(self, verdict: Verdict, *, audience: str, at: datetime, appraisal: Appraisal, policy: str) -> Issued:
        """The token for another service, which checks it with the published keys; it opens no door here."""
        return self._admission(verdict, audience, at, appraisal, policy)

    def jwt_svid(self, verdict: Verdict, *, spiffe_id: str, audience: str, at: datetime) -> Issued:
        """A JWT-SVID (SPIFFE, JWT-SVID §3): it says who the agent is, and nothing of the verdict."""
        signer = signing(self._keyring.tokens, at.timestamp())
        issued_at_s, token_id = int(at.timestamp()), b64url(secrets.token_bytes(16))
        end_s = min(issued_at_s + self._ttl_s, int(verdict.valid_until.timestamp()))
        claims = {
            "iss": self.issuer,
            "sub": spiffe_id,
            "aud": [audience],
            "iat": issued_at_s,
            "exp": end_s,
            "jti": token_id,
            "cnf": {"jkt": verdict.jkt},
        }
        token = write(claims, typ="JWT", key=signer.private, kid=signer.kid)
        return Issued(token=token, expires_at_s=end_s, token_id=token_id)

    def _admission(self, verdict: Verdict, audience: str, at: datetime, appraisal: Appraisal, policy: str) -> Issued:
        signer = signing(self._keyring.tokens, at.timestamp())
        token_id = b64url(secrets.token_bytes(16))
        token = sign_admission(
            verdict,
            key=signer.private,
            kid=signer.kid,
            issuer=self.issuer,
            audience=audience,
            at=at,
            ttl_s=self._ttl_s,
            policy_digest=policy,
            jti=token_id,
            appraisal=appraisal,
        )
        end = min(at.timestamp() + self._ttl_s, verdict.valid_until.timestamp())
        return Issued(token=token, expires_at_s=int(end), token_id=token_id)

    def open(self, token: str, at: datetime) -> Admission:
        """An admission token of ours, for entering here. Raises TokenRefused: token.*"""
        return self.open_for(token, self.issuer, at)

    def open_for(self, token: str, audience: str, at: datetime) -> Admission:
        """A token of ours for that audience. Raises TokenRefused: token.*"""
        return open_admission(token, keys=self._token_keys(at), issuer=self.issuer, audience=audience, at=at, skew_s=0)

    def _token_keys(self, at: datetime) -> Mapping[str, ec.EllipticCurvePublicKey]:
        live = published(self._keyring.tokens, at.timestamp())
        kids = tuple(key.kid for key in live)
        if self._public[0] != kids:
            self._public = kids, {key.kid: key.private.public_key() for key in live}
        return self._public[1]

    # ── results for relying services ───────────────────────────────────────────────────────────────────────────────

    def result(
        self,
        verdict: Verdict,
        *,
        audience: str,
        nonce: str,
        at: datetime,
        checks: tuple[Check, ...],
        appraisal: Appraisal,
    ) -> str:
        signer = signing(self._keyring.results, at.timestamp())
        return sign_result(
            verdict,
            key=signer.private,
            kid=signer.kid,
            issuer=self.results_issuer,
            audience=audience,
            at=at,
            ttl_s=self._ttl_s,
            jti=b64url(secrets.token_bytes(16)),
            nonce=nonce,
            checks=checks,
            appraisal=appraisal,
        )

    def refusal(self, failure: AttestationError, *, tee: Tee, audience: str, nonce: str, at: datetime) -> str:
        signer = signing(self._keyring.results, at.timestamp())
        return sign_refusal(
            failure,
            tee=tee,
            key=signer.private,
            kid=signer.kid,
            issuer=self.results_issuer,
            audience=audience,
            at=at,
            ttl_s=self._ttl_s,
            jti=b64url(secrets.token_bytes(16)),
            nonce=nonce,
        )

    # ── discovery ──────────────────────────────────────────────────────────────────────────────────────────────────

    def jwks(self, at: datetime, *, results: bool = False) -> dict[str, Any]:
        """The published token keys as a JWK Set (RFC 7517 §5)."""
        keys = published(self._keyring.results if results else self._keyring.tokens, at.timestamp())
        return {"keys": [_jwk(key) for key in keys]}

    def configuration(self, *, results: bool = False) -> dict[str, Any]:
        """What OpenID Connect Discovery 1.0 asks for; there is no authorization endpoint, because nobody logs in."""
        issuer = self.results_issuer if results else self.issuer
        return {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/.well-known/jwks.json",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti", "cnf", "eat_profile", "ear_status"],
        }


def _spki(key: TokenKey) -> bytes:
    return spki(key.private.public_key())


def _jwk(key: TokenKey) -> dict[str, str]:
    return {**jwk(key.private.public_key()), "kid": key.kid, "use": "sig", "alg": "ES256"}
