"""Calls of tools at the broker: judged by the tool's name, whichever way they come, besides being mail."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.sessions import Session
from broker.wire.tools import call_type, tool_called, tool_name
from tests.broker_world import Agent, World, outcome
from tests.channel_world import HandMade
from tests.mail_world import change

TOOLS = """@id("tools")
permit (principal, action == Action::"CallTool", resource in Path::"acme/tools/b")
when { principal.simulated };

@id("not-the-ledger")
forbid (principal, action == Action::"CallTool", resource == Tool::"acme/tools/b/ledger");

@id("mail")"""


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(tmp_path)
    yield made
    await made.broker.close()


async def pair(world: World) -> tuple[Agent, Agent]:
    a, b = await world.admitted("a"), await world.admitted("b")
    await b.open("acme/mail/b")
    return a, b


async def call(agent: Agent, tool: str) -> str:
    key = (await agent.find("acme/mail/b")).key
    return await outcome(agent.send(agent.envelope(key, type=call_type(tool))))


def last(world: World) -> dict[str, Any]:
    (row,) = world.broker.audit.page(start=len(world.kinds()) - 1, limit=1)
    found: dict[str, Any] = json.loads(row.entry)
    return found


@pytest.mark.asyncio
async def test_a_permit_for_mail_is_none_for_a_tool(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, _ = await pair(world)
    assert await call(a, "search") == "refused: policy.no_rule"
    assert await call(a, "search") == "refused: policy.no_rule"
    (said,) = [vars(one) for one in caplog.records if one.message == "edge.refused"]  # once, as in the log of entries
    assert (said["subject"], said["resource"], said["action"]) == (a.subject, "acme/tools/b/search", "CallTool")
    assert "passes if" in said["reasons"][0]
    denial = last(world)
    assert (denial["kind"], denial["action"], denial["resource"]) == ("edge.refused", "CallTool", "acme/tools/b/search")
    assert denial["reasons"]


@pytest.mark.asyncio
async def test_tools_are_permitted_and_forbidden_one_by_one(world: World) -> None:
    await change(world, ('@id("mail")', TOOLS))
    a, _ = await pair(world)
    assert await call(a, "search") == "ok"
    entry = last(world)
    assert (entry["action"], entry["resource"], entry["tool"]) == ("Send", "acme/mail/b", "acme/tools/b/search")
    assert await call(a, "ledger") == "refused: policy.forbidden"
    assert "not-the-ledger" in str(last(world)["reasons"])


@pytest.mark.asyncio
async def test_a_permit_for_a_tool_is_none_for_mail(world: World) -> None:
    await change(world, ('@id("mail")', TOOLS))
    a, _ = await pair(world)
    no_mail = ('action in [Action::"Send", Action::"Receive"]', 'action == Action::"Receive"')
    await change(world, no_mail, ('@id("mail")', TOOLS), version=3)
    assert await call(a, "search") == "refused: policy.no_rule"
    assert (last(world)["action"], last(world)["resource"]) == ("Send", "acme/mail/b")


@pytest.mark.asyncio
async def test_who_may_neither_send_nor_call_reads_every_reason(world: World) -> None:
    a, _ = await pair(world)
    no_mail = ('action in [Action::"Send", Action::"Receive"]', 'action == Action::"Receive"')
    await change(world, no_mail, ('@id("mail")', TOOLS))
    assert await call(a, "ledger") == "refused: policy.no_rule, policy.forbidden"


@pytest.mark.asyncio
async def test_a_call_on_a_channel_is_judged_by_the_same_name(world: World) -> None:
    await change(world, ('@id("mail")', TOOLS))
    a, _ = await pair(world)
    made = HandMade(a, (await a.find("acme/mail/b")).key)
    await made.begin(b"{}", kind=call_type("search"))
    assert await outcome(made.send(made.batch(b"{}", kind=call_type("ledger")))) == "refused: policy.forbidden"
    assert last(world)["resource"] == "acme/tools/b/ledger"


@pytest.mark.asyncio
async def test_the_labels_of_what_goes_into_a_tool_decide_too(world: World) -> None:
    labelled = TOOLS.replace(
        'resource == Tool::"acme/tools/b/ledger");', 'resource)\nwhen { resource.labels.contains("pii") };'
    )
    await change(world, ('@id("mail")', labelled))
    a, _ = await pair(world)
    key = (await a.find("acme/mail/b")).key
    assert await call(a, "search") == "ok"
    laden = a.envelope(key, type=call_type("search"), labels=("pii",))
    assert await outcome(a.send(laden)) == "refused: policy.forbidden"


@pytest.mark.asyncio
async def test_what_names_no_tool_is_permitted_by_no_policy(world: World) -> None:
    await change(world, ('@id("mail")', TOOLS.replace(' in Path::"acme/tools/b"', "")))
    a, _ = await pair(world)
    for tool in ("", "a/b", "../ledger", ".hidden", "x" * 65, "a:b"):
        assert await call(a, tool) == "refused: policy.resource_name_invalid"


def test_a_tool_has_one_name_and_a_name_one_tool() -> None:
    assert tool_name("acme/mail/desk", "refund") == "acme/tools/desk/refund"
    assert tool_name("acme/mail/eu/desk", "refund") == "acme/tools/eu/desk/refund"
    for mailbox in ("acme/tools/desk", "acme/post/desk", "acme/mail", "mail/desk", "acme", ""):
        assert tool_name(mailbox, "refund") is None, mailbox
    assert tool_name("acme/mail/a/b/c/d/e", "t") == "acme/tools/a/b/c/d/e/t"
    assert tool_name("acme/mail/a/b/c/d/e/f", "t") is None  # a name has eight segments


def test_only_the_exact_beginning_of_a_type_is_a_call() -> None:
    for other in ("note", "cloister.tools.ask", "Cloister.tool:search", "cloister.tool"):
        assert tool_called("acme/mail/b", other) is None
    assert tool_called("acme/mail/b", "cloister.tool:search") == "acme/tools/b/search"


@pytest.mark.asyncio
async def test_tools_are_asked_about_at_mailboxes_alone(world: World) -> None:
    """Answers are remembered by what was asked: texts as long as a path can be would be the broker's memory."""
    a, _ = await pair(world)
    known = len(world.broker.router._edges._known)

    async def ask(name: str) -> str:
        async def asked(session: Session) -> None:
            world.broker.router.callable_tools(session, name, ("search",), world.broker.clock())

        return await outcome(a.acting(asked))

    assert [await ask(name) for name in ("acme/" + "x" * 50_000, "mail", "../b")] == ["mailbox.name_invalid"] * 3
    assert len(world.broker.router._edges._known) == known
    assert await ask("acme/mail/b") == "ok"
