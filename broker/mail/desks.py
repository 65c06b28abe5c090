"""The parts of the broker that deal with mail, put together.

Decides nothing: each part is made once, in the order in which they need each other, and is told no more than it needs.
"""

from dataclasses import dataclass
from typing import final

from broker.foundation import Records
from broker.mail.acceptance import Acceptances
from broker.mail.bell import Bell
from broker.mail.blobs import Blobs
from broker.mail.channels import Channels
from broker.mail.deadletters import DeadLetters
from broker.mail.drawing import Drawing
from broker.mail.edges import Edges
from broker.mail.forged import Forged
from broker.mail.labels import Ratchets
from broker.mail.leases import Leases
from broker.mail.mailboxes import Mailboxes
from broker.mail.mailkeys import KeyDesk
from broker.mail.routing import Router
from broker.mail.states import StateDesk
from broker.mail.topics import TopicDesk
from broker.mail.vouchers import Vouchers
from broker.ports.mail import Quota
from broker.sessions import Sessions
from broker.vault import Vault


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Everything that takes mail in, keeps it or hands it out."""

    labels: Ratchets
    bell: Bell
    router: Router
    channels: Channels
    mailboxes: Mailboxes
    leases: Leases
    drawing: Drawing
    dead: DeadLetters
    blobs: Blobs
    keys: KeyDesk
    states: StateDesk
    topics: TopicDesk
    forged: Forged


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What nearly every part of mail works with."""

    records: Records
    sessions: Sessions
    quota: Quota
    edges: Edges
    labels: Ratchets
    accepted: Acceptances
    bell: Bell
    dead: DeadLetters
    vouchers: Vouchers
    forged: Forged


def assemble(records: Records, *, sessions: Sessions, vault: Vault, quota: Quota) -> Mail:
    """From what the whole broker stands on. What was decided about senders and receivers is forgotten at every rise."""
    common = _common(records, sessions, quota)
    records.generation.on_change(common.edges.forget)
    leases, router, keys = _leases(common), _router(common), _keys(common, vault)
    topics = _topics(common, router, keys)
    return Mail(
        labels=common.labels,
        bell=common.bell,
        router=router,
        channels=_channels(common, topics),
        mailboxes=_mailboxes(common, leases),
        leases=leases,
        drawing=_drawing(common, leases),
        dead=common.dead,
        blobs=_blobs(common, router, leases),
        keys=keys,
        states=_states(common),
        topics=topics,
        forged=common.forged,
    )


def _common(records: Records, sessions: Sessions, quota: Quota) -> _Common:
    edges, bell = Edges(records.store), Bell()
    return _Common(
        records=records,
        sessions=sessions,
        quota=quota,
        edges=edges,
        labels=Ratchets(store=records.store, audit=records.audit, edges=edges),
        accepted=Acceptances(store=records.store, identity=records.identity),
        bell=bell,
        dead=DeadLetters(
            store=records.store,
            audit=records.audit,
            generation=records.generation,
            identity=records.identity,
            bell=bell,
            clock=records.clock,
            quota=quota,
        ),
        vouchers=Vouchers(sessions),
        forged=Forged(store=records.store, audit=records.audit),
    )


def _leases(common: _Common) -> Leases:
    return Leases(
        store=common.records.store,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        sessions=common.sessions,
        labels=common.labels,
        dead=common.dead,
        forged=common.forged,
        bell=common.bell,
        clock=common.records.clock,
    )


def _router(common: _Common) -> Router:
    return Router(
        store=common.records.store,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        labels=common.labels,
        vouchers=common.vouchers,
        dead=common.dead,
        bell=common.bell,
        clock=common.records.clock,
    )


def _channels(common: _Common, topics: TopicDesk) -> Channels:
    return Channels(
        store=common.records.store,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        labels=common.labels,
        vouchers=common.vouchers,
        dead=common.dead,
        topics=topics,
        bell=common.bell,
        clock=common.records.clock,
    )


def _mailboxes(common: _Common, leases: Leases) -> Mailboxes:
    return Mailboxes(
        store=common.records.store,
        audit=common.records.audit,
        generation=common.records.generation,
        sessions=common.sessions,
        accepted=common.accepted,
        leases=leases,
        dead=common.dead,
        bell=common.bell,
        clock=common.records.clock,
        quota=common.quota,
    )


def _drawing(common: _Common, leases: Leases) -> Drawing:
    return Drawing(
        store=common.records.store,
        leases=leases,
        accepted=common.accepted,
        bell=common.bell,
        clock=common.records.clock,
    )


def _blobs(common: _Common, router: Router, leases: Leases) -> Blobs:
    return Blobs(
        store=common.records.store,
        audit=common.records.audit,
        generation=common.records.generation,
        labels=common.labels,
        router=router,
        leases=leases,
        clock=common.records.clock,
        quota=common.quota,
    )


def _keys(common: _Common, vault: Vault) -> KeyDesk:
    return KeyDesk(
        store=common.records.store,
        vault=vault,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        identity=common.records.identity,
        clock=common.records.clock,
        quota=common.quota,
    )


def _states(common: _Common) -> StateDesk:
    return StateDesk(
        store=common.records.store,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        identity=common.records.identity,
        labels=common.labels,
        clock=common.records.clock,
    )


def _topics(common: _Common, router: Router, keys: KeyDesk) -> TopicDesk:
    return TopicDesk(
        store=common.records.store,
        audit=common.records.audit,
        edges=common.edges,
        generation=common.records.generation,
        sessions=common.sessions,
        identity=common.records.identity,
        accepted=common.accepted,
        labels=common.labels,
        keys=keys,
        router=router,
        forged=common.forged,
        bell=common.bell,
        clock=common.records.clock,
        quota=common.quota,
    )
