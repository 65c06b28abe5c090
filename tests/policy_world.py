"""What the policy tests share: starters with edits, facts that they permit, evidence of a simulated machine."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.eventlog import EventLog
from attestation.evidence import Binding, Role
from attestation.quote import Quote
from attestation.tcb import ANY_TCB
from attestation.verdict import Verdict
from attestation.verifier import verify_quote
from policies.bundle import Bundle, bundle_of
from policies.cases import make_facts
from policies.errors import BundleError
from policies.model import Context, Facts
from policies.recording import Recording
from policies.scaffold import starter
from simulator.machine import Machine

AT = datetime(2026, 12, 1, 12, tzinfo=UTC)
NOW = Context(at=AT)
Files = dict[str, bytes]


def files(kind: str = "dev", **edits: tuple[str, str]) -> Files:
    """A starter's files; `bundle=("old", "new")` edits bundle.toml, `rules` the Cedar file, and so on."""
    names = {
        "bundle": "bundle.toml",
        "rules": "policy.cedar",
        "values": "reference-values.toml",
        "cases": "tests/starter.toml",
    }
    made = starter(kind)
    for key, (old, new) in edits.items():
        name = names[key]
        assert old.encode() in made[name], f"{name} has no {old!r}"
        made[name] = made[name].replace(old.encode(), new.encode(), 1)
    return made


@lru_cache(maxsize=256)
def _bundle(items: tuple[tuple[str, bytes], ...]) -> Bundle:
    return bundle_of(dict(items))


def bundle(kind: str = "dev", **edits: tuple[str, str]) -> Bundle:
    return _bundle(tuple(files(kind, **edits).items()))


def with_rules(text: str, kind: str = "dev") -> Bundle:
    """The starter with other rules, and without its tests, which speak of its own."""
    made = {name: content for name, content in files(kind).items() if not name.startswith("tests/")}
    return bundle_of({**made, "policy.cedar": text.encode()})


def mistakes(made: Mapping[str, bytes], **options: Any) -> tuple[BundleError, ...]:
    """Every mistake that loading finds; none when it loads."""
    try:
        bundle_of(made, **options)
    except BundleError as error:
        return error.all
    return ()


def good_facts(kind: str = "dev", at: datetime = AT, **changes: Any) -> Facts:
    """The facts that the starter's tests call good, with changes."""
    named = tomllib.loads(starter(kind)["tests/starter.toml"].decode())["facts"]["good"]
    return make_facts({**named, **changes}, at)


def codes(reasons: Any) -> set[str]:
    return {reason.code.value for reason in reasons}


@lru_cache(maxsize=1)
def machine() -> Machine:
    return Machine.create(seed="policies").fork(AT)


def binding(tenant: str = "dev", role: Role = Role.AGENT) -> Binding:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return Binding(
        role=role,
        tenant=tenant,
        broker_id=b"b" * 32,
        nonce=b"n" * 32,
        identity_key=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        suite="mlkem768-x25519",
        sealing_key=b"s" * 1216,
        trust_file_digest=b"t" * 32,
    )


def verdict(tenant: str = "dev", report_data: bytes | None = None, **launch: Any) -> Verdict:
    """A real verdict on a simulated trust domain, bound to a tenant's agent unless bare REPORT_DATA is given."""
    domain = machine().launch("td", **launch)
    bound = binding(tenant)
    verified = verify_quote(
        Quote.parse(domain.quote(report_data or bound.report_data)),
        machine().collateral(),
        report_data=report_data or bound,
        roots=machine().roots,
        at=AT,
        accept=ANY_TCB,
    )
    return Verdict.of(verified, event_log=EventLog.parse(domain.event_log()))


def recording(name: str = "td", tenant: str | None = "dev", **launch: Any) -> dict[str, Any]:
    """Recorded evidence of a simulated domain, as the members of its JSON file."""
    import base64
    import json

    domain = machine().launch(name, **launch)
    bound = binding(tenant) if tenant else None
    report_data = bound.report_data if bound else bytes(range(1, 65))
    return {
        "quote": base64.b64encode(domain.quote(report_data)).decode(),
        "collateral": json.loads(machine().collateral().to_json()),
        "event_log": base64.b64encode(domain.event_log()).decode(),
        "at": "2026-12-01T12:00:00Z",
        "root": machine().root_pem.decode(),
        **({"binding": bound.to_dict()} if bound else {"report_data": report_data.hex()}),
    }


def recorded(name: str = "td", tenant: str | None = "dev", **launch: Any) -> Recording:
    return Recording.from_members(name, recording(name, tenant, **launch))


VECTORS = Path(__file__).parent.parent.parent / "shared" / "vectors"
