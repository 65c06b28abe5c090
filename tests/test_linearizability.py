"""Releases, revocations, leases and nonces under concurrent clients look as if they had happened one after the other.

The broker is the real one, on its durable store; clients are threads. A checker that finds nothing proves little, so
three mistakes are planted, one after the other, and it must find each.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError
from broker.challenges import Claim, Once
from broker.errors import BrokerError
from broker.generation import Generation
from broker.sessions import Sessions
from broker.wire.bodies import PutSecretRequest
from broker.wire.errors import WireError
from broker.wire.leases import AckRequest, Nak
from policies.errors import Refused
from tests.broker_world import Agent, World
from tests.linearizability import History, Operation, linearizable, message, nonce, rights, secret

T = TypeVar("T")
CLIENTS = 6
BOX = "acme/mail/b"


class Live:
    """A world in an event loop of its own; any thread may call it."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.world = self.run(World.make(folder, database=True))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def ok(self, work: Callable[[], Coroutine[Any, Any, object]]) -> str:
        try:
            self.run(work())
        except (AttestationError, BrokerError, Refused, WireError):
            return "refused"
        return "ok"

    def close(self) -> None:
        self.run(self.world.broker.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path)
    made.run(made.world.put("acme/open/a", b"value"))
    yield made
    made.close()


def together(works: list[Callable[[], object]]) -> None:
    """Each in a thread of its own, all starting at once."""
    gate = threading.Barrier(len(works))

    def start(work: Callable[[], object]) -> None:
        gate.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(start, work) for work in works]:
            done.result()


# ── histories ──────────────────────────────────────────────────────────────────────────────────────────────────────


def nonce_history(live: Live) -> History:
    """Everybody sends the very same evidence."""
    history, request = History(), live.world.agent().request()

    def use(client: int) -> bool:
        return live.ok(lambda: live.world.broker.admission.attest(request)) == "ok"

    together([partial(history.note, c, "consume", None, partial(use, c)) for c in range(CLIENTS)])
    return history


def rights_history(live: Live, seed: int) -> History:
    """Some have secrets released to one agent, some renew its admission, one revokes it in between."""
    history, world, draw = History(), live.world, random.Random(seed)
    agent: Agent = live.run(world.admitted())
    admin = world.settings.admins[0]

    def release(client: int) -> None:
        history.note(client, "release", None, lambda: live.ok(lambda: agent.release("acme/open/a")))

    def renew(client: int) -> None:
        request = agent.request()
        history.note(client, "attest", None, lambda: live.ok(lambda: world.broker.admission.attest(request)))

    def revoke(client: int) -> None:
        release(client)
        history.note(
            client,
            "revoke",
            None,
            lambda: live.run(world.broker.administration.revoke(admin, agent.subject, "test")),
        )
        renew(client)
        release(client)

    def acts(client: int) -> None:
        for _ in range(3):
            draw.choice((release, renew))(client)

    together([partial(revoke, 0), *(partial(acts, c) for c in range(1, 4))])
    return history


def secret_history(live: Live) -> History:
    history, world = History(), live.world
    agent: Agent = live.run(world.admitted())

    def put(client: int) -> int:
        request = PutSecretRequest(value=b"v")
        admin = world.settings.admins[0]
        return live.run(world.broker.administration.put_secret(admin, "acme/open/r", request)).version

    def release(client: int) -> int:
        return live.run(agent.release("acme/open/r"))[0].version

    put(0)

    def acts(client: int) -> None:
        for name, act in (("put", put), ("release", release))[:: 1 if client % 2 else -1]:
            history.note(client, name, None, partial(act, client))

    together([partial(acts, c) for c in range(CLIENTS)])
    return history


def lease_history(live: Live, seed: int) -> History:
    """One message; its owner's threads take it, give it back, and say that it is done."""
    history, world, draw = History(), live.world, random.Random(seed)
    owner: Agent = live.run(world.admitted("owner"))
    name = f"{BOX}{seed}"
    live.run(owner.open(name))
    live.run(owner.send(owner.envelope(live.run(owner.find(name)).key), name=name))

    def receive() -> str | None:
        got = live.run(owner.receive(name, max_messages=1)).deliveries
        return got[0].lease if got else None

    def answer(request: AckRequest) -> str:
        ok = live.ok(lambda: owner.acting(lambda s: world.broker.mailboxes.acknowledge(s, name, request)))
        return "ok" if ok == "ok" else "lost"

    def acts(client: int) -> None:
        lease = history.note(client, "receive", None, receive)
        if lease is None:
            return
        if draw.random() < 0.5:
            history.note(client, "nak", lease, lambda: answer(AckRequest(nak=(Nak(lease=lease, delay_s=0),))))
        history.note(client, "ack", lease, lambda: answer(AckRequest(ack=(lease,))))
        history.note(client, "ack", lease, lambda: answer(AckRequest(ack=(lease,))))

    together([partial(acts, c) for c in range(4)])
    return history


