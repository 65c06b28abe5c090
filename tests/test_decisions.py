"""Recorded decisions: anybody can take them again from one file, and no part of the file can be exchanged."""

import dataclasses
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.pki import TrustRoots
from broker.calls import Call
from broker.decisions import decision_file
from broker.errors import BrokerError
from broker.rest.routes_audit import decision
from broker.rights import Admin
from broker.wire.log import verifier_key
from policies.codes import DecisionCode
from policies.decided import Finding, check
from policies.decision import MAX_FILE, Decision, DecisionError, read_entry
from tests.broker_world import World, outcome, write_bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    await made.put("acme/open/a", b"value", "plain")
    await made.put("acme/open/top", b"value", "top")
    yield made
    await made.broker.close()


def indices(world: World, kind: str) -> list[int]:
    return [row.index for row in world.broker.audit.page(start=0, limit=1000, kind=kind)]


def taken(world: World, kind: str, number: int = -1) -> bytes:
    return decision_file(world.broker.store, indices(world, kind)[number], world.broker.identity.log_key)


def again(world: World, raw: bytes, **how: Any) -> Finding:
    return check(Decision.from_bytes(raw), roots=how.pop("roots", world.machine.roots), **how)


def failed(world: World, decision: Decision, **how: Any) -> str:
    """The code of the first step that fails, or "stands"."""
    step = check(decision, roots=how.pop("roots", world.machine.roots), **how).failed
    return str(step.code) if step else "stands"


# ── what can be taken again ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_an_admission_is_taken_again_from_its_file(world: World) -> None:
    agent = await world.admitted()
    raw = taken(world, "agent.admitted")
    finding = again(world, raw, log_key=world.broker.identity.log_key)
    assert finding.stands
    assert finding.permitted
    assert all(step.ok for step in finding.steps)
    assert finding.subject == agent.subject
    assert finding.verdict is not None
    assert finding.verdict.jkt == agent.jkt
    assert len(raw) <= MAX_FILE


@pytest.mark.asyncio
async def test_a_release_is_taken_again_bound_to_the_very_request(world: World) -> None:
    agent = await world.admitted()
    await agent.release("acme/open/a")
    world.machine.clock.advance(20)
    await agent.release("acme/open/a", 1)
    for number in (0, 1):
        finding = again(world, taken(world, "secret.released", number))
        assert (finding.stands, finding.permitted, finding.resource) == (True, True, "acme/open/a")


@pytest.mark.asyncio
async def test_refusals_are_taken_again_with_every_code(world: World) -> None:
    agent = await world.admitted()
    assert (await outcome(agent.release("acme/open/top"))).startswith("refused")
    assert (await outcome(agent.release("acme/shut/a"))).startswith("refused")
    debug = world.agent(attributes=0x1000_0001)
    assert await outcome(debug.attest()) == "quote.debug"
    for kind, number, code in (
        ("secret.refused", 0, "policy.forbidden"),
        ("secret.refused", 1, "policy.no_rule"),
        ("agent.refused", 0, "quote.debug"),
    ):
        finding = again(world, taken(world, kind, number))
        assert (finding.stands, finding.permitted, finding.codes[0]) == (True, False, code), finding.steps


@pytest.mark.asyncio
async def test_a_quarantine_is_taken_again_by_the_collateral_of_its_day(world: World) -> None:
    await world.admitted()
    world.machine.recover("revoke-pck", platform=0)
    assert await world.broker.administration.refresh_collateral()
    await world.broker.sessions.sweep()
    finding = again(world, taken(world, "agent.quarantined"))
    assert (finding.stands, finding.codes[0]) == (True, "chain.revoked")
    assert again(world, taken(world, "agent.admitted")).stands  # by the collateral of the day before


