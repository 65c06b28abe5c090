"""REST and gRPC are twins: one input, driven through both, has one decision, the same codes and the same entries of the
log. What an input is worth is tested elsewhere; here it only has to be worth the same.
"""

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.evidence import Role
from broker.audit import Kind
from broker.rpc.members import fill, members_of
from broker.wire import api_pb2 as pb
from broker.wire.bodies import PutSecretRequest
from broker.wire.envelope import batch_to_bytes
from broker.wire.envelope_pb2 import Batch
from broker.wire.jose import b64u
from tests.broker_world import Agent, World
from tests.grpc_client import BY_NAME, GrpcClient, dialled
from tests.test_broker_http import Client, serving

BOX = "acme/mail/b"
NAMES = (
    "acme/open/a",
    "acme/open/top",
    "acme/open/none",
    "acme/shut/a",
    "acme//x",
    "other/open/a",
    "x",
    BOX,
    "acme/mail/x",
)
CALLERS = ("a", "b", "quarantined", "thief", "stale", "bearer", "admin", "nobody")


@dataclass
class Case:
    """One input, as REST says it."""

    method: str
    name: str = ""
    path: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    members: dict[str, Any] | None = None
    batch: bytes = b""


class Both:
    """A broker behind both interfaces, and who calls it. No dataclass: hypothesis would print all of it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, world: World, rest: Client, grpc: GrpcClient, callers: dict[str, Agent]
    ) -> None:
        self.loop, self.world, self.rest, self.grpc, self.callers = loop, world, rest, grpc, callers

    # ── REST ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def over_rest(self, case: Case, who: str) -> tuple[Any, ...]:
        endpoint = BY_NAME[case.method].endpoint
        path = endpoint.path.replace(":path}", "}").replace(":int}", "}").format(**case.path, name=case.name)
        query = "?" + "&".join(f"{key}={value}" for key, value in case.query.items()) if case.query else ""
        body: Any = case.batch or case.members if endpoint.max_body else b""
        by = "admin" if who == "admin" else self.callers.get(who, "")
        headers = None
        if who in ("stale", "bearer"):
            a = self.callers["a"]
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = a.headers(endpoint.method, path, raw, nonce=None if who == "stale" else self.rest.nonce)
            if who == "bearer":
                headers["authorization"] = f"Bearer {a.token}"
        answer = await self.rest.call(endpoint.method, path, body, by=by, headers=headers, query=query)
        if answer.status_code == 200:
            plain = answer.headers["content-type"] == "application/json"
            return 200, shape(answer.json() if plain else {"data": b64u(answer.content)})
        told = answer.json()
        return told["status"], told["code"], tuple(told.get("codes", ()))

    # ── gRPC ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def message(self, case: Case) -> Any:
        twin = BY_NAME[case.method]
        message: Any = twin.request()
        if isinstance(message, pb.Asked):
            path = {"name": case.name} if "{name" in twin.endpoint.path else {}
            fill(message, {"path": {**path, **case.path}, "query": case.query, "body": case.members or {}})
            return message
        query = {name: int(text) for name, text in case.query.items()}
        inner = {twin.body: case.members} if twin.body and not case.batch else case.members or {}
        fill(message, {**({"name": case.name} if case.name else {}), **case.path, **query, **inner})
        if case.batch:
            message.batch.CopyFrom(Batch.FromString(case.batch))
        return message

    async def over_grpc(self, case: Case, who: str) -> tuple[Any, ...]:
        message = self.message(case)
        by = "admin" if who == "admin" else self.callers.get(who, "")
        metadata = None
        if who in ("stale", "bearer"):
            a, raw = self.callers["a"], message.SerializeToString()
            nonce = None if who == "stale" else self.grpc.nonce
            proofs = a.headers("POST", BY_NAME[case.method].full_method, raw, nonce=nonce)
            if who == "bearer":
                proofs["authorization"] = f"Bearer {a.token}"
            metadata = tuple(proofs.items())
        found = await self.grpc.call(case.method, message, by=by, metadata=metadata)
        if found.answer is None:
            return found.problem.status, found.problem.code, tuple(found.problem.codes)
        if isinstance(found.answer, pb.Octets):
            return 200, shape({"data": b64u(found.answer.data)})
        told = members_of(found.answer)
        return 200, shape(told.get("members", {}) if isinstance(found.answer, pb.Document) else told)

    # ── and what the log says ──────────────────────────────────────────────────────────────────────────────────────

    def entries(self, start: int, end: int) -> list[tuple[Any, ...]]:
        rows = self.world.broker.audit.page(start=start, limit=end - start) if end > start else ()
        found = [json.loads(row.entry) for row in rows]
        names = ("kind", "subject", "tenant", "resource", "codes", "policy", "generation", "reasons")
        return [
            tuple(json.dumps(entry.get(name)) for name in names)
            for entry in found
            if entry["kind"] != Kind.EDGE_PERMITTED  # once for each edge, whoever uses it first
        ]

    def same(self, rest: Case, grpc: Case, who: str) -> tuple[Any, ...]:
        """The outcome, once both have the same and the log says the same of both."""
        start = self.world.broker.audit.head().size
        by_rest = self.loop.run_until_complete(self.over_rest(rest, who))
        middle = self.world.broker.audit.head().size
        by_grpc = self.loop.run_until_complete(self.over_grpc(grpc, who))
        end = self.world.broker.audit.head().size
        assert by_rest == by_grpc
        assert self.entries(start, middle) == self.entries(middle, end)
        return by_rest


def shape(value: Any) -> Any:
    """What must agree in two answers that differ in nonces, times and signatures: names, kinds and booleans.

    gRPC leaves out what is empty, and so does this.
    """
    if isinstance(value, dict):
        return {name: shape(item) for name, item in sorted(value.items()) if item not in (None, [], {})}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item)) for item in value})
    return value if isinstance(value, bool) else type(value).__name__


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()

    async def made() -> Both:
        world = await World.make(tmp_path_factory.mktemp("twins"))
        await world.put("acme/open/a", b"a")
        await world.put("acme/open/top", b"top", "top")
        await world.put("acme/shut/a", b"shut")
        callers = {name: await world.admitted(name) for name in ("a", "b", "quarantined", "thief")}
        await callers["b"].open(BOX)
        callers["thief"].token = callers["a"].token
        fallen = callers["quarantined"].subject
        await world.broker.administration.revoke(world.settings.admins[0], fallen, "test")
        rest = await stack.enter_async_context(serving(world))
        grpc = await stack.enter_async_context(dialled(world))
        return Both(loop=loop, world=world, rest=rest, grpc=grpc, callers=callers)

    found = loop.run_until_complete(made())
    yield found
    loop.run_until_complete(stack.aclose())
    loop.run_until_complete(found.world.broker.close())
    loop.close()


# ── inputs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NONCES = st.sampled_from([b64u(bytes(size)) for size in (32, 0, 31, 33)]) | st.none()


def optional(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of these members, of which any may be absent (that is: None)."""
    return st.fixed_dictionaries(members).map(lambda found: {k: v for k, v in found.items() if v is not None})


