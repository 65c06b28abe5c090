"""Proof of possession at the broker's doors: the DPoP rules that need the broker's own knowledge.

Decides whether a proof belongs to this very request: our nonce, not seen before, this method, the *configured* public
address (never a forwarded header), this body, this token, the token's key. The nonce replaces a window around `iat`; a
`jti` is remembered for the nonce's life. Nonce keys are drawn at start, so nothing from before a restart is accepted.
"""

import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final, final

from attestation.encoding import b64url, from_b64url
from broker.challenges import NONCE_LEN, Challenges, Once
from broker.errors import BrokerCode, BrokerError
from broker.wire.dpop import Proof, body_hash, parse, token_hash

NONCE_LIFE_S: Final = 300
RENEW_S: Final = 60  # a new nonce is handed out this often; the older ones live on


@final
class Gate:
    """Checks proofs against one public base URL."""

    def __init__(self, public_url: str, *, life_s: int = NONCE_LIFE_S) -> None:
        self._base = public_url.rstrip("/")
        self._nonces = Challenges(secrets.token_bytes(32), "dpop", life_s=life_s)
        self._seen = Once(life_s)
        self._current: tuple[float, str] | None = None

    def nonce(self, at: datetime) -> str:
        """What clients should put into their next proofs."""
        now_s = at.timestamp()
        if self._current is None or not 0 <= now_s - self._current[0] < RENEW_S:
            self._current = now_s, b64url(self._nonces.issue(b"", at))
        return self._current[1]

    @property
    def remembered(self) -> int:
        """How many proofs are kept, so that none serves twice."""
        return len(self._seen)

    def check(
        self,
        text: str | None,
        *,
        method: str,
        path: str,
        body: bytes,
        at: datetime,
        token: str | None = None,
        known: Callable[[str], object] = lambda _: None,
    ) -> Proof:
        """The proof, if it is one for this request. Whose key it is about is for the caller to compare: `known` raises
        for a thumbprint that nobody here knows, before anything is remembered of it.

        Raises BrokerError dpop.missing, dpop.nonce_required, dpop.*_mismatch, dpop.replayed; WireError dpop.malformed,
        dpop.signature_invalid.
        """
        if not text:
            raise BrokerError(BrokerCode.DPOP_MISSING, "no proof")
        proof = parse(text)
        self._fresh(proof, at)
        if proof.htm != method:
            raise BrokerError(BrokerCode.DPOP_METHOD, f"proof for {proof.htm!a}")
        if proof.htu != self._base + path:
            raise BrokerError(BrokerCode.DPOP_URL, f"proof for {proof.htu[:120]!a}, this is {self._base + path!a}")
        if not hmac.compare_digest(proof.bh, body_hash(body)):
            raise BrokerError(BrokerCode.DPOP_BODY, "proof about another body")
        expected = None if token is None else token_hash(token)
        if proof.ath != expected:
            raise BrokerError(BrokerCode.DPOP_TOKEN, "proof about another token")
        known(proof.jkt)
        if not self._seen.first(f"{proof.jkt}/{proof.jti}".encode("ascii"), at.timestamp()):
            raise BrokerError(BrokerCode.DPOP_REPLAYED, "this jti was used")
        return proof

    def _fresh(self, proof: Proof, at: datetime) -> None:
        try:
            raw = from_b64url(proof.nonce or "")
            if len(raw) != NONCE_LEN:
                raise ValueError("no nonce")
            self._nonces.check(raw, b"", at)
        except (ValueError, BrokerError):
            raise BrokerError(BrokerCode.DPOP_NONCE, "no nonce of ours, or one that has ended") from None
