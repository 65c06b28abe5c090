"""Any order of admissions, renewals, releases, revocations, policies, recoveries, restarts and hours has one answer.

A state machine drives the real broker and a simulated machine with a moving clock, beside a model of a few values. At
the end the log must verify, an auditor must find nothing, and no secret may stand in anything that was written.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from broker.audit import verify_store
from broker.auditing import review
from tests.broker_world import Agent, World, outcome, write_bundle

T = TypeVar("T")
NAMES = st.sampled_from(["acme/open/a", "acme/open/b", "acme/shut/a"])
OPEN = 'resource in Path::"acme/open")'
VALUE = b"canary-4f1d"


@dataclass
class Known:
    """What the model knows of an agent."""

    agent: Agent
    platform: int
    ends_s: float
    revoked: bool = False


class BrokerMachine(RuleBasedStateMachine):
    agents: Bundle[Known] = Bundle("agents")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self.versions: dict[str, int] = {}
        self.destroyed: set[str] = set()
        self.top: set[str] = set()
        self.open = True
        self.policy = 1
        self.lost: set[int] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.path = Path(self._folder.name)
        self.world = self.run(World.make(self.path, database=True))
        self.run(self.world.prefetch(1))

    @property
    def now_s(self) -> float:
        return self.world.machine.clock.now().timestamp()

    def refused(self, told: str) -> bool:
        return told.startswith("refused: policy.")

    # ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(target=agents, platform=st.integers(0, 1))
    def launch(self, platform: int) -> Known:
        agent = self.world.agent(platform=platform)
        known = Known(agent=agent, platform=platform, ends_s=0)
        self.attest(known)
        return known

    @rule(known=agents)
    def attest(self, known: Known) -> None:
        told = self.run(outcome(known.agent.attest()))
        if known.platform in self.lost:
            assert told == "chain.revoked"
        elif known.revoked:
            assert told == "agent.revoked"
        else:
            assert told == "ok"
            known.ends_s = int(self.now_s) + 300

    @rule(known=agents)
    def replay(self, known: Known) -> None:
        """Whatever became of evidence, it serves once."""
        request = known.agent.request()
        self.run(outcome(known.agent.attest(request)))
        assert self.run(outcome(self.world.broker.admission.attest(request))) == "challenge.used"
        if not known.revoked and known.platform not in self.lost:
            known.ends_s = int(self.now_s) + 300

    @rule()
    def a_debug_domain_is_refused(self) -> None:
        told = self.run(outcome(self.world.agent(attributes=0x1000_0001).attest()))
        assert told in ("quote.debug", "chain.revoked")

    @rule(known=consumes(agents))
    @precondition(lambda self: True)
    def revoke(self, known: Known) -> None:
        if known.ends_s == 0:
            return  # never admitted: nobody knows it
        self.run(self.world.broker.administration.revoke(self.world.settings.admins[0], known.agent.subject, "machine"))
        known.revoked = True
        self.release(known, "acme/open/a")
        self.attest(known)

    # ── secrets ────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(name=NAMES, top=st.booleans())
    def put(self, name: str, top: bool) -> None:
        self.run(self.world.put(name, VALUE, *(["top"] if top else [])))
        self.versions[name] = self.versions.get(name, 0) + 1
        self.destroyed.discard(name)
        (self.top.add if top else self.top.discard)(name)

    @rule(name=NAMES)
    def destroy(self, name: str) -> None:
        admin = self.world.settings.admins[0]
        told = self.run(outcome(self.world.broker.administration.destroy_secret(admin, name, None)))
        assert told == ("ok" if name in self.versions else "secret.unknown")
        if name in self.versions:
            self.destroyed.add(name)

    @rule(known=agents, name=NAMES)
    def release(self, known: Known, name: str) -> None:
        told = self.run(outcome(known.agent.release(name)))
        expected = self.expected(known, name)
        assert self.refused(told) if expected == "refused" else told == expected, (told, expected)

    def expected(self, known: Known, name: str) -> str:
        if known.ends_s == 0:
            return "token.malformed"
        if self.now_s >= known.ends_s:
            return "token.expired"
        if known.revoked:
            return "agent.revoked"
        if known.platform in self.lost:
            return "agent.quarantined"
        if not self.open or not name.startswith("acme/open/") or name in self.top:
            return "refused"
        if name not in self.versions:
            return "secret.unknown"
        return "secret.destroyed" if name in self.destroyed else "ok"

    # ── the world around ───────────────────────────────────────────────────────────────────────────────────────────

    @rule(by_s=st.sampled_from([1, 59, 61, 150, 299, 301, 3600]))
    def wait(self, by_s: int) -> None:
        self.world.machine.clock.advance(by_s)

    @rule(opened=st.booleans())
    def change_policy(self, opened: bool) -> None:
        self.policy += 1
        changes = () if opened else ((OPEN, 'resource in Path::"acme/none")'),)
        write_bundle(self.path / "bundle", *changes, version=self.policy)
        self.run(self.world.broker.administration.reload_policies(self.world.settings.admins[0]))
        self.open = opened

    @rule()
    @precondition(lambda self: 1 not in self.lost)
    def lose_a_platform(self) -> None:
        self.world.machine.recover("revoke-pck", platform=1)
        assert self.run(self.world.broker.administration.refresh_collateral())
        self.lost.add(1)

    @rule()
    def restart(self) -> None:
        self.run(self.world.restart())

    @invariant()
    def rows_agree_with_the_log(self) -> None:
        if hasattr(self, "world"):
            broker = self.world.broker
            assert broker.audit.head().size == broker.store.read(lambda tx: tx.log.size())

    def teardown(self) -> None:
        if hasattr(self, "world"):
            store, log_key = self.world.broker.store, self.world.broker.identity.log_key
            verify_store(store, log_key)
            assert list(review(store, log_key, roots=self.world.machine.roots)) == []
            self.run(self.world.broker.close())
            for path in self.path.rglob("*"):
                assert not path.is_file() or VALUE not in path.read_bytes(), path
        self._loop.close()
        self._folder.cleanup()


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_any_longer_order_of_events() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    how = settings(max_examples=20, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(BrokerMachine, settings=how)
