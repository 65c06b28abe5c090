"""The broker's own private keys: drawn once, kept in the store under the root key, rotated with overlap.

Decides which key signs now and which public keys are published. What they sign is decided in identity.py, audit.py and
release.py. A token key is published before it is used and stays published until nothing that it signed can still live.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, Self, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from attestation.encoding import b64url, framed, from_b64url, strict_json
from broker.audit import check_rows, sign_again
from broker.errors import BrokerCode, BrokerError
from broker.ports import Store, Transaction
from broker.rootkey.root import RootKey
from broker.wire.jose import thumbprint

PUBLISH_BEFORE_S: Final = 3600  # readers that cache the key set learn a key before it signs
KEEP_AFTER_S: Final = 3600  # longer than any token's life and skew
_PREFIX: Final = "key/"
_ROOT_MARK: Final = "root-id"
_PURPOSE: Final = "broker-key"
Private = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenKey:
    """A P-256 key that signs tokens from `from_s` until another one does."""

    kid: str
    private: ec.EllipticCurvePrivateKey
    from_s: int


@final
class Keyring:
    """The opened keys of one broker. Private halves leave it only to sign inside this process."""

    def __init__(
        self,
        *,
        log: Ed25519PrivateKey,
        identity: ec.EllipticCurvePrivateKey,
        tokens: tuple[TokenKey, ...],
        results: tuple[TokenKey, ...],
    ) -> None:
        self.log: Final = log
        self.identity: Final = identity
        self.tokens = tokens
        self.results = results

    @classmethod
    async def open(cls, store: Store, root: RootKey, *, at: datetime) -> Self:
        """The store's keys; those that are missing are drawn.

        Raises BrokerError root.wrong_key, store.rows_changed, store.row_forged.
        """
        return await store.transact(lambda tx: cls._open(tx, root, int(at.timestamp())))

    @classmethod
    def _open(cls, tx: Transaction, root: RootKey, now_s: int) -> Self:
        check_rows(tx)
        before = tx.marks.head()
        known = tx.marks.get(_ROOT_MARK)
        if known is None:
            tx.marks.put(_ROOT_MARK, root.id)
        elif known != root.id:
            raise BrokerError(BrokerCode.ROOT_WRONG, f"the database belongs to root {known}, this is {root.id}")
        for purpose in ("log", "identity", "token", "result"):
            if not tx.marks.under(f"{_PREFIX}{purpose}/"):
                draw_key(tx, root, purpose, 0 if purpose in ("token", "result") else now_s)
        log = _ed25519(_load(tx, root, "log")[0])
        if tx.marks.head() != before:
            sign_again(tx, log)
        return cls(
            log=log,
            identity=_p256(_load(tx, root, "identity")[0]),
            tokens=load_keys(tx, root, "token"),
            results=load_keys(tx, root, "result"),
        )

    def draw_tokens(
        self, tx: Transaction, root: RootKey, *, at: datetime
    ) -> tuple[tuple[TokenKey, ...], tuple[TokenKey, ...]]:
        """All token and result keys, the next ones among them, for `tokens` and `results` once this is durable.

        They are published at once and sign an hour later.
        """
        from_s = int(at.timestamp()) + PUBLISH_BEFORE_S
        for purpose in ("token", "result"):
            draw_key(tx, root, purpose, from_s)
        return load_keys(tx, root, "token"), load_keys(tx, root, "result")


def signing(keys: tuple[TokenKey, ...], now_s: float) -> TokenKey:
    """The newest key that may sign."""
    return max((key for key in keys if key.from_s <= now_s), key=lambda key: key.from_s, default=keys[0])


def published(keys: tuple[TokenKey, ...], now_s: float) -> tuple[TokenKey, ...]:
    """The key that signs, those that will, and those whose signatures may still be alive; newest first."""
    current = signing(keys, now_s)
    replaced_s = {key.kid: following.from_s for key, following in pairwise(keys)}
    alive = [key for key in keys if key.from_s >= current.from_s or replaced_s[key.kid] + KEEP_AFTER_S > now_s]
    return tuple(reversed(alive))


def _aad(purpose: str, name: str) -> bytes:
    return framed(b"cloister/broker-key/v1", purpose.encode(), name.encode())


def draw_key(tx: Transaction, root: RootKey, purpose: str, from_s: int) -> None:
    """A fresh key of that purpose, in use from `from_s`."""
    if purpose == "log":
        log = Ed25519PrivateKey.generate()
        name, raw = "log", log.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        name, raw = thumbprint(key.public_key()), key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    wrapped = b64url(root.wrap(_PURPOSE, raw, aad=_aad(purpose, name)))
    tx.marks.put(f"{_PREFIX}{purpose}/{name}", json.dumps({"from_s": from_s, "wrapped": wrapped}))


def _load(tx: Transaction, root: RootKey, purpose: str) -> list[tuple[str, int, Private]]:
    """Name, first second and key of each key of that purpose, oldest first."""
    found: list[tuple[str, int, Private]] = []
    for name, value in tx.marks.under(f"{_PREFIX}{purpose}/").items():
        members = strict_json(value)
        raw = root.unwrap(_PURPOSE, from_b64url(members["wrapped"]), aad=_aad(purpose, name))
        key = load_der_private_key(raw, password=None)
        if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"key {purpose}/{name} is of another kind")
        found.append((name, int(members["from_s"]), key))
    return sorted(found, key=lambda item: item[1])


def _ed25519(found: tuple[str, int, Private]) -> Ed25519PrivateKey:
    if not isinstance(found[2], Ed25519PrivateKey):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"key {found[0]} is not Ed25519")
    return found[2]


def _p256(found: tuple[str, int, Private]) -> ec.EllipticCurvePrivateKey:
    if not isinstance(found[2], ec.EllipticCurvePrivateKey):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"key {found[0]} is not P-256")
    return found[2]


def load_keys(tx: Transaction, root: RootKey, purpose: str) -> tuple[TokenKey, ...]:
    """Oldest first."""
    return tuple(TokenKey(kid=found[0], private=_p256(found), from_s=found[1]) for found in _load(tx, root, purpose))