@pytest.mark.asyncio
async def test_a_decision_under_an_earlier_policy_stays_what_it_was(world: World, tmp_path: Path) -> None:
    await world.admitted()
    write_bundle(tmp_path / "bundle", ("principal.simulated", "!principal.simulated"), version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    assert again(world, taken(world, "agent.admitted")).stands


@pytest.mark.asyncio
async def test_the_address_that_a_policy_looked_at_is_in_the_entry(tmp_path: Path) -> None:
    """A rule may read the caller's address; without it, the decision could not be repeated."""
    bundle = write_bundle(
        tmp_path / "net",
        (
            "when { principal.simulated };",
            'when { context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8")) };',
        ),
    )
    world = await World.make(tmp_path, bundles=(bundle,))
    await world.broker.admission.attest(world.agent().request(), source_ip="10.1.2.3")
    assert again(world, taken(world, "agent.admitted")).stands
    await world.broker.close()


@pytest.mark.asyncio
async def test_what_records_no_decision_makes_no_file(world: World) -> None:
    log_key = world.broker.identity.log_key
    for index, code in ((indices(world, "secret.put")[0], "decision.unavailable"), (10_000, "log.entry_unknown")):
        with pytest.raises(BrokerError, match=code.replace(".", r"\.")):
            decision_file(world.broker.store, index, log_key)


# ── what cannot be exchanged ───────────────────────────────────────────────────────────────────────────────────────

Change = Callable[[Decision, Decision], Decision]
CHANGES: dict[str, tuple[Change, DecisionCode]] = {
    "another entry": (lambda mine, other: dataclasses.replace(mine, entry=other.entry), DecisionCode.LOG_PROOF),
    "another place": (lambda mine, _: dataclasses.replace(mine, index=mine.index - 1), DecisionCode.LOG_PROOF),
    "a shorter proof": (lambda mine, _: dataclasses.replace(mine, proof=mine.proof[:-1]), DecisionCode.LOG_PROOF),
    "another checkpoint": (
        lambda mine, _: dataclasses.replace(mine, checkpoint=mine.checkpoint.replace("\n", "\nx", 1)),
        DecisionCode.LOG_PROOF,
    ),
    "another policy": (
        lambda mine, _: dataclasses.replace(mine, policy={**mine.policy, "policy.cedar": b"// nothing\n"}),
        DecisionCode.PART,
    ),
    "no policy": (lambda mine, _: dataclasses.replace(mine, policy={}), DecisionCode.PART),
    "no evidence": (lambda mine, _: dataclasses.replace(mine, evidence={}), DecisionCode.EVIDENCE),
    "another agent's evidence": (
        lambda mine, other: dataclasses.replace(mine, evidence=other.evidence),
        DecisionCode.EVIDENCE,
    ),
    "evidence with a flipped bit": (
        lambda mine, _: dataclasses.replace(
            mine, evidence={digest: bytes([blob[0] ^ 1]) + blob[1:] for digest, blob in mine.evidence.items()}
        ),
        DecisionCode.EVIDENCE,
    ),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", CHANGES)
async def test_no_part_can_be_exchanged(world: World, name: str) -> None:
    await world.admitted()
    await world.admitted()
    mine, other = (Decision.from_bytes(taken(world, "agent.admitted", number)) for number in (1, 0))
    change, code = CHANGES[name]
    assert failed(world, mine) == "stands"
    assert failed(world, change(mine, other)) == code


@pytest.mark.asyncio
async def test_collateral_of_another_day_is_not_that_of_the_entry(world: World) -> None:
    await world.admitted()
    mine = Decision.from_bytes(taken(world, "agent.admitted"))
    world.machine.clock.advance(3600)
    world.machine.recover("reissue")
    quote = world.agent().td.quote(b"q" * 64)
    from attestation.quote import Quote

    other = world.machine.as_source().fetch(Quote.parse(quote))
    assert failed(world, dataclasses.replace(mine, collateral=other)) == DecisionCode.PART


@pytest.mark.asyncio
async def test_a_log_of_ones_own_making_is_not_that_of_the_broker_in_the_quote(world: World) -> None:
    """Somebody signs a log of one entry himself: the agent's quote names another broker."""
    from broker.wire.log import Checkpoint, leaf_hash, raw_log_key

    await world.admitted()
    mine = Decision.from_bytes(taken(world, "agent.admitted"))
    key = Ed25519PrivateKey.generate()
    note = Checkpoint.sign("evil.test/log", 1, leaf_hash(mine.entry), key).note
    vkey = verifier_key("evil.test/log", raw_log_key(key.public_key()))
    forged = dataclasses.replace(mine, log_key=vkey, index=0, proof=(), checkpoint=note)
    assert failed(world, forged) == DecisionCode.LOG_KEY
    assert failed(world, mine, log_key=raw_log_key(key.public_key())) == DecisionCode.LOG_KEY


@pytest.mark.asyncio
async def test_under_another_root_the_same_decision_would_not_be_taken(world: World) -> None:
    await world.admitted()
    mine = Decision.from_bytes(taken(world, "agent.admitted"))
    assert failed(world, mine, roots=TrustRoots.intel()) == DecisionCode.DIFFERS


@pytest.mark.asyncio
async def test_an_entry_of_another_kind_is_no_decision(world: World) -> None:
    await world.admitted()
    mine = Decision.from_bytes(taken(world, "agent.admitted"))
    facts = json.loads(mine.entry)
    for changes, code in (({"kind": "mailbox.opened"}, DecisionCode.LOG_PROOF), ({"at_ms": 0}, DecisionCode.LOG_PROOF)):
        entry = json.dumps(facts | changes).encode()
        assert failed(world, dataclasses.replace(mine, entry=entry)) == code


@pytest.mark.asyncio
async def test_an_entry_of_another_kind_that_does_stand_in_the_log_records_no_decision(world: World) -> None:
    from broker.wire.log import Checkpoint, leaf_hash

    await world.admitted()
    mine = Decision.from_bytes(taken(world, "agent.admitted"))
    entry = json.dumps(json.loads(mine.entry) | {"kind": "mailbox.opened"}).encode()
    note = Checkpoint.sign("own.test/log", 1, leaf_hash(entry), world.broker.audit._key).note
    vkey = verifier_key("own.test/log", world.broker.identity.log_key)
    made = dataclasses.replace(mine, entry=entry, log_key=vkey, index=0, proof=(), checkpoint=note)
    assert failed(world, made) == DecisionCode.KIND


# ── the file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def packed(members: object) -> bytes:
    return gzip.compress(json.dumps(members).encode(), mtime=0)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", DecisionCode.MALFORMED),
        (b"{}", DecisionCode.MALFORMED),
        (packed([]), DecisionCode.MALFORMED),
        (packed({"format": "cloister/decision/v1"}), DecisionCode.MALFORMED),
        (packed({}) + b"x", DecisionCode.MALFORMED),
        (packed({})[:-1], DecisionCode.MALFORMED),
        (gzip.compress(b" " * (3 << 20), mtime=0), DecisionCode.TOO_LARGE),
        (b"x" * (MAX_FILE + 1), DecisionCode.TOO_LARGE),
    ],
    ids=["nothing", "unpacked", "list", "few members", "more behind", "cut short", "large unpacked", "large"],
)
def test_what_is_no_decision_is_named_so(raw: bytes, code: DecisionCode) -> None:
    with pytest.raises(DecisionError) as caught:
        Decision.from_bytes(raw)
    assert caught.value.code is code


