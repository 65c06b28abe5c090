"""The two-person rule: an act that is marked is done when a second administrator asks for exactly the same.

Decides that nobody approves what he has not said himself: there is no list of requests to wave through. The first
request is noted under a MAC over the act, what it is about and its whole content, and refused with
`admin.second_person`; the same request under another key and name within the hour is carried out, and uses the note up
in the transaction of the act. No content is kept, so a secret that is put this way rests nowhere in between.
"""

import hashlib
import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, final

from attestation.encoding import framed, strict_json
from broker.audit import Audit, Entry, Kind
from broker.errors import BrokerCode, BrokerError
from broker.ports import Clock, Store, Transaction
from broker.rights import Act, Admin
from broker.wire.names import tenant_of

LIFE_S: Final = 3600
MARK: Final = "proposal/"
_TAG: Final = b"cloister/proposal/v1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two administrators said the same, or the act needs one alone. `by` is the key of the first, or empty."""

    mark: str = ""
    by: str = ""

    def take(self, tx: Transaction) -> None:
        """Use it up, in the transaction of the act. Raises BrokerError admin.second_person when somebody else did."""
        if self.mark:
            if tx.marks.get(self.mark) is None:
                raise BrokerError(BrokerCode.ADMIN_SECOND, "that request was carried out, or has ended")
            tx.marks.drop(self.mark)


@final
class SecondPerson:
    """Notes of first requests. `key` is derived from the root key."""

    def __init__(self, *, store: Store, audit: Audit, key: bytes, marked: Collection[str], clock: Clock) -> None:
        self._store = store
        self._audit = audit
        self._key = key
        self._marked = frozenset(marked)
        self._clock = clock

    def strictest(self, *acts: Act) -> Act:
        """The first of them that is marked, for a request that each of them describes; else the first."""
        return next((act for act in acts if act in self._marked), acts[0])

    async def agreed(self, admin: Admin, act: Act, resource: str, *about: bytes, correlation_id: str = "") -> Agreement:
        """Raises BrokerError admin.second_person when this is the first request, which is noted then."""
        if act not in self._marked:
            return Agreement()
        now_s = int(self._clock().timestamp())
        content = framed(_TAG, act.encode(), resource.encode(), *about)
        name = MARK + hmac.digest(self._key, content, hashlib.sha256).hex()
        known = _alive(self._store.read(lambda tx: tx.marks.get(name)), now_s)
        if known is None:
            await self._note(admin, act, resource, name, now_s, correlation_id)
        elif known["by"] != admin.jkt and known["name"] != admin.name:
            return Agreement(mark=name, by=str(known["by"]))
        raise BrokerError(BrokerCode.ADMIN_SECOND, f"{act} {resource}: noted for {admin.name}")

    async def _note(self, admin: Admin, act: Act, resource: str, name: str, now_s: int, correlation_id: str) -> None:
        value = json.dumps({"by": admin.jkt, "name": admin.name, "act": act, "resource": resource, "at_s": now_s})

        def work(tx: Transaction) -> None:
            for old, text in tx.marks.under(MARK).items():
                if _alive(text, now_s) is None:
                    tx.marks.drop(MARK + old)
            tx.marks.put(name, value)

        entry = Entry(
            kind=Kind.ADMIN_PROPOSED,
            at=self._clock(),
            subject=f"admin/{admin.name}",
            tenant=tenant_of(resource) if "/" in resource else "",
            resource=resource,
            codes=(BrokerCode.ADMIN_SECOND,),
            correlation_id=correlation_id,
            more={"by": admin.jkt, "act": str(act)},
        )
        await self._audit.record(entry, work)

    def open(self) -> list[dict[str, Any]]:
        """First requests that wait for a second person: act, what it is about, who asked, when; never its content."""
        now_s = int(self._clock().timestamp())
        found = [_alive(text, now_s) for text in self._store.read(lambda tx: tx.marks.under(MARK)).values()]
        return [item | {"expires_at_s": item["at_s"] + LIFE_S} for item in found if item is not None]


def _alive(text: str | None, now_s: int) -> dict[str, Any] | None:
    known: dict[str, Any] | None = None if text is None else strict_json(text)
    return known if known is not None and 0 <= now_s - known["at_s"] <= LIFE_S else None
