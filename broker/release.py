"""Release: permit → durable entry → sealed to the key inside the verdict → signed.

Decides that order and nothing else: the policy decides who may have what, the vault how it rests. The secret is opened
only after the entry is durable, inside this function, and leaves it sealed; nothing here returns, logs or keeps a
plaintext. The agent verifies the signature before it opens, because HPKE's base mode names no sender.
"""

import logging
from datetime import datetime, timedelta
from typing import Final, final

from attestation.sealing import seal
from attestation.verdict import Verdict
from broker.abreast import abreast
from broker.audit import Audit, Entry, Kind
from broker.generation import Generation
from broker.identity import Identity
from broker.judging import released_by
from broker.leasing import take
from broker.mail.labels import Ratchets
from broker.points import reached
from broker.ports import Clock, SecretRecord, Store, Transaction
from broker.ports.releases import FactKind, Released, ground_of
from broker.reasons import codes_of, told
from broker.sessions import Session
from broker.vault import Vault, checked_name, find
from broker.wire.release import ReleasePermit, ReleaseRequest, ReleaseResponse, permit_digest
from broker.wire.tags import sealing_thumbprint
from policies.engine import decide
from policies.errors import Refused
from policies.model import Context, ReleaseSecret
from policies.permit import Permit

PERMIT_LIFE_S: Final = 60
logger = logging.getLogger("cloister.broker.release")


