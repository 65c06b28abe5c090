"""An agent that was taken over: it calls everything and leaks what it reads. Nothing comes of it, and the log says why.

T13 ask for another's secret; T14 leak what it may read; T15 speak in another's name.
"""

import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enclave import Agent, Context
from policies.scaffold import starter
from simulator.agent_fixture import Agents, AgentUnderTest, code_of
from simulator.broker_fixture import BrokerUnderTest
from simulator.hostile import HostileAgent
from simulator.machine import Machine

RULES = """
@id("admit")
permit (principal, action == Action::"Admit", resource == Tenant::"lab") when { principal.simulated };

@id("open-reports")
permit (principal, action == Action::"ReleaseSecret", resource in Path::"lab/open") when { principal.simulated };

@id("mail")
permit (principal, action in [Action::"Send", Action::"Receive"], resource in Path::"lab/mail")
when { principal.simulated };

@id("restricted-stays-inside")
forbid (principal, action in [Action::"Send", Action::"CallTool"], resource)
when { resource.labels.contains("restricted") }
unless { resource in Path::"lab/mail/review" };
"""
LEAK = "the report says so"


@dataclass
class Note:
    text: str


@dataclass
class World:
    broker: BrokerUnderTest
    agents: Agents
    hostile: HostileAgent
    victim: AgentUnderTest
    outside: list[str]
    review: queue.SimpleQueue[tuple[str, frozenset[str]]]

    def denials(self) -> list[dict[str, Any]]:
        """What the log says of refusals to the hostile agent."""
        rows = self.broker.broker.audit.page(start=0, limit=1000, subject=self.hostile.subject)
        found = [json.loads(row.entry) for row in rows]
        return [entry for entry in found if "refused" in entry["kind"]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    machine = Machine.create(seed="hostile")
    files = {**starter("lab", at=machine.clock.now()), "policy.cedar": RULES.encode()}
    bundle = {name: text for name, text in files.items() if not name.startswith("tests/")}
    outside, review = Agent("outside"), Agent("lab/mail/review/desk")
    heard: list[str] = []
    reviewed: queue.SimpleQueue[tuple[str, frozenset[str]]] = queue.SimpleQueue()

    @outside.on_message(Note)
    async def hear(ctx: Context, note: Note) -> Note:
        heard.append(note.text)
        return note

    @outside.on_topic("news", Note)
    async def read(ctx: Context, note: Note) -> None:
        heard.append(note.text)

    @review.on_message(Note)
    async def check(ctx: Context, note: Note) -> None:
        reviewed.put((note.text, ctx.labels))

    with BrokerUnderTest(machine, tmp_path, bundle=bundle) as broker, Agents(broker) as agents:
        broker.put_secret("lab/open/report", LEAK.encode(), labels=["restricted"])
        broker.put_secret("lab/closed/key", b"nobody's business")
        victim = agents.start(outside)
        agents.start(review)
        hostile = agents.add(HostileAgent(agents, Agent("hostile"), machine.launch("hostile")))
        yield World(broker, agents, hostile, victim, heard, reviewed)


NAMES = [
    "lab/closed/key",
    "lab/open/../closed/key",
    "lab/open/%2e%2e/closed/key",
    "LAB/closed/key",
    "lab/closed/key ",
    "other/closed/key",
    "lab/open",
    "",
]


def test_t13_another_s_secret_is_not_released_under_any_name(world: World) -> None:
    outcomes = {name: code_of(lambda name=name: world.hostile.secret(name)) for name in NAMES}  # type: ignore[misc]  # bound now
    assert not {"ok", "internal.error"} & set(outcomes.values()), outcomes


def test_t13_a_refused_release_is_explained_in_the_log(world: World) -> None:
    assert code_of(lambda: world.hostile.secret("lab/closed/key")) == "policy.refused"
    denial = world.denials()[-1]
    assert denial["resource"] == "lab/closed/key"
    assert denial["reasons"]


def test_t14_what_was_read_leaves_by_no_door(world: World) -> None:
    hostile = world.hostile
    assert hostile.ask("outside", Note(text="before"), Note) == Note(text="before")  # it may write, until it has read
    text = hostile.secret("lab/open/report").text()
    leak, box = Note(text=text), "lab/mail/outside"
    runtime = hostile.agent.running
    body = hostile.agent.message_type(Note).encode(leak)
    outcomes = {
        "send": code_of(lambda: hostile.send("outside", leak)),
        "ask": code_of(lambda: hostile.ask("outside", leak, Note)),
        "again, on a channel": code_of(lambda: hostile.send("outside", leak)),
        "without labels": hostile.send_raw(box, body),
        "with another label": hostile.send_raw(box, body, labels=("public",)),
        "as a large payload": code_of(lambda: hostile.send("outside", Note(text=text * 20_000))),
        "to a topic": code_of(lambda: world.agents.run(hostile.agent.context().publish("news", leak))),
        "lowered by itself": code_of(
            lambda: world.agents.run(runtime.send(box, kind="Note", plaintext=body, without=frozenset({"restricted"})))
        ),
    }
    assert set(outcomes.values()) <= {"policy.refused", "policy.no_rule", "message.labels_lowered"}, outcomes
    assert world.outside == ["before"]
    assert LEAK not in "".join(world.outside)


def test_t14_the_way_that_policy_leaves_open_carries_the_label(world: World) -> None:
    text = world.hostile.secret("lab/open/report").text()
    world.hostile.send("lab/mail/review/desk", Note(text=text))
    assert world.review.get(timeout=30) == (LEAK, frozenset({"restricted"}))


def test_t14_each_attempt_is_an_explained_denial_in_the_log(world: World) -> None:
    world.hostile.secret("lab/open/report")
    for _ in range(2):
        assert code_of(lambda: world.hostile.send("outside", Note(text=LEAK))) == "policy.refused"
    found = [entry for entry in world.denials() if entry["resource"] == "lab/mail/outside"]
    assert found
    assert any("restricted-stays-inside" in str(entry["reasons"]) for entry in found)


def test_t15_nothing_that_no_policy_permits_succeeds(world: World) -> None:
    outcomes = world.hostile.attack(world.victim)
    assert {attempt: code for attempt, code in outcomes.items() if code == "ok"} == {}
    assert world.outside == []
