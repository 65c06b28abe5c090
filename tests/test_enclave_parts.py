"""Keys, trust file, typed messages and the replay window, each alone."""

import copy
import os
import pickle
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from attestation.errors import AttestationError
from attestation.evidence import X25519
from attestation.sealing import seal_to
from broker.wire.errors import WireError
from broker.wire.log import broker_id
from enclave.agent import Agent
from enclave.errors import MEANING, Code, EnclaveError
from enclave.keys import AgentKeys
from enclave.messages import MessageType
from enclave.replay import SIZE, Window
from enclave.trustfile import TrustFile, render
from simulator.machine import Machine

ROOT_PEM = Machine.create(seed="parts").root_pem
LOG_KEY = bytes(range(32))


def code_of(action: Any, *arguments: Any) -> str:
    try:
        action(*arguments)
    except (EnclaveError, WireError, AttestationError) as error:
        return str(error.code)
    return "ok"


# --- errors ---


def test_every_code_has_a_meaning_and_a_remedy() -> None:
    assert set(MEANING) == set(Code)
    assert all(what and remedy for what, remedy in MEANING.values())


# --- keys ---


def test_keys_have_no_repr_and_cannot_be_pickled_or_copied() -> None:
    keys = AgentKeys.generate()
    assert repr(keys) == f"AgentKeys(jkt={keys.jkt!r})"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(keys)


@pytest.mark.parametrize("suite", ["mlkem768-x25519", X25519])
def test_what_is_sealed_to_an_agent_opens_only_with_its_key_and_context(suite: str) -> None:
    keys, other = AgentKeys.generate(suite), AgentKeys.generate(suite)
    blob = seal_to(suite, keys.sealing_key, b"text", info=b"context").blob
    assert keys.open(blob, b"context") == b"text"
    assert code_of(keys.open, blob, b"another") == "sealing.open_failed"
    assert code_of(other.open, blob, b"context") == "sealing.open_failed"


def test_destroyed_keys_are_of_no_use() -> None:
    keys = AgentKeys.generate()
    keys.destroy()
    assert code_of(keys.sign, b"message") == Code.KEYS_DEAD
    assert code_of(keys.open, b"", b"") == Code.KEYS_DEAD


def test_the_child_of_a_fork_holds_no_keys() -> None:
    keys = AgentKeys.generate()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, code_of(keys.sign, b"message").encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == Code.KEYS_DEAD.encode()
    os.close(reading)
    os.close(writing)
    assert code_of(keys.sign, b"message") == "ok"


# --- trust file ---


def trust(**changes: Any) -> bytes:
    return render(**{"tenant": "lab", "log_key": LOG_KEY, "roots_pem": (ROOT_PEM,), **changes})


def test_a_trust_file_says_whom_to_believe_and_its_digest_names_it() -> None:
    found = TrustFile.parse(trust())
    assert (found.tenant, found.broker_id, found.log_key) == ("lab", broker_id(LOG_KEY), LOG_KEY)
    assert found.digest != TrustFile.parse(trust() + b"\n").digest
    assert trust() == trust()


def test_a_trust_file_pins_tools_by_the_names_that_policies_have_for_them() -> None:
    found = TrustFile.parse(trust(tools={"lab/tools/desk/refund": "ab" * 32}))
    assert found.tool("lab/tools/desk/refund") == "ab" * 32
    assert found.tool("lab/tools/desk/other") == found.tool("") == ""
    for wrong in ({"desk/refund": "ab" * 32}, {"lab/mail/desk": "ab" * 32}, {"lab/tools/desk/refund": "AB" * 32}):
        assert code_of(TrustFile.parse, trust(tools=wrong)) == Code.TRUST_MALFORMED
    assert code_of(TrustFile.parse, trust(tools={"lab/tools/a/b": 5})) == Code.TRUST_MALFORMED


def test_toml_says_the_same_as_json() -> None:
    text = f'version = 1\ntenant = "t"\n[broker]\nid = "{broker_id(LOG_KEY).hex()}"\n[roots]\nintel = true\n'
    found = TrustFile.parse(text.encode())
    assert (found.tenant, found.broker_id, found.log_key) == ("t", broker_id(LOG_KEY), None)


BROKER = f'[broker]\nid = "{"00" * 32}"\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\xff",
        "{",
        "[1]",
        f'version = 2\ntenant = "t"\n{BROKER}[roots]\nintel = true\n',
        f'version = true\ntenant = "t"\n{BROKER}[roots]\nintel = true\n',
        f'version = 1\ntenant = "a/b"\n{BROKER}[roots]\nintel = true\n',
        f'version = 1\ntenant = "t"\n{BROKER}',
        f'version = 1\ntenant = "t"\n{BROKER}[roots]\nintel = true\npem = ["x"]\n',
        f'version = 1\ntenant = "t"\n{BROKER}[roots]\npem = ["x"]\n',
        f'version = 1\ntenant = "t"\n{BROKER}[roots]\nintel = true\nitnel = true\n',
        f'version = 1\ntenant = "t"\nextra = 1\n{BROKER}[roots]\nintel = true\n',
        'version = 1\ntenant = "t"\n[broker]\nid = "00"\n[roots]\nintel = true\n',
        f'version = 1\ntenant = "t"\n[broker]\nid = "{"00" * 32}"\nlog_key = "{"11" * 32}"\n[roots]\nintel = true\n',
        f'version = 1\ntenant = "t"\n{BROKER}[broker.reference]\nmr_td = "00"\n[roots]\nintel = true\n',
        f'version = 1\ntenant = "t"\n{BROKER}[policies]\nsigners = "x"\n[roots]\nintel = true\n',
    ],
)
def test_a_trust_file_that_is_not_exactly_right_is_refused(text: str) -> None:
    assert code_of(TrustFile.parse, text.encode("latin-1")) == Code.TRUST_MALFORMED


