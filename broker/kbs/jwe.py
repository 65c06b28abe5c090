"""The guest's public key and what is encrypted to it: a JWK in, a flattened JWE out (RFC 7516, RFC 7518).

Decides which keys are taken (P-256, P-521, RSA of 2048 to 4096 bits with OAEP) and the exact bytes of the protected
header, because guests rebuild it from its members: `alg`, `enc`, then `epk` with `crv`, `kty`, `x`, `y`. Members of the
JWK beyond those of the protocol are dropped before anything is hashed.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from attestation.encoding import b64url, compact_json, from_b64url
from attestation.guest import jwk_thumbprint
from broker.errors import BrokerCode, BrokerError

ECDH: Final = "ECDH-ES+A256KW"
OAEP: Final = "RSA-OAEP-256"
_CONTENT: Final = "A256GCM"
_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, int]]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-521": (ec.SECP521R1(), 66),
}
_MEMBERS: Final = {"EC": ("kty", "crv", "alg", "x", "y"), "RSA": ("kty", "alg", "n", "e")}
_MAX_MEMBER: Final = 1024
_RSA_BITS: Final = (2048, 4096)
_CEK_LEN: Final = 32
_IV_LEN: Final = 12
_TAG_LEN: Final = 16
# RFC 7518 §4.6.2: AlgorithmID with its length, empty PartyUInfo and PartyVInfo, the key's 256 bits
_OTHER_INFO: Final = len(ECDH).to_bytes(4, "big") + ECDH.encode() + bytes(8) + (256).to_bytes(4, "big")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TeeKey:
    """The key that a guest made inside its trust domain. `members` are exactly those that REPORT_DATA is of."""

    members: Mapping[str, str]
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey = field(repr=False)

    @classmethod
    def read(cls, jwk: object) -> Self:
        """Raises BrokerError kbs.key_unsupported."""
        kind = jwk.get("kty") if isinstance(jwk, dict) else None
        if not isinstance(jwk, dict) or not isinstance(kind, str) or kind not in _MEMBERS:
            raise _unsupported("kty must be EC or RSA")
        names = _MEMBERS[kind]
        members = {name: jwk.get(name) for name in names}
        if "d" in jwk or not all(isinstance(text, str) and len(text) <= _MAX_MEMBER for text in members.values()):
            raise _unsupported(f"need the public members {', '.join(names)}, each text")
        known = {name: str(text) for name, text in members.items()}
        try:
            return cls(members=known, public=_curve_key(known) if known["kty"] == "EC" else _rsa_key(known))
        except ValueError as error:
            raise _unsupported(str(error)) from None

    @property
    def alg(self) -> str:
        return self.members["alg"]

    @property
    def thumbprint(self) -> bytes:
        return jwk_thumbprint(self.members)

    def encrypt(self, plaintext: bytes) -> dict[str, str]:
        """A flattened JWE that only the holder of the private key can open."""
        cek, iv = secrets.token_bytes(_CEK_LEN), secrets.token_bytes(_IV_LEN)
        header: dict[str, Any] = {"alg": self.alg, "enc": _CONTENT}
        if isinstance(self.public, rsa.RSAPublicKey):
            hashing = SHA256()
            wrapped = self.public.encrypt(cek, padding.OAEP(padding.MGF1(hashing), hashing, label=None))
        else:
            ephemeral = ec.generate_private_key(self.public.curve)
            kek = ConcatKDFHash(SHA256(), 32, _OTHER_INFO).derive(ephemeral.exchange(ec.ECDH(), self.public))
            wrapped = aes_key_wrap(kek, cek)
            header["epk"] = _public_members(ephemeral.public_key(), self.members["crv"])
        protected = b64url(compact_json(header))
        sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
        return {
            "protected": protected,
            "encrypted_key": b64url(wrapped),
            "iv": b64url(iv),
            "ciphertext": b64url(sealed[:-_TAG_LEN]),
            "tag": b64url(sealed[-_TAG_LEN:]),
        }


def _curve_key(members: Mapping[str, str]) -> ec.EllipticCurvePublicKey:
    """ValueError unless it is a point on its curve, with coordinates of full width."""
    known = _CURVES.get(members["crv"])
    if known is None or members["alg"] != ECDH:
        raise ValueError(f"need crv {' or '.join(_CURVES)} with alg {ECDH}")
    curve, width = known
    x, y = from_b64url(members["x"]), from_b64url(members["y"])
    if len(x) != width or len(y) != width:
        raise ValueError(f"coordinates of {members['crv']} have {width} bytes each")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    return numbers.public_key()


def _rsa_key(members: Mapping[str, str]) -> rsa.RSAPublicKey:
    if members["alg"] != OAEP:
        raise ValueError(f"an RSA key needs alg {OAEP}")
    modulus, exponent = (int.from_bytes(from_b64url(members[name]), "big") for name in ("n", "e"))
    if not _RSA_BITS[0] <= modulus.bit_length() <= _RSA_BITS[1]:
        raise ValueError(f"an RSA key has {_RSA_BITS[0]} to {_RSA_BITS[1]} bits")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _public_members(key: ec.EllipticCurvePublicKey, crv: str) -> dict[str, str]:
    """In the order that guests write them."""
    numbers, width = key.public_numbers(), _CURVES[crv][1]
    x, y = (b64url(number.to_bytes(width, "big")) for number in (numbers.x, numbers.y))
    return {"crv": crv, "kty": "EC", "x": x, "y": y}


def _unsupported(why: str) -> BrokerError:
    return BrokerError(BrokerCode.KBS_KEY, f"tee-pubkey: {why}")