def maybe(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([*values, None])


named = st.sampled_from(NAMES)
CASES = st.one_of(
    st.builds(Case, method=st.just("Broker.Challenge"), members=optional(client_nonce=NONCES)),
    st.builds(
        Case,
        method=st.just("Broker.ReleaseSecret"),
        name=named,
        members=optional(nonce=NONCES, version=maybe(0, 1, 2, 2**53)),
    ),
    st.builds(Case, method=st.sampled_from(["Broker.FindMailbox", "Admin.GetAgent"]), name=named),
    st.builds(
        Case,
        method=st.just("Broker.Receive"),
        name=named,
        members=optional(max_messages=maybe(0, 1, 65), wait_s=maybe(0, 21), lease_s=maybe(0, 30, 10**6)),
    ),
    st.builds(
        Case,
        method=st.just("Broker.Acknowledge"),
        name=named,
        members=optional(ack=st.lists(st.sampled_from(["1.x", "", "x" * 300]), max_size=2)),
    ),
    st.builds(
        Case,
        method=st.just("Broker.GetConsistency"),
        query=st.fixed_dictionaries({"old": st.sampled_from(["0", "1", "99999"]), "size": st.sampled_from(["1", "2"])}),
    ),
    st.builds(
        Case,
        method=st.just("Broker.GetTile"),
        path=st.fixed_dictionaries(
            {"tile": st.sampled_from(["0/000", "0/000.p/1", "0/x001/000", "9/000", "0/00", "x"])}
        ),
    ),
    st.builds(
        Case, method=st.just("Admin.ListSecrets"), query=optional(tenant=maybe("acme", "no"), limit=maybe("1", "x"))
    ),
    st.builds(
        Case,
        method=st.just("Admin.ProveEntry"),
        path=st.fixed_dictionaries({"index": st.sampled_from(["0", "3", "99999"])}),
    ),
    st.builds(
        Case, method=st.just("Admin.ListEntries"), query=optional(start=maybe("0", "2"), kind=maybe("agent.admitted"))
    ),
    st.builds(
        Case,
        method=st.sampled_from(["Admin.PutSecret", "Admin.RotateSecret"]),
        name=named,
        members=optional(value=maybe(b64u(b"v"), ""), labels=maybe(["x"], ["x" * 300])),
    ),
    st.builds(Case, method=st.just("Admin.DestroySecret"), name=named, members=optional(version=maybe(9, 0, "x", 1.5))),
    st.builds(
        Case,
        method=st.just("Admin.RevokeAgent"),
        name=st.sampled_from(["agent/acme/x", "x" * 400]),
        members=st.just({}),
    ),
    st.builds(Case, method=st.sampled_from(["Admin.GetStatus"])),
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@given(case=CASES, who=st.sampled_from(CALLERS))
@settings(max_examples=250, deadline=None, suppress_health_check=QUIET)
def test_rest_and_grpc_decide_alike_and_log_alike(both: Both, case: Case, who: str) -> None:
    if case.method == "Admin.GetAgent" and who != "admin":  # one endpoint for both of them, and a method for each
        case = replace(case, method="Broker.FindAgent")
    both.same(case, case, who)


# ── inputs that serve once: each interface gets its own ────────────────────────────────────────────────────────────

BINDINGS: tuple[dict[str, Any], ...] = (
    {},
    {"tenant": "unknown"},
    {"role": Role.PEER},
    {"broker_id": bytes(32)},
    {"nonce": bytes(32)},
)


@pytest.mark.parametrize("changes", BINDINGS, ids=str)
@pytest.mark.parametrize("fault", ["none", "proof", "quote", "client_nonce", "debug"])
def test_admissions_end_alike_over_both(both: Both, changes: dict[str, Any], fault: str) -> None:
    def case() -> Case:
        agent = both.world.agent(attributes=1) if fault == "debug" else both.world.agent()
        client_nonce, answer = agent.challenge()
        evidence = agent.evidence(agent.binding(**({"nonce": answer.nonce} | changes)), client_nonce).to_dict()
        if fault == "proof":
            evidence["proof"] = b64u(bytes(64))
        if fault == "quote":
            evidence["quote"] = evidence["quote"][:400]
        sent = secrets.token_bytes(32) if fault == "client_nonce" else client_nonce
        return Case(method="Broker.Attest", members={"evidence": evidence, "client_nonce": b64u(sent)})

    start = both.world.broker.audit.head().size
    by_rest = both.loop.run_until_complete(both.over_rest(case(), "nobody"))
    middle = both.world.broker.audit.head().size
    by_grpc = both.loop.run_until_complete(both.over_grpc(case(), "nobody"))
    assert by_rest == by_grpc
    end = both.world.broker.audit.head().size
    assert [entry[0] for entry in both.entries(start, middle)] == [entry[0] for entry in both.entries(middle, end)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"report_data": "zero"},
        {"report_data": "right"},
        {"report_data": "wrong"},
        {"accept": ["UpToDate", "OutOfDate"]},
        {"accept": ["Fine"]},
        {"allow": ["migratable"]},
        {"nonce": "short"},
        {"nonce": "long enough", "audience": "https://relying.example"},
        {"quote": "AAAA"},
        {"quote": None},
    ],
    ids=str,
)
def test_verifications_end_alike_over_both(both: Both, changes: dict[str, Any]) -> None:
    data = {"zero": bytes(64), "right": b"r" * 64, "wrong": b"w" * 64}
    quote = both.world.machine.launch("relying").quote(b"r" * 64)
    members = {"quote": b64u(quote)} | changes
    if "report_data" in changes:
        members["report_data"] = b64u(data[changes["report_data"]])
    case = Case(method="Broker.Verify", members={name: value for name, value in members.items() if value is not None})
    both.same(case, case, "nobody")


def test_mail_is_taken_in_and_handed_out_alike(both: Both) -> None:
    a, b = both.callers["a"], both.callers["b"]
    key = both.loop.run_until_complete(a.find(BOX)).key

    def send() -> Case:
        return Case(method="Broker.Send", name=BOX, batch=batch_to_bytes([a.envelope(key)]))

    assert both.same(send(), send(), "a")[0] == 200
    assert both.same(send(), send(), "b")[1] == "message.sender_mismatch"
    opening = b.mailbox_key("acme/mail/c").to_dict()
    case = Case(method="Broker.OpenMailbox", name="acme/mail/c", members=opening)
    assert both.same(case, case, "b")[0] == 200
    other = Case(method="Broker.OpenMailbox", name="acme/mail/other", members=opening)
    assert both.same(other, other, "b")[0] != 200
    taken = Case(method="Broker.Receive", name=BOX, members={"max_messages": 1})
    assert both.same(taken, taken, "b")[0] == 200


def test_an_administrators_value_is_stored_alike(both: Both) -> None:
    value = PutSecretRequest(value=b"new", labels=("x",)).to_dict()
    case = Case(method="Admin.PutSecret", name="acme/open/new", members=value)
    assert both.same(case, case, "admin")[0] == 200
