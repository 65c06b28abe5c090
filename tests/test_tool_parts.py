"""What is said about tools, and what can be one: each part alone."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, cast

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import CloisterError
from enclave import Agent, Allow, Context, Deny, Progress, ToolDescription, ToolUse, serving
from enclave.errors import Code, ToolRefused
from enclave.guards import Guards
from enclave.serving import MAX_REMEMBERED, _Answered
from enclave.tools import MAX_DESCRIPTION, ToolAnswer, ToolCall
from simulator.agent_fixture import code_of, stand_in


@dataclass
class Order:
    number: str


def described(**changes: Any) -> ToolDescription:
    members: dict[str, Any] = {
        "name": "book",
        "description": "Zoë books an order.",
        "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}},
        "output_schema": {},
        "idempotent": False,
        "streams": False,
        "needs": ("desk/key",),
    }
    return ToolDescription(**{**members, **changes})


# --- descriptions ---


def test_a_description_comes_back_from_its_text_with_the_same_digest() -> None:
    one = described()
    assert ToolDescription.parse(one.text.decode()) == one
    assert ToolDescription.parse(one.text.decode()).digest == one.digest
    assert "Zoë" in one.text.decode()


def test_every_member_of_a_description_is_in_its_digest() -> None:
    changes: list[dict[str, Any]] = [
        {"name": "booK"},
        {"description": "Zoe books an order."},
        {"input_schema": {"type": "object", "properties": {"b": {}}}},
        {"output_schema": {"type": "object"}},
        {"idempotent": True},
        {"streams": True},
        {"keyed": True},
        {"needs": ()},
    ]
    assert {name for change in changes for name in change} == {one.name for one in dataclasses.fields(ToolDescription)}
    digests = {described(**change).digest for change in changes}
    assert len(digests | {described().digest}) == len(changes) + 1


def test_a_description_has_one_spelling() -> None:
    text = described().text.decode()
    members = json.loads(text)
    meta = {**members["_meta"], "cloister/needs": ["desk/key", "desk/key"]}
    wrong = [
        "",
        "null",
        "[]",
        "{}",
        text + " ",
        json.dumps(members),
        text.replace('"book"', '"bo\\u006fk"'),
        text.replace('"annotations":', '"annotations":{},"annotations":'),
        json.dumps({**members, "more": 1}, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        json.dumps({**members, "_meta": meta}, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        text.replace('"Zoë books an order."', "5"),
        text.replace('"Zoë books an order."', '""'),
        text.replace('"Zoë books an order."', '"\\ud800"'),
        text.replace('"idempotentHint":false', '"idempotentHint":0'),
        text.replace('"outputSchema":{}', '"outputSchema":[]'),
        text.replace('"outputSchema":{}', '"outputSchema":{"x":NaN}'),
        text.replace('"outputSchema":{}', '"outputSchema":' + '{"x":' * 5000 + "{}" + "}" * 5000),
        text.replace('"book"', '"bo/ok"'),
        text.replace('"desk/key"', '"../key"'),
        text.replace("Zoë", "Zoë" * MAX_DESCRIPTION),
    ]
    for one in wrong:
        assert code_of(lambda one=one: ToolDescription.parse(one)) == Code.TOOL_DESCRIPTION, one[:80]  # type: ignore[misc]  # bound now


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(
    change=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("name", "description", "inputSchema", "outputSchema", "annotations", "_meta", "x"), _JSON
        ),
    )
)
def test_whatever_a_server_says_is_a_description_or_refused_with_a_code(change: dict[str, Any]) -> None:
    text = json.dumps({**described().to_mcp(), **change}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    read: list[bytes] = []
    code = code_of(lambda: read.append(ToolDescription.parse(text).text))
    assert read == [text.encode()] if code == "ok" else code == Code.TOOL_DESCRIPTION


# --- what can be a tool ---


async def no_words(order: Order) -> Order:
    return order


async def no_type(order) -> Order:  # type: ignore[no-untyped-def]
    """Words."""
    return Order("")


async def no_result(order: Order):  # type: ignore[no-untyped-def]
    """Words."""


async def two(first: Order, second: Order) -> Order:
    """Words."""
    return first


async def rest(*orders: Order) -> Order:
    """Words."""
    return orders[0]


async def number(order: Order) -> int:
    """Words."""
    return 1


async def yields(order: Order) -> Order:  # type: ignore[misc]  # what is tested
    """Words."""
    yield order


async def stream(order: Order) -> AsyncIterator[Order | Progress]:
    """Words."""
    yield order


async def good(order: Order) -> Order:
    """Words."""
    return order


def test_what_cannot_be_a_tool_is_refused_at_once_and_says_what_would() -> None:
    agent = Agent("x")
    wrong: list[tuple[Code, Callable[[], object]]] = [
        *(
            (Code.AGENT_TOOL, lambda one=one: agent.tool(one))
            for one in (no_words, no_type, no_result, two, rest, yields)
        ),
        (Code.AGENT_TOOL, lambda: agent.tool(number)),
        (Code.AGENT_TOOL, lambda: agent.tool(name="a/b")(good)),
        (Code.AGENT_TOOL, lambda: agent.tool(needs="../x")(good)),
        (Code.AGENT_TOOL, lambda: agent.tool(keyed=True)(stream)),
        (Code.AGENT_TOOL, lambda: agent.tool(keyed=True, idempotent=lambda order: order.number)(good)),
        (Code.AGENT_HANDLER, lambda: agent.tool(deadline_s=0)(good)),
        (Code.AGENT_HANDLER, lambda: agent.before_tool(lambda ctx: Allow())),
    ]
    for code, declare in wrong:
        with pytest.raises(CloisterError) as caught:
            declare()
        assert caught.value.code == code
        assert caught.value.remedy in str(caught.value)
    assert agent.tools == {}
    agent.tool(good)
    agent.tool(stream)
    assert code_of(lambda: agent.tool(good)) == Code.AGENT_TOOL
    assert agent.tools["stream"].output_schema["properties"]["items"]["items"]["title"] == "Order"


@dataclass
class Everything:
    text: str
    raw: bytes
    at: datetime
    some: list[int]
    by: dict[str, float]
    either: Order | None
    word: Literal["a", "b"]


class Modelled(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1)


async def everything(one: Everything) -> Modelled:
    """Words."""
    return Modelled(count=1)


def test_whoever_knows_json_schema_sees_the_same_arguments_and_results_fit() -> None:
    schemas = pytest.importorskip("jsonschema_rs")
    agent = Agent("x")
    agent.tool(everything)
    agent.tool(stream)
    shown = {name: tool.to_mcp() for name, tool in agent.tools.items()}
    value = Everything("é", b"x", datetime(2026, 1, 1, tzinfo=UTC), [1], {"x": 0.5}, None, "a")
    good = json.loads(agent.message_type(Everything).encode(value))["data"]
    takes = schemas.validator_for(shown["everything"]["inputSchema"])
    assert takes.is_valid(good)
    changes: list[dict[str, Any]] = [{"text": 5}, {"some": ["1"]}, {"either": {}}, {"word": "c"}, {"more": 1}]
    for change in changes:
        assert not takes.is_valid({**good, **change})
        body = json.dumps({"schema": agent.message_type(Everything).digest, "data": {**good, **change}})
        assert code_of(lambda body=body: agent.message_type(Everything).decode(body.encode())) == Code.MESSAGE_SCHEMA  # type: ignore[misc]  # bound now
    returns = schemas.validator_for(shown["everything"]["outputSchema"])
    assert (returns.is_valid({"count": 1}), returns.is_valid({"count": 0})) == (True, False)
    assert schemas.validator_for(shown["stream"]["outputSchema"]).is_valid({"items": [{"number": "A"}]})


def test_what_stands_in_for_a_tool_is_described_as_the_tool_is() -> None:
    agent = Agent("x")
    agent.tool(good)
    agent.tool(stream)
    double = stand_in(agent, good=lambda order: order)
    assert {name: tool.digest for name, tool in double.tools.items()} == {"good": agent.tools["good"].digest}
    assert code_of(lambda: stand_in(agent, stream=lambda order: order)) == Code.AGENT_TOOL


# --- hooks ---


def test_all_hooks_are_asked_until_one_denies_and_each_is_shown_arguments_of_its_own() -> None:
    guards, asked = Guards("before_tool"), []

    @guards.add
    async def first(ctx: Context, use: ToolUse) -> Allow:
        asked.append(use.arguments.number)
        use.arguments.number = "changed"
        return Allow()

    @guards.add
    def second(ctx: Any, use: ToolUse) -> Deny:
        asked.append(use.arguments.number)
        return Deny("no.more")

    @guards.add
    async def third(ctx: Context, use: ToolUse) -> Allow:
        asked.append("third")
        return Allow()

    with pytest.raises(ToolRefused) as caught:
        asyncio.run(guards.ask(_context(), _use))
    assert (caught.value.code, caught.value.detail) == (Code.TOOL_DENIED, "no.more")
    assert asked == ["A", "A"]


def test_a_hook_that_says_it_was_cancelled_denies_and_one_that_was_does_not_answer() -> None:
    guards = Guards("before_tool")

    @guards.add
    async def own(ctx: Context, use: ToolUse) -> Allow:
        raise asyncio.CancelledError

    assert code_of(lambda: asyncio.run(guards.ask(_context(), _use))) == Code.TOOL_HOOK

    async def cancelled() -> None:
        waiting = Guards("before_tool")
        begun = asyncio.Event()

        @waiting.add
        async def hang(ctx: Context, use: ToolUse) -> Allow:
            begun.set()
            await asyncio.Event().wait()
            return Allow()

        task = asyncio.create_task(waiting.ask(_context(), _use))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def _use() -> ToolUse:
    return ToolUse(server="s", tool="t", digest="", caller=None, arguments=Order("A"), labels=frozenset(), key="")


def _context() -> Context:
    return Context(SimpleNamespace())


# --- what is remembered ---


def test_a_caller_with_many_keys_makes_nobody_else_s_forgotten() -> None:
    known, answer = _Answered(), ToolAnswer(tool="", kind="result", code="", text="")
    call = ToolCall(pin="", key="", arguments="")

    def begin(subject: str, key: str) -> ToolAnswer | None:
        ctx: Any = SimpleNamespace(peer=SimpleNamespace(subject=subject))
        once = known.under(key, ctx, call)
        before, once.answer = once.answer, answer
        return before

    begin("modest", "only")
    for number_ in range(MAX_REMEMBERED + 50):
        begin("many", str(number_))
    assert begin("modest", "only") is answer
    assert begin("many", str(MAX_REMEMBERED + 49)) is answer
    assert sum(map(len, known._known.values())) == MAX_REMEMBERED


def test_large_answers_of_one_caller_are_forgotten_and_what_does_harm_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "MAX_OCTETS", 100)
    answered = _Answered()
    call = ToolCall(pin="", key="", arguments="")

    def done(subject: str, key: str, octets: int) -> Any:
        ctx = cast("Any", SimpleNamespace(peer=SimpleNamespace(subject=subject)))
        once = answered.under(key, ctx, call)
        if not once.begun:
            once.begun, once.answer = True, ToolAnswer(tool="", kind="result", code="", text="x" * octets)
        answered.keep(key, ctx, once)
        return once

    quiet = done("quiet", "one", 30)
    greedy = [done("greedy", str(number), 40) for number in range(4)]
    assert [one.answer is None for one in greedy] == [True, True, True, False]
    assert done("quiet", "one", 0) is quiet
    assert quiet.answer is not None
    assert done("greedy", "0", 0) is greedy[0]
    assert greedy[0].begun
    assert answered._octets == {"quiet": 30, "greedy": 40}
