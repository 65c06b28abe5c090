"""KBS tokens: an EAR in the dialect of Confidential Containers, signed by a key of its own.

Decides what a token says of a guest, and what is believed when one comes back: our own signature and nothing else. The
key in a token's header is for other servers, which compare its certificate with a CA that they were told to trust; here
it is never looked at. A token opens nothing by itself: the guest's evidence is judged again whenever anything changed.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, final

from attestation import ear, es256
from attestation.ear import Appraisal
from attestation.encoding import b64url, compact_json, from_b64url, strict_json
from attestation.quote import Quote
from attestation.verdict import Verdict
from broker.errors import BrokerCode, BrokerError
from broker.kbs.keys import KbsKeys

PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
MAX_TOKEN: Final = 32 << 10
MAX_DEPTH: Final = 12
_OURS: Final = "cloister"
_BITS: Final = {"debug": 0, "septve_disable": 28, "protection_keys": 30, "key_locker": 31, "perfmon": 63}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What our own token says: which guest, by which evidence, and until when."""

    guest: str
    evidence: bytes
    expires_at_s: int
    nonce: str = field(repr=False)


@final
class KbsTokens:
    """Signs and reads KBS tokens of one issuer."""

    def __init__(self, keys: KbsKeys, *, issuer: str, ttl_s: int) -> None:
        self._keys = keys
        self.issuer: Final = issuer
        self.ttl_s: Final = ttl_s
        self._public = keys.signing.public_key()
        self._jwk = es256.jwk(es256.dump_public(self._public))

    @property
    def ca_pem(self) -> bytes:
        return self._keys.ca_pem

    def sign(
        self,
        ticket: Ticket,
        verdict: Verdict,
        quote: Quote,
        runtime: Mapping[str, Any],
        appraisal: Appraisal,
        at_s: int,
    ) -> str:
        leaf = base64.b64encode(self._keys.leaf(verdict.verified_at)).decode("ascii")
        header = {"typ": "JWT", "alg": "ES256", "jwk": {"alg": "ES256", **self._jwk, "x5c": [leaf]}}
        claims = {
            "eat_profile": PROFILE,
            "iat": at_s,
            "exp": ticket.expires_at_s,
            "iss": self.issuer,
            "jti": ticket.guest,
            "ear.verifier-id": {"developer": "cloister", "build": "cloister"},
            "submods": {"cpu0": _module(verdict, quote, runtime, appraisal)},
            _OURS: {"evidence": b64url(ticket.evidence), "nonce": ticket.nonce},
        }
        signed = f"{b64url(compact_json(header))}.{b64url(compact_json(claims))}"
        return f"{signed}.{b64url(es256.sign(self._keys.signing, signed.encode('ascii')))}"

    def read(self, token: str, at: datetime) -> Ticket:
        """Raises BrokerError kbs.token_invalid, kbs.token_expired."""
        try:
            claims = self._verified(token)
            told = claims[_OURS]
            ticket = Ticket(
                guest=_text(claims["jti"]),
                evidence=from_b64url(_text(told["evidence"])),
                expires_at_s=_whole(claims["exp"]),
                nonce=_text(told["nonce"]),
            )
            begins = _whole(claims["iat"])
        except (ValueError, KeyError, TypeError):
            raise BrokerError(BrokerCode.KBS_TOKEN, "not a token of this KBS") from None
        if claims.get("iss") != self.issuer or claims.get("eat_profile") != PROFILE or begins > at.timestamp():
            raise BrokerError(BrokerCode.KBS_TOKEN, "another issuer, profile or time")
        if at.timestamp() >= ticket.expires_at_s:
            raise BrokerError(BrokerCode.KBS_TOKEN_EXPIRED, f"ended {at.timestamp() - ticket.expires_at_s:.0f} s ago")
        return ticket

    def _verified(self, token: str) -> dict[str, Any]:
        """ValueError unless our key signed it. The header's own key is not even read."""
        if len(token) > MAX_TOKEN or not token.isascii() or token.count(".") != 2:
            raise ValueError("not a compact JWS of acceptable length")
        head, body, tail = token.split(".")
        header = strict_json(from_b64url(head), max_depth=MAX_DEPTH)
        if not isinstance(header, dict) or not header.keys() <= {"alg", "typ", "jwk"}:
            raise ValueError("the header is another kind of token's")
        if header.get("alg") != "ES256" or header.get("typ") != "JWT":
            raise ValueError("another kind of token")
        if not es256.verify(self._public, from_b64url(tail), f"{head}.{body}".encode("ascii")):
            raise ValueError("the signature does not verify")
        claims = strict_json(from_b64url(body), max_depth=MAX_DEPTH)
        if not isinstance(claims, dict):
            raise ValueError("claims are an object")
        return claims


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError("a whole number")
    return value


def _module(verdict: Verdict, quote: Quote, runtime: Mapping[str, Any], appraisal: Appraisal) -> dict[str, Any]:
    """The one submodule. Categories that nobody looked at are 0, as this dialect writes them."""
    values = ear.vector(tcb_status=verdict.tcb_status, allowances=verdict.allowances, appraisal=appraisal)
    return {
        "ear.status": str(ear.status(values, compared=verdict.compared, appraisal=appraisal)),
        "ear.trustworthiness-vector": {name: values.get(name, 0) for name in ear.CATEGORIES},
        "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": {
            "tdx": _tdx(verdict, quote),
            "report_data": verdict.report_data,
            "runtime_data_claims": dict(runtime),
            "init_data": verdict.mr_config_id,
            "init_data_claims": None,
        },
    }


def _tdx(verdict: Verdict, quote: Quote) -> dict[str, Any]:
    body = quote.td
    bits = int.from_bytes(body.td_attributes, "little")
    fields = {
        "tcb_svn": body.tee_tcb_svn,
        "mr_seam": body.mr_seam,
        "mrsigner_seam": body.mr_signer_seam,
        "seam_attributes": body.seam_attributes,
        "td_attributes": body.td_attributes,
        "xfam": body.xfam,
        "mr_td": body.mr_td,
        "mr_config_id": body.mr_config_id,
        "mr_owner": body.mr_owner,
        "mr_owner_config": body.mr_owner_config,
        **{f"rtmr_{index}": value for index, value in enumerate(body.rtmrs)},
        "report_data": body.report_data,
    }
    version = quote.header.version.to_bytes(2, "little").hex()
    return {
        "quote": {"header": {"version": version}, "body": {name: raw.hex() for name, raw in fields.items()}},
        "td_attributes": {name: bool(bits >> bit & 1) for name, bit in _BITS.items()},
        "tcb_status": str(verdict.tcb_status),
        "advisory_ids": list(verdict.advisory_ids),
        "tcb_date": verdict.tcb_date.isoformat().replace("+00:00", "Z"),
        "tcb_eval_num": verdict.tcb_evaluation_number,
        "collateral_expiration_status": "0",
        "platform_provider_id": verdict.ppid,
    }
