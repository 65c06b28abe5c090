"""Stores, empty, and rows to put into them."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker.ports import AgentRecord, AgentState, SecretRecord, Store, Transaction
from broker.ports.mail import MailboxRecord, NewMessage
from broker.store.memory import MemoryStore
from broker.store.sql import SqlStore

T = TypeVar("T")
KEY = b"m" * 32


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "a.db", mac_key=KEY)
    yield made
    made.close()


def do(store: Store, work: Callable[[Transaction], T]) -> T:
    return asyncio.run(store.transact(work))


def agent(subject: str = "agent/acme/a", **changes: Any) -> AgentRecord:
    record = AgentRecord(
        subject=subject,
        tenant="acme",
        jkt="j",
        state=AgentState.ADMITTED,
        codes=(),
        evidence=b"e",
        collateral="c",
        generation=1,
        admitted_at_s=1,
        judged_at_s=1,
        expires_at_s=100,
        simulated=True,
        tcb_status="UpToDate",
    )
    return replace(record, **changes)


def secret(name: str = "acme/a", version: int = 1) -> SecretRecord:
    return SecretRecord(
        name=name, version=version, labels=("x",), created_at_s=1, wrapped_key=b"wrapped", ciphertext=b"sealed"
    )


def box(*, key: bytes = b"k1", incarnation: bytes = b"i1", epoch: int = 1) -> MailboxRecord:
    return MailboxRecord(
        name="acme/mail", owner="agent/acme/b", key=key, incarnation=incarnation, epoch=epoch, statement="{}"
    )


def message(number: int = 1, *, sender: str = "agent/acme/a", **changes: Any) -> NewMessage:
    made = NewMessage(
        mailbox="acme/mail",
        sender=sender,
        msg_id=number.to_bytes(16, "big"),
        digest=number.to_bytes(32, "big"),
        envelope=b"envelope%d" % number,
        key=b"k1",
        accepted_at_ms=1_000,
        expires_at_ms=100_000,
    )
    return replace(made, **changes)


def acknowledge(store: Store, token: str, *, now_ms: int) -> bool:
    return do(store, lambda tx: tx.mail.acknowledge("acme/mail", token, now_ms=now_ms))


def put(store: Store, record: SecretRecord) -> None:
    do(store, lambda tx: tx.secrets.put(record))
