"""A secret for a guest: permit → durable entry → encrypted to the key in REPORT_DATA.

Decides that order, which is release.py's; here the key is a JWK and nobody signs the answer, because the protocol has
no place for it. The policy decides, by a rule that names `via == "kbs"`.
"""

import base64
import logging
from datetime import datetime
from typing import Final, final

from attestation.encoding import b64url
from attestation.records import VIA_KBS as VIA
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import Judged, released_by
from broker.kbs.guests import Caller, Guest, context_of
from broker.ports import SecretRecord, Store, Transaction
from broker.reasons import codes_of, told
from broker.release import note_release
from broker.vault import Vault, checked_name, find
from broker.wire.names import tenant_of
from policies.engine import decide
from policies.errors import Refused
from policies.model import ReleaseSecret
from policies.permit import Permit

SEGMENTS: Final = 3
logger = logging.getLogger("cloister.broker.kbs")


def resource_name(name: str) -> str:
    """The name, if it has the protocol's three segments. Raises BrokerError secret.name_invalid."""
    if name.count("/") != SEGMENTS - 1:
        raise BrokerError(BrokerCode.SECRET_NAME, "three segments over KBS")
    return checked_name(name)


@final
class Resources:
    """Encrypts secrets to guests."""

    def __init__(self, *, store: Store, vault: Vault, audit: Audit, generation: Generation, identity: Identity) -> None:
        self._store = store
        self._vault = vault
        self._audit = audit
        self._generation = generation
        self._identity = identity

    async def release(self, guest: Guest, name: str, caller: Caller, at: datetime) -> dict[str, str]:
        """Raises BrokerError secret.*, generation.moved, policy.refused; Refused."""
        record = self._store.read(lambda tx: tx.secrets.get(name))
        permit = await self._permit(guest, name, record, caller, at)
        if record is None:
            record = self._store.read(lambda tx: find(tx, name, None))
        bound = permit.bind(
            broker_id=self._identity.broker_id.hex(),
            jkt=b64url(guest.key.thumbprint),
            sealing_thumbprint=guest.key.thumbprint.hex(),
            suite=guest.key.alg,
            nonce=base64.b64decode(guest.ticket.nonce).hex(),
            version=record.version,
        )
        version = record.version

        def still(tx: Transaction) -> SecretRecord:
            self._generation.expect(tx, guest.generation)
            find(tx, name, None)
            found = find(tx, name, version)
            evidence, judged = guest.ticket.evidence.hex(), guest.admitted[tenant_of(name)].verdict
            note_release(tx, bound, judged, subject=guest.subject, evidence=evidence, version=version, at=at)
            return found

        entry = self._entry(Kind.SECRET_RELEASED, guest, name, version, caller, at, labels=record.labels, permit=bound)
        current, _ = await self._audit.record(entry, still)
        return guest.key.encrypt(self._vault.open_permitted(bound, current))

    async def _permit(
        self, guest: Guest, name: str, record: SecretRecord | None, caller: Caller, at: datetime
    ) -> Permit:
        version = record.version if record else 0
        action = ReleaseSecret(name, version, frozenset(record.labels if record else ()))
        error: Refused | BrokerError
        judged = guest.admitted.get(tenant_of(name))
        try:
            if judged is None:
                raise BrokerError(BrokerCode.POLICY_REFUSED, f"tenant {tenant_of(name)} did not admit the guest")
            return decide(judged.bundle, judged.verdict, action, context=context_of(caller, at))
        except (Refused, BrokerError) as refusal:
            error = refusal
        labels = record.labels if record else ()
        entry = self._entry(Kind.SECRET_REFUSED, guest, name, version, caller, at, labels=labels, error=error)
        await self._audit.record(entry, lambda _: None)
        logger.warning(
            "secret.refused",
            extra={"subject": guest.subject, "resource": name, "reasons": told(error), "via": VIA},
        )
        raise error

    def _entry(
        self,
        kind: Kind,
        guest: Guest,
        name: str,
        version: int,
        caller: Caller,
        at: datetime,
        *,
        labels: tuple[str, ...] = (),
        permit: Permit | None = None,
        error: Refused | BrokerError | None = None,
    ) -> Entry:
        judged = guest.admitted.get(tenant_of(name))
        return Entry(
            kind=kind,
            at=at,
            subject=guest.subject,
            tenant=tenant_of(name) if judged else "",
            resource=name,
            codes=codes_of(error) if error else (),
            policy=judged.bundle.digest if judged else "",
            evidence=guest.ticket.evidence.hex(),
            collateral=judged.verdict.collateral_digest if judged else "",
            permit=permit.digest.hex() if permit else "",
            generation=guest.generation,
            correlation_id=caller.correlation_id,
            more={
                "via": VIA,
                **({"reasons": told(error)} if error else {}),
                **(self._about(judged, version, labels, permit, caller) if judged else {}),
            },
        )

    @staticmethod
    def _about(
        judged: Judged, version: int, labels: tuple[str, ...], permit: Permit | None, caller: Caller
    ) -> dict[str, str | int | list[str]]:
        nonce = permit.nonce if permit else ""
        return released_by(judged.verdict, version=version, labels=labels, nonce=nonce, source_ip=caller.source_ip)
