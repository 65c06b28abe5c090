"""The agent's key pairs: made here, inside the trust domain, and never anywhere else.

Decides the life of a private key: it is made by `AgentKeys.generate`, used through the methods below, and dies with
`destroy()`, with the process, or with a fork (the child of a fork holds none: two processes that share an identity
could use one sequence number twice). No key has a repr, can be pickled, copied or exported. What is signed, and under
which tag, is decided by the callers: every message to `sign` starts with a domain tag, and JWTs never do.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, NoReturn, Self, final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey
from broker.wire import dpop
from broker.wire.envelope import Envelope
from broker.wire.jose import es256_sign, spki, thumbprint
from broker.wire.mailbox import MailboxKey
from enclave.errors import Code, KeyUnusable

_LIVE: Final[weakref.WeakSet[AgentKeys]] = weakref.WeakSet()


@final
class AgentKeys:
    """One identity: an ECDSA P-256 signing key and an HPKE sealing key, both bound into REPORT_DATA by the session.

    Public halves: `identity_key` (DER SubjectPublicKeyInfo), `jkt` (its RFC 7638 thumbprint, base64url), `suite` and
    `sealing_key` (raw KEM public key). Every use of a private half raises KeyUnusable (keys.dead) after its end.
    """

    __slots__ = ("__weakref__", "_identity", "_sealing", "identity_key", "jkt", "sealing_key", "suite")

    def __init__(self, identity: ec.EllipticCurvePrivateKey, sealing: SealingKey) -> None:
        self._identity: ec.EllipticCurvePrivateKey | None = identity
        self._sealing: SealingKey | None = sealing
        self.identity_key: Final[bytes] = spki(identity.public_key())
        self.jkt: Final[str] = thumbprint(identity.public_key())
        self.suite: Final[str] = sealing.suite
        self.sealing_key: Final[bytes] = sealing.public
        _LIVE.add(self)

    @classmethod
    def generate(cls, suite: str = MLKEM768_X25519) -> Self:
        """Fresh keys. There is no silent fall-back: an unavailable suite raises SealingFailed."""
        return cls(ec.generate_private_key(ec.SECP256R1()), SealingKey.generate(suite))

    def sign(self, message: bytes) -> bytes:
        """ES256 as r ‖ s, 64 bytes. The message begins with the tag of what it is for."""
        return es256_sign(self._alive(), message)

    def sign_envelope(self, *, header: bytes, body: bytes) -> Envelope:
        """The header and sealed body as one envelope of this identity."""
        return Envelope.sign(self._alive(), header=header, body=body)

    def sign_mailbox_key(
        self,
        *,
        mailbox: str,
        owner: str,
        epoch: int,
        suite: str,
        key: bytes,
        incarnation: bytes,
        not_before_s: int,
        not_after_s: int,
        kind: str = "ephemeral",
    ) -> MailboxKey:
        """The statement that this identity's mailbox takes mail under `key` for that time."""
        return MailboxKey.sign(
            self._alive(),
            mailbox=mailbox,
            owner=owner,
            epoch=epoch,
            suite=suite,
            key=key,
            incarnation=incarnation,
            not_before_s=not_before_s,
            not_after_s=not_after_s,
            kind=kind,
        )

    def open(self, blob: bytes, info: bytes) -> bytes:
        """What was sealed to `sealing_key` under this `info`. Raises SealingFailed."""
        if self._sealing is None:
            raise _dead()
        return self._sealing.open(blob, info)

    def dpop(
        self, *, method: str, url: str, body: bytes, at_s: int, nonce: str | None, token: str | None = None
    ) -> str:
        """A DPoP proof (RFC 9449) that this identity makes this very request."""
        return dpop.build(self._alive(), method=method, url=url, body=body, at_s=at_s, nonce=nonce, token=token)

    def destroy(self) -> None:
        """Drop the private halves. What can be dropped: the memory itself is cleared by whoever frees it, if at all."""
        self._identity = None
        self._sealing = None

    def _alive(self) -> ec.EllipticCurvePrivateKey:
        if self._identity is None:
            raise _dead()
        return self._identity

    def __repr__(self) -> str:
        return f"AgentKeys(jkt={self.jkt!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys cannot be pickled or copied; make new ones and attest again")


def _dead() -> KeyUnusable:
    return KeyUnusable(Code.KEYS_DEAD, "the keys were destroyed, or this process is the child of a fork")


def _die_in_child() -> None:
    for keys in list(_LIVE):
        keys.destroy()


os.register_at_fork(after_in_child=_die_in_child)