@final
class ReleaseDesk:
    """Releases secrets to agents."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        audit: Audit,
        generation: Generation,
        identity: Identity,
        labels: Ratchets,
        clock: Clock,
    ) -> None:
        self._store = store
        self._vault = vault
        self._audit = audit
        self._generation = generation
        self._identity = identity
        self._labels = labels
        self._clock = clock

    async def release(
        self,
        session: Session,
        name: str,
        request: ReleaseRequest,
        *,
        source_ip: str | None = None,
        correlation_id: str = "",
    ) -> ReleaseResponse:
        """Raises BrokerError secret.*, generation.moved; Refused. A refused agent does not learn what exists."""
        at = self._clock()
        record = self._store.read(lambda tx: tx.secrets.get(checked_name(name), request.version))
        permit = await self._permit(session, name, record, request, at, source_ip, correlation_id)
        record = self._store.read(lambda tx: find(tx, name, request.version)) if record is None else record
        await abreast()
        sealing_key = sealing_thumbprint(session.verdict.suite, session.verdict.sealing_key)
        bound = permit.bind(
            broker_id=self._identity.broker_id.hex(),
            jkt=session.verdict.jkt,
            sealing_thumbprint=sealing_key.hex(),
            suite=session.verdict.suite,
            nonce=request.nonce.hex(),
            version=record.version,
        )
        statement = self._statement(session, bound, record, request, sealing_key, at).to_bytes()
        reached("release.permitted")
        entry = self._entry(
            Kind.SECRET_RELEASED,
            session,
            name,
            at,
            correlation_id,
            version=record.version,
            labels=record.labels,
            source_ip=source_ip,
            permit=bound,
        )
        current, receipt = await self._audit.record(
            entry, lambda tx: self._still(tx, session, bound, record, request.version, at)
        )
        reached("release.recorded")
        await abreast()
        sealed = seal(session.verdict, self._vault.open_permitted(bound, current), context=permit_digest(statement))
        await abreast()
        answer = ReleaseResponse.sign(
            self._identity.key, sealed=sealed.blob, suite=sealed.suite, permit=statement, receipt=receipt
        )
        reached("release.sealed")
        return answer

    def _still(
        self, tx: Transaction, session: Session, bound: Permit, record: SecretRecord, wanted: int | None, at: datetime
    ) -> SecretRecord:
        """The record as it is in the transaction of the entry, noted for those who ask who got what.

        Raises BrokerError generation.moved, secret.*, when what was decided no longer holds.
        """
        self._generation.expect(tx, session.generation)
        found = find(tx, record.name, wanted)
        if found.version != record.version:  # a newer one came meanwhile, about which nothing was decided
            found = find(tx, record.name, record.version)
        evidence = session.record.evidence.hex()
        note_release(
            tx, bound, session.verdict, subject=session.subject, evidence=evidence, version=found.version, at=at
        )
        self._labels.raise_in(tx, session, found.labels, why=found.name, at=at)
        return found

    async def _permit(
        self,
        session: Session,
        name: str,
        record: SecretRecord | None,
        request: ReleaseRequest,
        at: datetime,
        source_ip: str | None,
        correlation_id: str,
    ) -> Permit:
        version = record.version if record else request.version or 0
        action = ReleaseSecret(name, version, frozenset(record.labels if record else ()))
        try:
            return decide(session.bundle, session.verdict, action, context=Context(at=at, source_ip=source_ip))
        except Refused as error:
            entry = self._entry(
                Kind.SECRET_REFUSED,
                session,
                name,
                at,
                correlation_id,
                version=version,
                labels=record.labels if record else (),
                source_ip=source_ip,
                error=error,
            )
            await self._audit.record(entry, lambda _: None)
            logger.warning(
                "secret.refused",
                extra={
                    "subject": session.subject,
                    "resource": name,
                    "reasons": told(error),
                    "correlation_id": correlation_id,
                },
            )
            raise

    def _statement(
        self,
        session: Session,
        bound: Permit,
        record: SecretRecord,
        request: ReleaseRequest,
        sealing_key: bytes,
        at: datetime,
    ) -> ReleasePermit:
        end = min(bound.not_after, at + timedelta(seconds=PERMIT_LIFE_S))
        return ReleasePermit(
            broker_id=self._identity.broker_id,
            subject=session.subject,
            jkt=session.verdict.jkt,
            sealing_key=sealing_key,
            suite=session.verdict.suite,
            name=record.name,
            version=record.version,
            labels=record.labels,
            policy=bound.policy,
            decision=bound.digest,
            nonce=request.nonce,
            issued_at_s=int(at.timestamp()),
            not_after_s=int(end.timestamp()),
        )

    def _entry(
        self,
        kind: Kind,
        session: Session,
        name: str,
        at: datetime,
        correlation_id: str,
        *,
        version: int,
        labels: tuple[str, ...],
        source_ip: str | None,
        permit: Permit | None = None,
        error: Refused | None = None,
    ) -> Entry:
        return Entry(
            kind=kind,
            at=at,
            subject=session.subject,
            tenant=session.record.tenant,
            resource=name,
            codes=codes_of(error) if error else (),
            policy=session.bundle.digest,
            evidence=session.record.evidence.hex(),
            collateral=session.record.collateral,
            permit=permit.digest.hex() if permit else "",
            generation=session.generation,
            correlation_id=correlation_id,
            more={
                **({"reasons": told(error)} if error else {}),
                **released_by(
                    session.verdict,
                    version=version,
                    labels=labels,
                    nonce=permit.nonce if permit else "",
                    source_ip=source_ip,
                ),
            },
        )


def note_release(
    tx: Transaction, permit: Permit, verdict: Verdict, *, subject: str, evidence: str, version: int, at: datetime
) -> None:
    """Under a lease, where the secret is lent; so that it can be found by who got what. The entry that is about to be
    appended is the record of it. Raises BrokerError secret.lease_ended.
    """
    take(tx, permit.resource, version, subject, int(at.timestamp()))
    launches = (launch.digest for launch in verdict.launches)
    facts: list[tuple[FactKind, str]] = [("workload", workload) for workload in permit.workloads]
    facts += [("measurement", value) for value in (verdict.mr_td, *verdict.rtmrs, *launches)]
    facts += [("platform", value) for value in (verdict.ppid, verdict.piid, verdict.fmspc) if value]
    released = Released(
        entry=tx.log.size(),
        at_ms=int(at.timestamp() * 1000),
        name=permit.resource,
        version=version,
        subject=subject,
        ground=ground_of(evidence, permit.policy, facts),
        via=permit.via,
    )
    tx.releases.record(released, facts)
