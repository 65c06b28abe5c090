"""A simulated agent's quote and verdict, made once for the tests that need one."""

from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import es256
from attestation.eventlog import EV_EVENT_TAG, EventLog, launch_event
from attestation.evidence import X25519, Binding, Role
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from attestation.verifier import NOT_COMPARED, NotCompared, VerifiedQuote, verify_quote
from simulator.machine import Machine

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
AGENT = es256.dump_public(ec.derive_private_key(13, ec.SECP256R1()).public_key())
CODE = b"c" * 48


def bound(role: Role = Role.AGENT) -> Binding:
    return Binding(
        role=role,
        tenant="acme",
        broker_id=b"b" * 32,
        nonce=b"n" * 32,
        identity_key=AGENT,
        suite=X25519,
        sealing_key=b"s" * 32,
        trust_file_digest=b"t" * 32,
    )


@cache
def machine() -> Machine:
    made = Machine.create(seed=4)
    made.clock.set(AT)
    return made


@cache
def verified(compared: str = "binding", role: Role = Role.AGENT) -> tuple[VerifiedQuote, EventLog]:
    """A simulated TD's quote, with one launch, verified against a Binding, against bytes, or against nothing."""
    td = machine().launch()
    digest, data = launch_event(CODE, "agent.py")
    td.extend(3, digest, event_type=EV_EVENT_TAG, data=data)
    raw = td.quote(bound(role).report_data)
    choices: dict[str, bytes | Binding | NotCompared] = {
        "binding": bound(role),
        "bytes": bound(role).report_data,
        "nothing": NOT_COMPARED,
    }
    quote = Quote.parse(raw)
    made = verify_quote(
        quote,
        machine().as_source().fetch(quote),
        report_data=choices[compared],
        roots=machine().roots,
        at=AT,
        accept=ANY_TCB,
    )
    return made, EventLog.parse(td.event_log())


@cache
def verdict(compared: str = "binding", role: Role = Role.AGENT) -> Verdict:
    quote, log = verified(compared, role)
    return Verdict.of(quote, event_log=log)