@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)))
@settings(max_examples=60)
def test_any_member_may_be_anything(value: object) -> None:
    names = ("log_key", "receipt", "evidence", "collateral", "policy")
    for name in names:
        members = {other: {} for other in names} | {"format": "cloister/decision/v1", name: value}
        with pytest.raises(DecisionError):
            Decision.from_bytes(packed(members))


@pytest.mark.parametrize(
    "changes",
    [
        {"at_ms": "now"},
        {"at_ms": -1},
        {"at_ms": 10**18},
        {"at_ms": True},
        {"kind": None},
        {"codes": 5},
        {"codes": [5]},
        {"labels": "a"},
        {"version": "1"},
        {"judged_at_ms": []},
        {"source_ip": 1},
        {"platform_addresses": 2**40},
        {"evidence": {}},
    ],
)
def test_an_entry_whose_members_have_not_their_types_is_malformed(changes: dict[str, Any]) -> None:
    """A broker could sign anything; whoever checks must not stumble over it."""
    with pytest.raises(DecisionError) as caught:
        read_entry(json.dumps({"at_ms": 1, "kind": "agent.admitted"} | changes).encode())
    assert caught.value.code is DecisionCode.MALFORMED


@pytest.mark.asyncio
async def test_a_file_is_the_same_each_time_and_comes_back_whole(world: World) -> None:
    await world.admitted()
    raw = taken(world, "agent.admitted")
    assert raw == taken(world, "agent.admitted")
    assert Decision.from_bytes(raw).to_bytes() == raw


@pytest.mark.asyncio
async def test_an_administrator_of_another_tenant_gets_no_file(world: World) -> None:
    await world.admitted()
    (index,) = indices(world, "agent.admitted")

    async def asked(*tenants: str) -> object:
        admin = Admin(name="eve", jkt="E" * 43, role="auditor", tenants=tenants)
        call = Call(broker=world.broker, body=b"", correlation_id="", path={"index": index}, admin=admin)
        return await decision(call)

    assert await outcome(asked("acme")) == "ok"
    assert await outcome(asked("globex")) == "admin.tenant"


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────────────


def command(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.asyncio
async def test_the_command_checks_a_file_by_itself(world: World, tmp_path: Path) -> None:
    agent = await world.admitted()
    await outcome(agent.release("acme/shut/a"))
    yes, no, root, vkey = (tmp_path / name for name in ("yes", "no", "root.pem", "log.vkey"))
    yes.write_bytes(taken(world, "agent.admitted"))
    no.write_bytes(taken(world, "secret.refused"))
    root.write_bytes(world.machine.root_pem)
    identity = world.broker.identity
    vkey.write_text(verifier_key(identity.log_name, identity.log_key))
    given = ["--root", str(root), "--log-key", str(vkey), "--json"]
    status, out = command("verify", "--bundle-file", str(yes), *given)
    assert (status, json.loads(out)["ok"], json.loads(out)["subject"]) == (0, True, agent.subject)
    status, out = command("verify", "--bundle-file", str(no), *given)
    told = json.loads(out)
    assert (status, told["ok"], told["stands"], told["code"]) == (1, False, True, "policy.no_rule")
    status, out = command("verify", "--bundle-file", str(yes))
    assert status == 1
    assert "DOES NOT STAND" in out
    (tmp_path / "junk").write_bytes(b"junk")
    assert command("verify", "--bundle-file", str(tmp_path / "junk"))[0] == 3
    assert command("verify", "--bundle-file", str(tmp_path / "none"))[0] == 2
    assert command("verify", "--bundle-file", str(yes), "--at", "0")[0] == 2
    assert command("verify")[0] == 2


def test_a_relying_party_needs_no_broker_package_to_check() -> None:
    code = "import policies.decided, sys; print(*(name for name in sys.modules if name.split('.')[0] == 'broker'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
