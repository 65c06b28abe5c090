"""Keys for workloads, derived from the root key: the same workload gets the same key again, on any machine, after any
restart, and the broker keeps nothing of it.

Decides what a key depends on: the tenant's name for it, and either the workload that the policy says this agent is, or
its very measurements. The first stays when an approved update changes the code; the second is another key then. Who may
have one is the policy's decision (action Administer, operation `derive_key`); it travels as a released secret does:
entry first, then sealed to the key inside the verdict, then signed.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Final, final

from attestation.encoding import framed
from attestation.sealing import seal
from attestation.verdict import Verdict
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.ports import Clock, Transaction
from broker.reasons import codes_of, told
from broker.release import PERMIT_LIFE_S
from broker.rootkey.root import RootKey
from broker.sessions import Session
from broker.vault import checked_name
from broker.wire.derive import DERIVED_VERSION, DeriveRequest
from broker.wire.names import tenant_of
from broker.wire.release import ReleasePermit, ReleaseResponse, permit_digest
from broker.wire.tags import sealing_thumbprint
from policies.engine import decide
from policies.errors import Refused
from policies.model import Administer, Context
from policies.permit import Permit

OPERATION: Final = "derive_key"
_TAG: Final = b"cloister/workload-key/v1"


def derive_permitted(root: RootKey, permit: Permit, ground: tuple[str, ...]) -> bytes:
    """The key of the name in the permit, for this ground.

    Raises TypeError for a permit about anything but administering that name, or bound to nobody.
    """
    if permit.action != Administer.action or not permit.nonce:
        raise TypeError("the permit is about something else, or bound to nobody")
    return _key(root, permit.resource, ground)


def _key(root: RootKey, name: str, ground: tuple[str, ...]) -> bytes:
    """32 bytes for this name and ground, the same ones each time."""
    told = framed(_TAG, tenant_of(name).encode(), name.encode(), *(item.encode() for item in ground))
    return root.derive(f"workload-key/{hashlib.sha256(told).hexdigest()}")


@final
class DerivationDesk:
    """Derives, seals and signs."""

    def __init__(
        self, *, root: RootKey, audit: Audit, generation: Generation, identity: Identity, clock: Clock
    ) -> None:
        self._root = root
        self._audit = audit
        self._generation = generation
        self._identity = identity
        self._clock = clock

    async def derive(
        self,
        session: Session,
        name: str,
        request: DeriveRequest,
        *,
        source_ip: str | None = None,
        correlation_id: str = "",
    ) -> ReleaseResponse:
        """Raises BrokerError secret.name_invalid, key.workload_unmatched, generation.moved; Refused."""
        at = self._clock()
        checked_name(name)
        permit = await self._permit(session, name, at, source_ip, correlation_id)
        ground = _ground(permit, session.verdict, request.workload)
        key = sealing_thumbprint(session.verdict.suite, session.verdict.sealing_key)
        bound = permit.bind(
            broker_id=self._identity.broker_id.hex(),
            jkt=session.verdict.jkt,
            sealing_thumbprint=key.hex(),
            suite=session.verdict.suite,
            nonce=request.nonce.hex(),
        )
        statement = ReleasePermit(
            broker_id=self._identity.broker_id,
            subject=session.subject,
            jkt=session.verdict.jkt,
            sealing_key=key,
            suite=session.verdict.suite,
            name=name,
            version=DERIVED_VERSION,
            labels=(),
            policy=bound.policy,
            decision=bound.digest,
            nonce=request.nonce,
            issued_at_s=int(at.timestamp()),
            not_after_s=int(min(bound.not_after, at + timedelta(seconds=PERMIT_LIFE_S)).timestamp()),
        ).to_bytes()
        entry = self._entry(Kind.KEY_DERIVED, session, name, at, correlation_id, permit=bound, ground=ground)

        def still(tx: Transaction) -> None:
            self._generation.expect(tx, session.generation)

        _, receipt = await self._audit.record(entry, still)
        sealed = seal(session.verdict, derive_permitted(self._root, bound, ground), context=permit_digest(statement))
        return ReleaseResponse.sign(
            self._identity.key, sealed=sealed.blob, suite=sealed.suite, permit=statement, receipt=receipt
        )

    async def _permit(
        self, session: Session, name: str, at: datetime, source_ip: str | None, correlation_id: str
    ) -> Permit:
        action = Administer(name, OPERATION)
        try:
            return decide(session.bundle, session.verdict, action, context=Context(at=at, source_ip=source_ip))
        except Refused as error:
            entry = self._entry(Kind.KEY_REFUSED, session, name, at, correlation_id, error=error)
            await self._audit.record(entry, lambda _: None)
            raise

    def _entry(
        self,
        kind: Kind,
        session: Session,
        name: str,
        at: datetime,
        correlation_id: str,
        *,
        permit: Permit | None = None,
        ground: tuple[str, ...] = (),
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
            more={"ground": list(ground), **({"reasons": told(error)} if error else {})},
        )


def _ground(permit: Permit, verdict: Verdict, workload: str | None) -> tuple[str, ...]:
    """What the key depends on beside its name. Raises BrokerError key.workload_unmatched."""
    if workload is not None:
        if workload not in permit.workloads:
            detail = f"{workload[:64]!a} is none of {', '.join(permit.workloads) or 'no workload'}"
            raise BrokerError(BrokerCode.KEY_WORKLOAD, detail)
        return "workload", workload
    launches = tuple(launch.digest for launch in verdict.launches)
    # RTMR3 itself as well: it is in the quote, while a log may be withheld and names more than launches
    return "measurement", verdict.mr_td, *verdict.rtmrs, *launches
