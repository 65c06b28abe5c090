"""Secrets go to the key inside a verdict, after the log knows; to nobody else, by no other way."""

import asyncio
import io
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import Code, SealingFailed
from broker.audit import Audit, Entry
from broker.errors import BrokerCode, BrokerError
from broker.ports import SecretRecord, Transaction
from broker.service import Broker
from broker.store.sql import SqlStore
from broker.telemetry import JsonLines
from broker.wire.bodies import PutSecretRequest
from broker.wire.release import ReleaseRequest
from policies.engine import decide
from policies.errors import Refused
from policies.model import Context, ReleaseSecret
from tests.broker_world import World, outcome, write_bundle

CANARY = b"canary-6f1e0b7c-do-not-leak"
NAMES = ["acme/open/a", "acme/open/b", "acme/closed/a", "acme/open/none", "other/open/a"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    await made.put("acme/open/a", b"value a")
    await made.put("acme/open/b", b"value b", "top")
    await made.put("acme/closed/a", b"value c")
    yield made
    await made.broker.close()


# ── what is released ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_permitted_agent_opens_its_secret_with_its_own_key(world: World) -> None:
    agent = await world.admitted()
    permit, value = await agent.release("acme/open/a")
    assert value == b"value a"
    assert (permit.name, permit.version, permit.jkt, permit.subject) == ("acme/open/a", 1, agent.jkt, agent.subject)
    assert permit.not_after_s - permit.issued_at_s <= 60


@pytest.mark.asyncio
async def test_another_agent_cannot_open_what_was_sealed_to_the_first(world: World) -> None:
    first, second = await world.admitted(), await world.admitted()
    request = ReleaseRequest(nonce=secrets.token_bytes(32))
    answer = await first.acting(lambda s: world.broker.releases.release(s, "acme/open/a", request))
    with pytest.raises(SealingFailed) as caught:
        second.sealing.open(answer.sealed, answer.context)
    assert caught.value.code is Code.SEALING_OPEN


@pytest.mark.asyncio
async def test_versions_are_released_by_number_or_the_newest(world: World) -> None:
    agent = await world.admitted()
    await world.put("acme/open/a", b"newer")
    assert (await agent.release("acme/open/a"))[1] == b"newer"
    assert (await agent.release("acme/open/a", 1))[1] == b"value a"


@pytest.mark.asyncio
async def test_a_secret_that_does_not_exist_has_its_own_code_and_no_release_entry(world: World) -> None:
    agent = await world.admitted()
    assert await outcome(agent.release("acme/open/none")) == BrokerCode.SECRET_UNKNOWN
    assert await outcome(agent.release("acme/open/a", 9)) == BrokerCode.SECRET_UNKNOWN
    assert await outcome(agent.release("acme//a")) == BrokerCode.SECRET_NAME
    assert "secret.released" not in world.kinds()


@pytest.mark.asyncio
async def test_who_may_not_have_a_secret_does_not_learn_whether_it_exists(world: World) -> None:
    agent = await world.admitted()
    there, absent = await outcome(agent.release("acme/closed/a")), await outcome(agent.release("acme/closed/none"))
    assert there == absent
    assert there.startswith("refused: ")


@pytest.mark.asyncio
async def test_a_destroyed_secret_is_gone(world: World) -> None:
    agent = await world.admitted()
    await world.broker.administration.destroy_secret(world.settings.admins[0], "acme/open/a", None)
    assert await outcome(agent.release("acme/open/a")) == BrokerCode.SECRET_DESTROYED


@pytest.mark.asyncio
async def test_a_forbid_wins_over_a_permit(world: World) -> None:
    agent = await world.admitted()
    assert (await outcome(agent.release("acme/open/b"))).startswith("refused: ")
    entry = json.loads(world.broker.audit.newest(kind="secret.refused", limit=1)[0].entry)
    assert entry["resource"] == "acme/open/b"
    assert any("never-top" in reason for reason in entry["reasons"])


def test_t13_whatever_is_asked_released_is_permitted(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("t13")

    async def prepared() -> World:
        world = await World.make(folder)
        for name in ("acme/open/a", "acme/closed/a"):
            await world.put(name, b"v")
        await world.put("acme/open/b", b"v", "top")
        return world

    with asyncio.Runner() as runner:
        world = runner.run(prepared())
        agent = runner.run(world.admitted())

        async def permitted(name: str, version: int | None) -> bool:
            session = await world.broker.sessions.of_token(agent.token, world.broker.clock())
            labels = frozenset({"top"}) if name == "acme/open/b" else frozenset[str]()
            try:
                action = ReleaseSecret(name, version or 1, labels)
                decide(session.bundle, session.verdict, action, context=Context(at=world.broker.clock()))
            except Refused:
                return False
            return True

        @given(name=st.sampled_from(NAMES) | st.text(max_size=20), version=st.none() | st.integers(1, 3))
        @settings(max_examples=60)
        def check(name: str, version: int | None) -> None:
            released = runner.run(outcome(agent.release(name, version)))
            if released == "ok":
                assert runner.run(permitted(name, version))
                assert name == "acme/open/a"

        check()
        runner.run(world.broker.close())


# ── the log comes first ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_every_release_and_refusal_is_in_the_log_with_who_what_and_why(world: World) -> None:
    agent = await world.admitted()
    await agent.release("acme/open/a")
    entry = json.loads(world.broker.audit.newest(kind="secret.released", limit=1)[0].entry)
    record = world.broker.administration.agent(agent.subject)
    assert entry["subject"] == agent.subject
    assert (entry["resource"], entry["version"]) == ("acme/open/a", 1)
    assert entry["evidence"] == record.evidence.hex()
    assert entry["policy"] == world.broker.administration.overview()["policies"]["acme"]
    assert len(entry["permit"]) == 64


class Crashed(Exception):
    """The process ended here."""


@pytest.mark.asyncio
async def test_a_crash_before_the_entry_is_durable_releases_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await world.admitted()

    async def crash(self: Audit, entry: Entry, work: Callable[[Transaction], Any]) -> Any:
        raise Crashed

    opened: list[str] = []
    monkeypatch.setattr(type(world.broker.audit), "record", crash)

    def look(self: object, permit: object, record: SecretRecord) -> bytes:
        opened.append(record.name)
        return b""

    monkeypatch.setattr("broker.vault.Vault.open_permitted", look)
    with pytest.raises(Crashed):
        await agent.release("acme/open/a")
    assert opened == []


@pytest.mark.asyncio
async def test_a_crash_after_the_entry_leaves_an_entry_and_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await World.make(tmp_path, database=True)
    await world.put("acme/open/a", b"value")
    agent = await world.admitted()

    def crash(*_: object, **__: object) -> None:
        raise Crashed

    with monkeypatch.context() as patch:
        patch.setattr("broker.release.seal", crash)
        with pytest.raises(Crashed):
            await agent.release("acme/open/a")
    await world.restart()
    assert world.kinds().count("secret.released") == 1
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_log_that_cannot_be_written_releases_nothing(tmp_path: Path) -> None:
    world = await World.make(tmp_path, database=True)
    await world.put("acme/open/a", b"value")
    agent = await world.admitted()
    store = world.broker.store
    assert isinstance(store, SqlStore)
    store._writer.execute("PRAGMA query_only = ON")
    assert await outcome(agent.release("acme/open/a")) == BrokerCode.STORE_UNAVAILABLE
    assert await outcome(world.agent().attest()) == BrokerCode.STORE_UNAVAILABLE
    store._writer.execute("PRAGMA query_only = OFF")
    assert await outcome(agent.release("acme/open/a")) == "ok"
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_decision_of_an_earlier_generation_releases_nothing(world: World) -> None:
    agent = await world.admitted()
    session = await world.broker.sessions.of_token(agent.token, world.broker.clock())
    await world.broker.generation.rise("test", lambda _: None, at=world.broker.clock())
    request = ReleaseRequest(nonce=bytes(32))
    before = world.kinds()
    released = world.broker.releases.release(session, "acme/open/a", request)
    assert await outcome(released) == BrokerCode.GENERATION_MOVED
    assert world.kinds() == before
    assert await outcome(agent.release("acme/open/a")) == "ok"


@pytest.mark.asyncio
async def test_changes_at_one_moment_are_told_with_the_number_that_each_made(world: World) -> None:
    generation, at = world.broker.generation, world.broker.clock()
    before = generation.current
    told = await asyncio.gather(*(generation.rise("test", lambda _: None, at=at) for _ in range(4)))
    numbers = [json.loads(receipt.entry)["generation"] for _, receipt in told]
    assert sorted(numbers) == [before + 1, before + 2, before + 3, before + 4]
    assert generation.current == before + 4


@pytest.mark.asyncio
async def test_what_changes_under_way_is_judged_anew_and_not_told(world: World) -> None:
    agent = await world.admitted()

    async def act(session: Any) -> int:
        if session.generation < 5:
            await world.broker.generation.rise("test", lambda _: None, at=world.broker.clock())
            raise BrokerError(BrokerCode.GENERATION_MOVED, "moved")
        return int(session.generation)

    assert await agent.acting(act) == 5


# ── nobody reads them ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_canary_secret_is_nowhere_but_where_it_belongs(tmp_path: Path) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        world = await World.make(tmp_path, database=True)
        await world.put("acme/open/a", CANARY)
        await world.put("acme/closed/a", CANARY, "top")
        agent = await world.admitted()
        assert (await agent.release("acme/open/a"))[1] == CANARY
        await outcome(agent.release("acme/closed/a"))
        await outcome(agent.release("acme/open/none"))
        shown = repr(world.broker) + repr(await world.broker.sessions.of_token(agent.token, world.broker.clock()))
        shown += repr(world.broker.store.read(lambda tx: tx.secrets.get("acme/open/a")))
        shown += repr(PutSecretRequest(value=CANARY)) + world.broker.metrics.render().decode()
        shown += json.dumps(world.broker.administration.overview())
        log = b"".join(row.entry for row in world.broker.audit.page(start=0, limit=1000))
        await world.broker.close()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY not in files + log + shown.encode() + stream.getvalue().encode()
    assert agent.token not in stream.getvalue() + shown + files.decode("latin-1")


@pytest.mark.asyncio
async def test_an_error_deep_inside_shows_no_secret(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await world.admitted()

    def crash(_verdict: object, plaintext: bytes, *, context: bytes) -> None:
        raise ValueError(f"cannot seal {plaintext!r}")

    monkeypatch.setattr("broker.release.seal", crash)
    from broker.rest.http_api import asgi_endpoint
    from broker.rest.routes import ENDPOINTS

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("cloister.broker.http")
    logger.addHandler(handler)
    try:
        endpoint = next(item for item in ENDPOINTS if item.name == "release")
        answer = await _post(asgi_endpoint(world.broker, endpoint), world, agent)
    finally:
        logger.removeHandler(handler)
    assert answer.status_code == 500
    assert b"value a" not in bytes(answer.body)
    assert "value a" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


async def _post(endpoint: Any, world: World, agent: Any) -> Any:
    from starlette.requests import Request

    body = json.dumps(ReleaseRequest(nonce=bytes(32)).to_dict()).encode()
    path = "/v1/secrets/acme/open/a:release"
    nonce = world.broker.gate.nonce(world.broker.clock())
    headers = agent.headers("POST", path, body, nonce=nonce)
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("broker.test", 80),
        "scheme": "http",
        "path_params": {"name": "acme/open/a"},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return await endpoint(Request(scope, receive))


@pytest.mark.asyncio
async def test_an_administrator_needs_a_loaded_tenant_and_a_proper_name(world: World) -> None:
    admin, desk = world.settings.admins[0], world.broker.administration
    put = PutSecretRequest(value=b"v")
    assert await outcome(desk.put_secret(admin, "other/a/b", put)) == BrokerCode.ATTESTATION_TENANT
    assert await outcome(desk.put_secret(admin, "acme", put)) == BrokerCode.SECRET_NAME
    assert await outcome(desk.put_secret(admin, "acme/open/new", put, rotate=True)) == BrokerCode.SECRET_UNKNOWN
    assert await outcome(desk.destroy_secret(admin, "acme/open/new", None)) == BrokerCode.SECRET_UNKNOWN


@pytest.mark.asyncio
async def test_rotation_draws_a_new_value_and_keeps_the_labels(world: World) -> None:
    admin, agent = world.settings.admins[0], await world.admitted()
    await world.put("acme/open/c", b"old", "low")
    rotated = await world.broker.administration.put_secret(admin, "acme/open/c", PutSecretRequest(), rotate=True)
    assert (rotated.version, rotated.labels) == (2, ("low",))
    permit, value = await agent.release("acme/open/c")
    assert (len(value), permit.labels) == (32, ("low",))


@pytest.mark.asyncio
async def test_every_act_of_an_administrator_is_in_the_log_with_the_key_that_did_it(world: World) -> None:
    admin = world.settings.admins[0]
    await world.broker.administration.destroy_secret(admin, "acme/open/a", 1)
    write_bundle(world.settings.bundles[0], version=2)
    await world.broker.administration.reload_policies(admin)
    entries = [json.loads(row.entry) for row in world.broker.audit.page(start=0, limit=100)]
    acts = [(entry["kind"], entry["by"]) for entry in entries if entry.get("by")]
    assert acts == [
        *[("secret.put", admin.jkt)] * 3,
        ("secret.destroyed", admin.jkt),
        ("generation.changed", admin.jkt),
    ]


def test_a_vault_opens_nothing_without_a_permit_about_it(tmp_path: Path) -> None:
    async def run() -> None:
        world = await World.make(tmp_path)
        await world.put("acme/open/a", b"value")
        agent = await world.admitted()
        broker: Broker = world.broker
        session = await broker.sessions.of_token(agent.token, broker.clock())
        permit = decide(
            session.bundle, session.verdict, ReleaseSecret("acme/open/x"), context=Context(at=broker.clock())
        )
        record = broker.store.read(lambda tx: tx.secrets.get("acme/open/a"))
        assert record is not None
        with pytest.raises(TypeError):
            broker.releases._vault.open_permitted(permit, record)
        await broker.close()

    asyncio.run(run())