def test_a_missing_trust_file_is_named(tmp_path: Path) -> None:
    assert code_of(TrustFile.load, tmp_path / "none") == Code.TRUST_UNREADABLE


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_trust_file_or_refused_with_a_code(raw: bytes) -> None:
    assert code_of(TrustFile.parse, raw) == Code.TRUST_MALFORMED


# --- messages ---


class Colour(StrEnum):
    RED = "red"


@dataclass
class Inner:
    number: int
    ratio: float = 0.5


@dataclass
class Everything:
    text: str
    raw: bytes
    at: datetime
    colour: Colour
    kind: Literal["a", "b"]
    many: list[Inner]
    pair: tuple[int, ...]
    table: dict[str, bool]
    maybe: str | None
    inner: Inner = field(default_factory=lambda: Inner(number=1))


class Model(BaseModel):
    name: str
    count: int


FULL = Everything(
    text="ü",
    raw=b"\0\xff",
    at=datetime(2026, 1, 1, tzinfo=UTC),
    colour=Colour.RED,
    kind="b",
    many=[Inner(number=1, ratio=2.0)],
    pair=(1, 2),
    table={"x": True},
    maybe=None,
)


@pytest.mark.parametrize("message", [FULL, Model(name="n", count=3)], ids=["dataclass", "pydantic"])
def test_a_message_comes_back_as_it_was(message: Any) -> None:
    kind = MessageType(type(message))
    assert kind.decode(kind.encode(message)) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"schema":"x","data":{}}',
        b'{"data":{"number":1,"ratio":1.0}}',
        b'{"schema":"%s","data":{"number":1}}',
        b'{"schema":"%s","data":{"number":"1","ratio":1.0}}',
        b'{"schema":"%s","data":{"number":true,"ratio":1.0}}',
        b'{"schema":"%s","data":{"number":1.5,"ratio":1.0}}',
        b'{"schema":"%s","data":{"number":1,"ratio":1.0,"more":1}}',
        b'{"schema":"%s","data":{"number":1,"ratio":NaN}}',
        b'{"schema":"%s","data":{"number":1,"ratio":1.0},"more":1}',
        b'{"schema":"%s","data":{"number":1,"number":1,"ratio":1.0}}',
    ],
)
def test_a_body_that_is_not_exactly_of_its_type_is_refused(body: bytes) -> None:
    kind = MessageType(Inner)
    assert code_of(kind.decode, body.replace(b"%s", kind.digest.encode())) == Code.MESSAGE_SCHEMA


def test_a_value_of_the_wrong_type_is_noticed_by_its_sender() -> None:
    assert code_of(MessageType(Inner).encode, Inner(number="1")) == Code.MESSAGE_SCHEMA  # type: ignore[arg-type]  # the point
    assert code_of(MessageType(Inner).encode, FULL) == Code.MESSAGE_SCHEMA


def test_another_schema_has_another_digest() -> None:
    @dataclass
    class Changed:
        number: int
        ratio: float
        more: str

    Changed.__name__ = "Inner"
    assert MessageType(Changed).digest != MessageType(Inner).digest


@dataclass
class Endless:
    inside: "Endless | None"


@pytest.mark.parametrize("kind", [int, "Inner", object, Endless])
def test_what_cannot_be_a_message_is_refused_when_it_is_declared(kind: Any) -> None:
    assert code_of(MessageType, kind) == Code.AGENT_HANDLER


def test_handlers_are_checked_when_they_are_declared() -> None:
    agent = Agent("x")

    @agent.on_message(Inner)
    async def first(ctx: Any, message: Inner) -> None: ...

    assert code_of(agent.on_message(Inner), first) == Code.AGENT_HANDLER
    assert code_of(agent.on_message(Model), lambda ctx: None) == Code.AGENT_HANDLER
    assert code_of(agent.on_start, lambda: None) == Code.AGENT_HANDLER


# --- replay ---


def test_a_number_passes_once_in_any_order() -> None:
    window = Window()
    for seq in (1, 3, 2, 100, 50):
        assert code_of(window.check, seq, b"%d" % seq) == "ok"
        window.begin(seq, b"%d" % seq)
        assert code_of(window.check, seq, b"%d" % seq) == Code.ENVELOPE_IN_PROGRESS
        window.finish(seq)
        assert code_of(window.check, seq, b"%d" % seq) == Code.ENVELOPE_REPLAYED


def test_a_failed_handling_may_be_repeated() -> None:
    window = Window()
    window.begin(1, b"a")
    window.abandon(1)
    assert code_of(window.check, 1, b"a") == "ok"


def test_a_message_id_does_not_come_under_two_numbers() -> None:
    window = Window()
    window.begin(1, b"a")
    window.finish(1)
    assert code_of(window.check, 2, b"a") == Code.ENVELOPE_REPLAYED


@settings(max_examples=30)
@given(st.lists(st.integers(1, 4 * SIZE), min_size=1, max_size=200))
def test_no_order_of_arrival_lets_a_number_pass_twice(order: list[int]) -> None:
    window, passed = Window(), []
    for seq in order * 2:
        if code_of(window.check, seq, b"%d" % seq) == "ok":
            window.begin(seq, b"%d" % seq)
            window.finish(seq)
            passed.append(seq)
    assert len(passed) == len(set(passed))


def test_the_window_stays_small() -> None:
    window = Window()
    for seq in range(1, 20 * SIZE):
        window.begin(seq, b"%d" % seq)
        window.finish(seq)
    assert len(window._done) <= 2 * SIZE + 1
    assert len(window._ids) <= 2 * SIZE + 1
    assert code_of(window.check, 1, b"1") == Code.ENVELOPE_FORGOTTEN
