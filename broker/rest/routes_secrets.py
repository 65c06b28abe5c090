"""Endpoints around secrets: who got what, leases, and keys that are derived for workloads.

Each handler is a translation of a few lines; what it calls decides everything else.
"""

import json
from dataclasses import asdict
from typing import Any, Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.errors import BrokerCode, BrokerError
from broker.ports.releases import FACTS, Lease, Released, rests_on
from broker.rights import Act
from broker.wire.derive import DeriveRequest
from broker.wire.release import ReleaseResponse
from broker.wire.terms import LeaseEnd

MAX_PAGE: Final = 1000


async def derive_key(call: Call) -> Answer:
    """A key of the asking workload's own, sealed to it."""
    wanted = call.read(DeriveRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.derivation.derive(
            session, call.name, wanted, source_ip=call.source_ip, correlation_id=call.correlation_id
        ),
    )


async def list_releases(call: Call) -> Answer:
    """Who got what: by ?secret=, ?subject=, ?workload=, ?measurement= or ?platform=, or several of them."""
    tenant = call.administrator.scope(Act.RELEASE_LIST, call.text("tenant"))
    asked = [(kind, text) for kind in FACTS if (text := call.text(kind)) is not None]
    if len(asked) > 1:
        raise BrokerError(BrokerCode.RELEASE_QUERY, "one of workload, measurement and platform at a time")
    after = call.text("after")
    found = call.broker.store.read(
        lambda tx: [
            (item, tx.releases.facts(item.ground))
            for item in tx.releases.page(
                tenant=tenant,
                name=call.text("secret"),
                subject=call.text("subject"),
                fact=asked[0] if asked else None,
                after=-1 if after is None else call.number("after", 0),
                limit=min(call.number("limit", 100), MAX_PAGE),
            )
        ]
    )
    return {"releases": [_release_dict(item, facts) for item, facts in found]}


def _release_dict(item: Released, facts: Any) -> dict[str, Any]:
    told: dict[str, list[str]] = {f"{kind}s": [value for of, value in facts if of == kind] for kind in FACTS}
    evidence, policy, _ = item.ground.split("/")
    if not rests_on(item.ground, facts):
        raise BrokerError(BrokerCode.STORE_ROW_FORGED, f"what release {item.entry} rested on; its entry is in the log")
    return {
        "entry": item.entry,
        "at_ms": item.at_ms,
        "name": item.name,
        "version": item.version,
        "subject": item.subject,
        "via": item.via,
        "evidence": evidence,
        "policy": policy,
        **told,
    }


async def list_leases(call: Call) -> Answer:
    """Leases that have not ended."""
    found = call.broker.leasing.page(
        tenant=call.administrator.scope(Act.SECRET_LIST, call.text("tenant")),
        after=call.text("after") or "",
        limit=min(call.number("limit", 100), MAX_PAGE),
    )
    return {"leases": [_lease_dict(lease) for lease in found]}


async def end_lease(call: Call) -> Answer:
    """End a lease now: no release again, and a rotation."""
    wanted = call.read(LeaseEnd.from_dict)
    admin, by = call.administrator, call.correlation_id
    about = json.dumps(wanted.to_dict(), sort_keys=True).encode()
    second = await call.broker.administration.agree(admin, Act.LEASE_END, wanted.name, about, correlation_id=by)
    ended = await call.broker.leasing.end(admin, wanted, second=second, correlation_id=by)
    return _lease_dict(ended)


def _lease_dict(lease: Lease) -> dict[str, Any]:
    return asdict(lease)


_KEY: Final = "/v1/keys/{name:path}"
SECRET_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row(f"POST {_KEY}:derive", derive_key, Door.AGENT, DeriveRequest, ReleaseResponse),
    row(
        "GET /v1/releases",
        list_releases,
        Door.ADMIN,
        act=Act.RELEASE_LIST,
        query="tenant secret subject workload measurement platform after:int limit:int",
    ),
    row("GET /v1/leases", list_leases, Door.ADMIN, act=Act.SECRET_LIST, query="tenant after limit:int"),
    row("POST /v1/leases:end", end_lease, Door.ADMIN, LeaseEnd, changes=True, act=Act.LEASE_END),
)
