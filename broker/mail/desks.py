"""The parts of the broker that deal with mail, put together.

Decides nothing: each part is made once, in the order in which they need each other.
"""

from dataclasses import dataclass
from typing import final

from broker.audit import Audit
from broker.generation import Generation
from broker.identity import Identity
from broker.mail.bell import Bell
from broker.mail.blobs import Blobs
from broker.mail.channels import Channels
from broker.mail.deadletters import DeadLetters
from broker.mail.drawing import Drawing
from broker.mail.edges import Edges
from broker.mail.labels import Ratchets
from broker.mail.leases import Leases
from broker.mail.mailboxes import Mailboxes
from broker.mail.routing import Router
from broker.mail.vouchers import Vouchers
from broker.ports import Clock, Store
from broker.ports.mail import Quota
from broker.sessions import Sessions


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Everything that takes mail in, keeps it or hands it out."""

    router: Router
    channels: Channels
    mailboxes: Mailboxes
    leases: Leases
    drawing: Drawing
    dead: DeadLetters
    blobs: Blobs


def assemble(
    *,
    store: Store,
    audit: Audit,
    edges: Edges,
    generation: Generation,
    sessions: Sessions,
    identity: Identity,
    labels: Ratchets,
    bell: Bell,
    clock: Clock,
    quota: Quota,
) -> Mail:
    """From the parts that the rest of the broker shares."""
    vouchers = Vouchers(sessions)
    dead = DeadLetters(
        store=store, audit=audit, generation=generation, identity=identity, bell=bell, clock=clock, quota=quota
    )
    leases = Leases(
        store=store,
        audit=audit,
        edges=edges,
        generation=generation,
        sessions=sessions,
        labels=labels,
        dead=dead,
        bell=bell,
        clock=clock,
    )
    router = Router(
        store=store,
        audit=audit,
        edges=edges,
        generation=generation,
        labels=labels,
        vouchers=vouchers,
        dead=dead,
        bell=bell,
        clock=clock,
    )
    mailboxes = Mailboxes(
        store=store,
        audit=audit,
        generation=generation,
        sessions=sessions,
        identity=identity,
        leases=leases,
        dead=dead,
        bell=bell,
        clock=clock,
        most=quota.mailboxes,
    )
    return Mail(
        router=router,
        channels=Channels(
            store=store,
            audit=audit,
            edges=edges,
            generation=generation,
            labels=labels,
            vouchers=vouchers,
            dead=dead,
            bell=bell,
            clock=clock,
        ),
        mailboxes=mailboxes,
        drawing=Drawing(store=store, leases=leases, mailboxes=mailboxes, bell=bell, clock=clock),
        leases=leases,
        dead=dead,
        blobs=Blobs(
            store=store,
            audit=audit,
            generation=generation,
            labels=labels,
            router=router,
            leases=leases,
            clock=clock,
            quota=quota,
        ),
    )
