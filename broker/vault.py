"""Secrets at rest: each version under a data key of its own, the data key wrapped by the root key.

Decides the encryption (AES-256-GCM, AAD = tenant, name, version, labels, so that no row can stand for another) and
hands what rests here to nobody without a `Permit` about it (`open_permitted`, `open_kept`). Who may have it is the
policy's decision, how it travels release.py's.
"""

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

from attestation.encoding import framed
from broker.errors import BrokerCode, BrokerError
from broker.ports import SecretRecord, Transaction
from broker.rootkey.root import RootKey, seal, unseal
from broker.wire.names import is_resource, tenant_of

if TYPE_CHECKING:
    from policies.permit import Permit

DATA_KEY_LEN: Final = 32
NEWEST: Final = "secret/"  # marks: name → the newest version, so that no older row can pass for it
DESTROYED: Final = "destroyed/"  # marks: name → up to which version; name:version → that one
DRAWN_LEN: Final = 32  # bytes of a value that the broker draws itself
_PURPOSE: Final = "secret"


def _aad(name: str, version: int, labels: tuple[str, ...]) -> bytes:
    """Labels decide who may have a secret, so a row whose labels were changed does not open."""
    fields = (tenant_of(name).encode(), name.encode(), version.to_bytes(8, "big"))
    return framed(b"cloister/secret/v1", *fields, *(label.encode() for label in labels))


def checked_name(name: str) -> str:
    """The name, if it is tenant/path/name. Raises BrokerError secret.name_invalid."""
    if not is_resource(name):
        raise BrokerError(BrokerCode.SECRET_NAME, f"{name[:80]!a}")
    return name


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was drawn, and the version that it became."""

    version: int
    value: bytes = field(repr=False)


@final
class Vault:
    """Encrypts, stores and opens versions of secrets under one root key."""

    def __init__(self, root: RootKey) -> None:
        self._root = root

    def encrypt(self, name: str, version: int, value: bytes, *, labels: tuple[str, ...], at_s: int) -> SecretRecord:
        data_key = secrets.token_bytes(DATA_KEY_LEN)
        kept = tuple(sorted(set(labels)))
        aad = _aad(name, version, kept)
        return SecretRecord(
            name=name,
            version=version,
            labels=kept,
            created_at_s=at_s,
            wrapped_key=self._root.wrap(_PURPOSE, data_key, aad=aad),
            ciphertext=seal(data_key, value, aad),
        )

    def put(
        self, tx: Transaction, name: str, value: bytes | None, *, labels: tuple[str, ...] | None, at_s: int
    ) -> SecretRecord:
        """Store the next version. Without a value 32 random bytes are drawn; without labels the last ones stay."""
        last = tx.secrets.get(name)
        kept = last.labels if last and labels is None else labels or ()
        drawn = secrets.token_bytes(DRAWN_LEN) if value is None else value
        record = self.encrypt(name, last.version + 1 if last else 1, drawn, labels=kept, at_s=at_s)
        tx.secrets.put(record)
        tx.marks.put(NEWEST + name, str(record.version))
        return record

    def put_drawn(self, tx: Transaction, name: str, *, at_s: int) -> "Drawn":
        """Store 32 random bytes as the next version, and say which: for keys whose public half is wanted at once."""
        value = secrets.token_bytes(DRAWN_LEN)
        record = self.put(tx, name, value, labels=(), at_s=at_s)
        return Drawn(version=record.version, value=value)

    def open_kept(self, permit: "Permit", record: SecretRecord) -> bytes:
        """A key that the broker keeps for readers of a mailbox or topic, for a permit to read there.

        Raises BrokerError: secret.destroyed, root.wrong_key.
        """
        kept = ("~mailbox", "~topic", "~state/mailbox", "~state/topic")
        if permit.action != "Receive" or record.name not in {f"{place}/{permit.resource}" for place in kept}:
            raise TypeError("the permit is about something else")
        return self._open(record)

    def open_permitted(self, permit: "Permit", record: SecretRecord) -> bytes:
        """The plaintext, for a permit about this very secret.

        Raises BrokerError: secret.destroyed, root.wrong_key.
        """
        if permit.action != "ReleaseSecret" or permit.resource != record.name:
            raise TypeError("the permit is about something else")
        return self._open(record)

    def _open(self, record: SecretRecord) -> bytes:
        if record.destroyed:
            raise BrokerError(BrokerCode.SECRET_DESTROYED, f"{record.name} version {record.version}")
        aad = _aad(record.name, record.version, record.labels)
        return unseal(self._root.unwrap(_PURPOSE, record.wrapped_key, aad=aad), record.ciphertext, aad)


def destroy(tx: Transaction, name: str, version: int | None) -> int:
    """Wipe one version or all, for good: a row that comes back from a backup stays destroyed. How many there were."""
    if version is None:
        newest = tx.secrets.get(name)
        tx.marks.put(DESTROYED + name, str(newest.version if newest else 0))
    else:
        tx.marks.put(f"{DESTROYED}{name}:{version}", "1")
    return tx.secrets.destroy(name, version)


def forget(tx: Transaction, name: str) -> None:
    """Wipe every version, and what is remembered of it: for kept keys, whose names are free again with the last one."""
    tx.secrets.destroy(name)
    tx.secrets.discard(name)
    tx.marks.drop(NEWEST + name)


def find(tx: Transaction, name: str, version: int | None) -> SecretRecord:
    """Raises BrokerError: secret.unknown, secret.destroyed, store.row_forged."""
    record = tx.secrets.get(name, version)
    newest = tx.marks.get(NEWEST + name)
    if newest is not None and version is None and (record is None or record.version != int(newest)):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"{name}: the newest version is {newest}, and is not there")
    if record is None:
        raise BrokerError(BrokerCode.SECRET_UNKNOWN, f"{name[:80]!a}, version {version or 'newest'}")
    until = int(tx.marks.get(DESTROYED + name) or 0)
    gone = record.version <= until or tx.marks.get(f"{DESTROYED}{name}:{record.version}") is not None
    if record.destroyed or gone:
        raise BrokerError(BrokerCode.SECRET_DESTROYED, f"{name} version {record.version}")
    return record
