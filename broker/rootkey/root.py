"""The root key in use: it derives and wraps, and nothing gets it out again.

Decides how keys come from the root (HKDF-SHA256, RFC 5869, one purpose each) and how other keys are wrapped under it
(AES-256-GCM). Where it is kept while the broker is off is decided in methods.py.
"""

import secrets
from typing import Final, NoReturn, Self, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.encoding import framed
from broker.errors import BrokerCode, BrokerError

ROOT_LEN: Final = 32
_NONCE_LEN: Final = 12
_TAG: Final = b"cloister/root/v1"


@final
class RootKey:
    """32 bytes that no method returns, no repr shows and no pickle holds."""

    __slots__ = ("_key", "_wrapping")

    def __init__(self, key: bytes) -> None:
        if len(key) != ROOT_LEN:
            raise ValueError(f"a root key has {ROOT_LEN} bytes")
        self._key = key
        self._wrapping: dict[str, AESGCM] = {}  # by purpose, of which there are few

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(ROOT_LEN))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a root key cannot be copied or pickled")

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose."""
        return HKDF(SHA256(), 32, salt=None, info=framed(_TAG, purpose.encode("ascii"))).derive(self._key)

    @property
    def id(self) -> str:
        """Names the root without telling anything about it: 32 hex digits."""
        return self.derive("id").hex()[:32]

    def wrap(self, purpose: str, key: bytes, *, aad: bytes) -> bytes:
        """nonce ‖ AES-256-GCM(key), under the wrapping key of that purpose."""
        return _sealed(self._cipher(purpose), key, aad)

    def unwrap(self, purpose: str, wrapped: bytes, *, aad: bytes) -> bytes:
        """Raises BrokerError root.wrong_key for another root, purpose or `aad`, and for changed bytes."""
        return _unsealed(self._cipher(purpose), wrapped, aad)

    def _cipher(self, purpose: str) -> AESGCM:
        """Kept like the root itself: deriving it costs more than using it."""
        found = self._wrapping.get(purpose)
        if found is None:
            found = self._wrapping[purpose] = AESGCM(self.derive(f"wrap/{purpose}"))
        return found


def seal(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """nonce (12) ‖ ciphertext ‖ tag (16)."""
    return _sealed(AESGCM(key), plaintext, aad)


def unseal(key: bytes, blob: bytes, aad: bytes) -> bytes:
    """The inverse of `seal`. Raises BrokerError root.wrong_key."""
    return _unsealed(AESGCM(key), blob, aad)


def _sealed(cipher: AESGCM, plaintext: bytes, aad: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_LEN)
    return nonce + cipher.encrypt(nonce, plaintext, aad)


def _unsealed(cipher: AESGCM, blob: bytes, aad: bytes) -> bytes:
    try:
        return cipher.decrypt(blob[:_NONCE_LEN], blob[_NONCE_LEN:], aad)
    except (InvalidTag, ValueError):
        raise BrokerError(BrokerCode.ROOT_WRONG, "does not open under this root key, or was changed") from None