# ── the broker is linearizable ─────────────────────────────────────────────────────────────────────────────────────


def test_a_nonce_is_consumed_once(live: Live) -> None:
    for _ in range(5):
        assert linearizable(nonce_history(live).operations, nonce, False)


def test_nothing_is_released_or_admitted_after_a_revocation(live: Live) -> None:
    for seed in range(5):
        assert linearizable(rights_history(live, seed).operations, rights, False)


def test_a_release_gives_the_newest_version(live: Live) -> None:
    assert linearizable(secret_history(live).operations, secret, 1)


def test_a_message_is_in_one_pair_of_hands(live: Live) -> None:
    for seed in range(5):
        assert linearizable(lease_history(live, seed).operations, message, "")


# ── and the checker finds planted mistakes ─────────────────────────────────────────────────────────────────────────


def test_a_nonce_consumed_twice_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Once, "first", lambda *_: True)
    monkeypatch.setattr(Claim, "settle", lambda *_: None)
    assert not linearizable(nonce_history(live).operations, nonce, False)


def test_a_release_after_a_revocation_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are believed without looking at the generation, and the transaction does not look either."""
    monkeypatch.setattr(Generation, "expect", lambda *_: None)
    original = Sessions.of_subject
    known: dict[str, Any] = {}

    async def stale(self: Sessions, subject: str, at: Any) -> Any:
        if subject not in known:
            known[subject] = await original(self, subject, at)
        return known[subject]

    monkeypatch.setattr(Sessions, "of_subject", stale)
    assert not linearizable(rights_history(live, 1).operations, rights, False)


def test_a_lost_revocation_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark is not looked at when an agent renews, so its row says `admitted` again."""
    monkeypatch.setattr("broker.admission.require_unrevoked", lambda *_: None)
    monkeypatch.setattr("broker.sessions.require_unrevoked", lambda *_: None)
    assert not linearizable(rights_history(live, 1).operations, rights, False)


def test_a_message_leased_twice_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is asked as if all leases had ended."""
    mail = type(live.world.broker.store.read(lambda tx: tx.mail))
    real = mail.lease

    def again(self: Any, *rest: Any, now_ms: int, **how: Any) -> Any:
        return real(self, *rest, now_ms=now_ms + 3_600_000 if rest else now_ms, **how)

    monkeypatch.setattr(mail, "lease", again)
    found = [linearizable(lease_history(live, seed).operations, message, "") for seed in range(3)]
    assert not all(found)


# ── the checker itself ─────────────────────────────────────────────────────────────────────────────────────────────


def op(name: str, result: Any, called: int, returned: int, argument: Any = None) -> Operation:
    return Operation(called, name, argument, result, called, returned)


def test_the_checker_knows_overlap_from_order() -> None:
    assert linearizable([], nonce, False)
    overlapping = [op("consume", False, 0, 3), op("consume", True, 1, 2)]
    assert linearizable(overlapping, nonce, False)
    in_order = [op("consume", False, 0, 1), op("consume", True, 2, 3)]
    assert not linearizable(in_order, nonce, False)
    assert not linearizable([op("consume", True, 0, 3), op("consume", True, 1, 2)], nonce, False)
    late = [op("revoke", None, 0, 1), op("release", "ok", 2, 3)]
    assert not linearizable(late, rights, False)
    assert linearizable([op("revoke", None, 0, 3), op("release", "ok", 1, 2)], rights, False)
    assert not linearizable([op("release", 2, 0, 1), op("release", 1, 2, 3), op("put", 2, 0, 9)], secret, 1)


@given(st.lists(st.sampled_from(["put", "release"]), max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_whatever_happened_one_after_the_other_is_linearizable_however_it_overlaps(
    names: list[str], draw: random.Random
) -> None:
    """Each operation's span is widened around its true moment: the true order still explains it."""
    newest, history = 1, []
    for moment, name in enumerate(names):
        newest += name == "put"
        wide = draw.randint(0, 4), draw.randint(0, 4)
        history.append(op(name, newest, 10 * moment - 10 * wide[0], 10 * moment + 5 + 10 * wide[1]))
    assert linearizable(history, secret, 1)
