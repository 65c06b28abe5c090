"""What administrators may do: write secrets and never read them, revoke agents, reload policies, look around.

Decides that every act is in the log with the key that did it, in the transaction that did it. No function here returns
or takes out a plaintext; who counts as an administrator is decided by configuration, that he is there by dpop.py.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from broker.audit import Audit, Entry, Kind
from broker.bundles import Bundles
from broker.collateral import CollateralCache
from broker.config import Admin
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.leasing import TERMS, terms_of
from broker.mail.labels import checked_labels
from broker.ports import AgentRecord, AgentState, Clock, SecretRecord, Store, Transaction
from broker.rights import Act
from broker.second import Agreement, SecondPerson
from broker.sessions import Sessions
from broker.vault import Vault, checked_name, destroy
from broker.wire.bodies import PutSecretRequest, SecretInfo
from broker.wire.names import is_resource, tenant_of
from broker.wire.terms import SecretTerms
from policies.bundle import Bundle
from policies.errors import BundleError

MAX_PAGE: Final = 1000


@final
class Administration:
    """The administrators' use-cases. `reload` reads the bundles anew."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        audit: Audit,
        bundles: Bundles,
        generation: Generation,
        sessions: Sessions,
        collateral: CollateralCache,
        clock: Clock,
        reload: Callable[[], Sequence[Bundle]],
        second: SecondPerson,
    ) -> None:
        self._store = store
        self._vault = vault
        self._audit = audit
        self._bundles = bundles
        self._generation = generation
        self._sessions = sessions
        self._collateral = collateral
        self._clock = clock
        self._reload = reload
        self._second = second

    async def put_secret(
        self, admin: Admin, name: str, request: PutSecretRequest, *, rotate: bool = False, correlation_id: str = ""
    ) -> SecretInfo:
        """Store the next version; `rotate` wants an earlier one.

        Raises BrokerError admin.*, secret.name_invalid, secret.unknown, attestation.tenant_unknown; WireError
        body.field_invalid.
        """
        at, act = self._clock(), Act.SECRET_ROTATE if rotate else Act.SECRET_PUT
        admin.require(act, tenant_of(checked_name(name)))
        self._bundles.of(tenant_of(name))
        known = self._store.read(lambda tx: tx.secrets.get(name)) is not None
        if rotate and not known:
            raise BrokerError(BrokerCode.SECRET_UNKNOWN, name)
        labels = None if rotate and not request.labels else checked_labels(request.labels)
        about = json.dumps(request.to_dict(), sort_keys=True).encode()
        if known and (not rotate or request != PutSecretRequest()):  # neither way is a way around the other
            act = self._second.strictest(act, Act.SECRET_PUT, Act.SECRET_ROTATE)
        agreed = await self._second.agreed(admin, act, name, about, bytes([rotate]), correlation_id=correlation_id)
        entry = self._entry(Kind.SECRET_PUT, admin, name, correlation_id, agreed, rotated=int(rotate))

        def work(tx: Transaction) -> SecretRecord:
            agreed.take(tx)
            if request.terms is not None:
                tx.marks.put(TERMS + name, request.terms.to_text())
            return self._vault.put(tx, name, request.value, labels=labels, at_s=int(at.timestamp()))

        record, _ = await self._audit.record(entry, work)
        return self._store.read(lambda tx: info(record, terms_of(tx, name)))

    async def destroy_secret(self, admin: Admin, name: str, version: int | None, *, correlation_id: str = "") -> int:
        """Wipe one version or all; how many there were. Raises BrokerError admin.*, secret.unknown."""
        admin.require(Act.SECRET_DESTROY, tenant_of(checked_name(name)))
        if self._store.read(lambda tx: tx.secrets.get(name, version)) is None:
            raise BrokerError(BrokerCode.SECRET_UNKNOWN, name)
        about = str(version or 0).encode()
        agreed = await self._second.agreed(admin, Act.SECRET_DESTROY, name, about, correlation_id=correlation_id)
        entry = self._entry(Kind.SECRET_DESTROYED, admin, name, correlation_id, agreed, version=version or 0)

        def work(tx: Transaction) -> int:
            agreed.take(tx)
            return destroy(tx, name, version)

        wiped, _ = await self._audit.record(entry, work)
        return wiped

    def secrets(self, *, tenant: str | None, after: str, limit: int) -> list[SecretInfo]:
        rows = self._store.read(lambda tx: tx.secrets.page(tenant=tenant, after=after, limit=min(limit, MAX_PAGE)))
        shown = [row for row in rows if is_resource(row.name)]  # kept keys lie there too
        return self._store.read(lambda tx: [info(row, terms_of(tx, row.name)) for row in shown])

    def agents(self, *, tenant: str | None, after: str, limit: int) -> Sequence[AgentRecord]:
        return self._store.read(lambda tx: tx.agents.page(tenant=tenant, after=after, limit=min(limit, MAX_PAGE)))

    def agent(self, subject: str) -> AgentRecord:
        """Raises BrokerError agent.unknown."""
        record = self._store.read(lambda tx: tx.agents.get(subject))
        if record is None:
            raise BrokerError(BrokerCode.AGENT_UNKNOWN, f"{subject[:128]!a}")
        return record

    async def revoke(self, admin: Admin, subject: str, why: str) -> None:
        """Raises BrokerError admin.*, agent.unknown."""
        admin.require(Act.AGENT_REVOKE, self.agent(subject).tenant)
        agreed = await self._second.agreed(admin, Act.AGENT_REVOKE, subject)
        at = self._clock()
        await self._sessions.revoke(subject, why=why, by=admin.jkt, at=at, also=agreed.take, second=agreed.by)

    async def reload_policies(self, admin: Admin, *, correlation_id: str = "") -> dict[str, str]:
        """Read every bundle anew; tenant → digest. All are checked before one is taken.

        Raises BrokerError admin.*, config.invalid.
        """
        admin.require_everywhere(Act.POLICY_RELOAD)
        try:
            fresh = self._reload()
        except BundleError as error:  # whoever may reload them may read what is wrong with them
            found = tuple(str(one.code) for one in error.all)
            shown = "\n".join(map(str, error.all))
            raise BrokerError(BrokerCode.CONFIG_INVALID, str(error), codes=found, shown=shown) from None
        for bundle in fresh:
            self._bundles.check_successor(bundle)
        changed = [bundle for bundle in fresh if bundle.digest != self._bundles.of(bundle.tenant).digest]
        if changed:
            about = [bundle.digest.encode() for bundle in changed]
            agreed = await self._second.agreed(admin, Act.POLICY_RELOAD, "", *about, correlation_id=correlation_id)
            entry = self._entry(
                Kind.GENERATION_CHANGED,
                admin,
                "",
                correlation_id,
                agreed,
                why="policies",
                bundles=[f"{bundle.tenant} {bundle.version} {bundle.digest}" for bundle in changed],
            )

            def taken() -> None:
                for bundle in changed:
                    self._bundles.replace(bundle)

            await self._generation.note_policies(changed, at=self._clock(), entry=entry, also=agreed.take, then=taken)
        return {bundle.tenant: bundle.digest for bundle in self._bundles.all}

    async def agree(self, admin: Admin, act: Act, resource: str = "", *about: bytes, correlation_id: str = "") -> str:
        """For acts whose use-cases stand elsewhere: used up before the act; the first one's key, or empty.

        Raises BrokerError admin.*
        """
        admin.require(act, tenant_of(resource) if resource else "")
        agreed = await self._second.agreed(admin, act, resource, *about, correlation_id=correlation_id)
        if agreed.mark:
            await self._store.transact(agreed.take)
        return agreed.by

    def proposals(self) -> list[dict[str, Any]]:
        """What waits for a second administrator."""
        return self._second.open()

    async def refresh_collateral(self) -> bool:
        """Ask the collateral source now; whether anything changed."""
        return await self._collateral.refresh()

    def overview(self) -> dict[str, Any]:
        """Numbers for `broker status` and the console."""
        found = self._store.read(lambda tx: tx.agents.counts())
        counts = {str(state): found.get(state, 0) for state in AgentState}
        return {
            "generation": self._generation.current,
            "agents": counts,
            "log_size": self._audit.head().size,
            "policies": {bundle.tenant: bundle.digest for bundle in self._bundles.all},
            "collateral": self._collateral.families,
        }

    def _entry(
        self,
        kind: Kind,
        admin: Admin,
        resource: str,
        correlation_id: str,
        agreed: Agreement,
        **more: str | int | list[str],
    ) -> Entry:
        return Entry(
            kind=kind,
            at=self._clock(),
            subject=f"admin/{admin.name}",
            tenant=tenant_of(resource) if resource else "",
            resource=resource,
            generation=self._generation.current,
            correlation_id=correlation_id,
            more={"by": admin.jkt, "second": agreed.by, **more},
        )


def info(record: SecretRecord, terms: SecretTerms | None = None) -> SecretInfo:
    return SecretInfo(
        name=record.name,
        version=record.version,
        labels=record.labels,
        created_at_s=record.created_at_s,
        destroyed=record.destroyed,
        terms=terms,
    )
