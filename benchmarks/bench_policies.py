"""Decisions per second beside the bare Cedar engine, and recordings replayed per minute.

The bare engine gets rules, entities and schema ready-made and is asked about all rules of the bundle, as a caller
without slices would ask it; the request, which holds the time, is built for each call. Ours starts from a Verdict and
ends with a Permit whose digest was computed. The rules are of one kind: a workload, a TCB state, a set of MRTDs, one
secret each; and one forbid for all.
"""

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import cedarpy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.harness import Row, ratio_row, take_turns

if TYPE_CHECKING:
    from attestation.evidence import Binding

SIZES = (10, 100, 1000)
AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECORDINGS = 2000
OUR_PART = 1.3


def rule(index: int, mr_td: str) -> str:
    others = ", ".join(f'"{digit * 96}"' for digit in "0123")
    return (
        f'@id("release-{index}")\n'
        'permit (principal in Workload::"agent", action == Action::"ReleaseSecret", '
        f'resource == Secret::"acme/keys/k{index}")\n'
        f'when {{ principal.tcb_status == "UpToDate" && [{others}, "{mr_td}"].contains(principal.mr_td) '
        '&& context.via == "cloister" };\n'
    )


def files(count: int, mr_td: str) -> dict[str, bytes]:
    """A bundle with `count` rules: one forbid, the rest permits."""
    from policies.scaffold import starter

    rules = "".join(rule(index, mr_td) for index in range(count - 1))
    forbid = (
        '@id("in-grace")\nforbid (principal, action == Action::"ReleaseSecret", resource)\n'
        'when { context.standing != "current" };\n'
    )
    made = starter("dev", tenant="acme", at=AT, measurements={"mr_td": mr_td})
    kept = {name: content for name, content in made.items() if not name.startswith("tests/")}
    return {**kept, "policy.cedar": (rules + forbid).encode()}


def _binding() -> "Binding":
    from attestation.evidence import Binding, Role

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return Binding(
        role=Role.AGENT,
        tenant="acme",
        broker_id=secrets.token_bytes(32),
        nonce=secrets.token_bytes(32),
        identity_key=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        suite="mlkem768-x25519",
        sealing_key=secrets.token_bytes(1216),
        trust_file_digest=bytes(32),
    )


def _fresh(bundle: Any, decide: Any, verdict: object, action: object, context: object) -> bytes:
    """A decision whose answer is not remembered: Cedar is asked every time."""
    bundle.memory.answers.clear()
    return bytes(decide(bundle, verdict, action, context=context).digest)


def _bare(asking: dict[str, Any], rules: Any, entities: Any, schema: Any) -> Any:
    """The same question put to Cedar directly, at a moment of its own."""
    context = {
        "now": {"__extn": {"fn": "datetime", "arg": AT.strftime("%Y-%m-%dT%H:%M:%SZ")}},
        "age_s": 0,
        "standing": "current",
        "via": "cloister",
        "platform_addresses": 1,
    }
    return cedarpy.is_authorized({**asking, "context": context}, rules, entities, schema)


def rows() -> Iterator[Row]:
    from attestation.eventlog import EventLog
    from attestation.quote import Quote
    from attestation.tcb import ANY_TCB
    from attestation.verdict import Verdict
    from attestation.verifier import verify_quote
    from policies.authorisation import ask, entities, principal_json, request
    from policies.bundle import bundle_of
    from policies.engine import decide
    from policies.model import Context, Facts, ReleaseSecret, asked
    from policies.recording import Recording
    from policies.replay import replay
    from policies.vocabulary import schema
    from simulator.machine import Machine

    machine = Machine.create(seed="bench").fork(AT)
    domain = machine.launch("td")
    binding = _binding()
    quote = domain.quote(binding.report_data)
    collateral = machine.collateral()
    verified = verify_quote(
        Quote.parse(quote), collateral, report_data=binding, roots=machine.roots, at=AT, accept=ANY_TCB
    )
    verdict = Verdict.of(verified, event_log=EventLog.parse(domain.event_log()))
    facts = Facts.of(verdict)
    context = Context(at=AT)
    taken: dict[int, float] = {}
    for size in SIZES:
        bundle = bundle_of(files(size, facts.mr_td))
        text = bundle.files["policy.cedar"].decode()
        action = ReleaseSecret(f"acme/keys/k{size // 2}")
        question = asked(action, "acme")
        everything = cedarpy.PolicySet.from_str(text)
        slice_ = bundle.rules.slice(question, ("agent",))
        known = entities(principal_json(facts, "acme", facts.subject, ("agent",)), question)
        asking = request(facts.subject, question, facts, "current", context)
        assert ask(asking, everything, known).allowed
        assert slice_.policies is not None
        measured = take_turns(
            {
                "ours": lambda b=bundle, a=action: _fresh(b, decide, verdict, a, context),  # type: ignore[misc]
                "again": lambda b=bundle, a=action: decide(b, verdict, a, context=context).digest,  # type: ignore[misc]
                "bare": lambda q=asking, p=everything, e=known: _bare(q, p, e, schema()),  # type: ignore[misc]
                "slice": lambda q=asking, p=slice_.policies, e=known: cedarpy.is_authorized(q, p, e, schema()),  # type: ignore[misc]
            },
            rounds=40,
            burst=50,
        )
        taken[size] = measured["ours"]
        name = f"decide with {size:,} rules, {1 / measured['ours']:,.0f}/s"
        yield ratio_row(name, measured["ours"], measured["bare"], OUR_PART, against="bare Cedar over all rules")
        per_s = 1 / measured["again"]
        yield Row(
            name=f"the same again, from memory, with {size:,} rules",
            figure=f"{per_s:,.0f}/s; bare Cedar over its {len(slice_.rules)} rules: {1 / measured['slice']:,.0f}/s",
            values={"per_s": per_s, "slice_per_s": 1 / measured["slice"]},
        )
    yield ratio_row("1,000 rules beside 10", taken[1000], taken[10], 1.2, against="with 10")
    bundle = bundle_of(files(10, facts.mr_td))
    recordings = [
        Recording(
            name=str(index),
            quote=domain.quote(index.to_bytes(64, "big")),
            collateral=collateral,
            at=AT,
            event_log=domain.event_log(),
            report_data=index.to_bytes(64, "big"),
            root=machine.root_pem.decode(),
        )
        for index in range(1, RECORDINGS + 1)
    ]
    from policies.model import Admit

    start = time.thread_time()
    done = sum(1 for _ in replay(bundle, bundle, recordings, [("Admit", Admit())]))
    rate = done / (time.thread_time() - start) * 60
    yield Row(
        name="recordings replayed per minute and core",
        figure=f"{rate:,.0f}",
        bar="≥ 10,000",
        met=rate >= 10_000,
        values={"per_minute": rate},
    )
