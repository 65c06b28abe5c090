"""A broker that is killed in the middle: run as a program, it kills a child at each named point of each operation.

Each operation runs once to its end, which tells how often it passes each point.

For every (operation, point, occurrence) a copy of one prepared database is opened by a forked child, which dies by
os._exit when it gets there. Then the database is opened again, and what is found is compared with what the child was
told before it died. One line of JSON for each case; test_broker_crashes.py judges them.
"""

import asyncio
import json
import os
import shutil
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from broker import points
from broker.audit import verify_store
from broker.ports import AgentState, Transaction
from broker.store.sql import SqlFile
from broker.wire.bodies import PutSecretRequest
from broker.wire.terms import SecretTerms
from tests.broker_world import Agent, World, write_bundle

KILLED: Final = 77
SECRET, LENT, MAILBOX = "acme/open/a", "acme/open/lent", "acme/mail/b"
Operation = Callable[[World, Agent], Awaitable[Any]]


async def attest(world: World, _: Agent) -> str:
    newcomer = world.agent("newcomer")
    await newcomer.attest()
    return newcomer.subject


async def put(world: World, _: Agent) -> int:
    await world.put(SECRET, b"second")
    return 2


async def destroy(world: World, _: Agent) -> int:
    return await world.broker.administration.destroy_secret(world.settings.admins[0], SECRET, None)


async def release(world: World, agent: Agent) -> str:
    return (await agent.release(SECRET))[1].decode()


async def lend(world: World, agent: Agent) -> str:
    return (await agent.release(LENT))[1].decode()


async def revoke(world: World, agent: Agent) -> str:
    await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "crash")
    return agent.subject


async def reload(world: World, _: Agent) -> int:
    write_bundle(world.settings.bundles[0], version=2)
    await world.broker.administration.reload_policies(world.settings.admins[0])
    return 2


async def send(world: World, agent: Agent) -> int:
    found = await agent.find(MAILBOX)
    await agent.send(agent.envelope(found.key), name=MAILBOX)
    return 2


async def receive(world: World, agent: Agent) -> int:
    return len((await agent.receive(MAILBOX)).deliveries)


OPERATIONS: Final[dict[str, Operation]] = {
    "attest": attest,
    "put": put,
    "destroy": destroy,
    "release": release,
    "lend": lend,
    "revoke": revoke,
    "reload": reload,
    "send": send,
    "receive": receive,
}


async def prepared(folder: Path) -> tuple[World, Agent]:
    """One agent with a mailbox, one message in it, two secrets."""
    world = await World.make(folder, database=True)
    await world.put(SECRET, b"first")
    terms = SecretTerms(lease_s=60)
    request = PutSecretRequest(value=b"lent", terms=terms)
    await world.broker.administration.put_secret(world.settings.admins[0], LENT, request)
    agent = await world.admitted()
    await agent.open(MAILBOX)
    await agent.send(agent.envelope((await agent.find(MAILBOX)).key), name=MAILBOX)
    await world.broker.close()
    return world, agent


def copied(world: World, folder: Path) -> None:
    """The world's settings now point at a copy of everything in `folder`."""
    source = world.settings.database
    assert source is not None
    shutil.copytree(source.parent, folder)
    bundles = tuple(folder / bundle.name for bundle in world.settings.bundles)
    world.settings = replace(world.settings, database=folder / source.name, bundles=bundles)


def child(world: World, agent: Agent, operation: str, point: str, occurrence: int, told: int) -> None:
    """Never returns. Writes what it was answered to `told`, if it lives that long."""
    passed = dict.fromkeys(points.POINTS, 0)

    def reached(name: str) -> None:
        passed[name] += 1
        if name == point and passed[name] == occurrence:
            os._exit(KILLED)

    async def run() -> None:
        await world.restart()
        await world.broker.sessions.of_subject(agent.subject, world.broker.clock())  # judged anew, once after a start
        points.set_hook(reached)
        answer = await OPERATIONS[operation](world, agent)
        os.write(told, json.dumps({"answer": answer, "passed": passed}).encode())
        os._exit(0)

    try:
        asyncio.run(run())
    except BaseException:  # noqa: BLE001  # told on stderr; the parent sees a child that was neither killed nor done
        traceback.print_exc()
    finally:
        os._exit(1)


async def found(world: World, agent: Agent) -> dict[str, Any]:
    """What the next start sees."""
    await world.restart()
    try:
        broker, kinds = world.broker, world.kinds()

        def look(tx: Transaction) -> dict[str, Any]:
            first, record = tx.secrets.get(SECRET), tx.agents.get(agent.subject)
            lease = tx.releases.lease(LENT, 1, agent.subject)
            return {
                "version": first.version if first else 0,
                "destroyed": bool(first and first.destroyed),
                "state": str(record.state) if record else "",
                "revoked": tx.marks.get(f"revoked/{agent.subject}") is not None,
                "admitted": [item.subject for item in tx.agents.page() if item.state is not AgentState.REVOKED],
                "policy": int((tx.marks.get("policy/acme") or "0").split(" ")[0]),
                "released": [row.entry for row in tx.releases.page()],
                "lent": lease is not None,
                "waiting": tx.mail.waiting(MAILBOX),
            }

        seen = broker.store.read(look)
        log_key = broker.identity.log_key
    finally:
        await world.broker.close()
    assert world.settings.database is not None
    verify_store(SqlFile(world.settings.database), log_key)
    return seen | {"kinds": kinds}


def one(world: World, agent: Agent, folder: Path, operation: str, point: str, occurrence: int) -> dict[str, Any]:
    copied(world, folder)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(world, agent, operation, point, occurrence, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    case: dict[str, Any] = {"operation": operation, "point": point, "occurrence": occurrence}
    case |= {"status": os.waitstatus_to_exitcode(status), "told": json.loads(told) if told else None}
    return case | {"found": asyncio.run(found(world, agent))}


def main(folder: Path) -> None:
    world, agent = asyncio.run(prepared(folder / "template"))
    template = world.settings
    for operation in OPERATIONS:
        world.settings = template
        whole = one(world, agent, folder / operation, operation, "", 0)
        print(json.dumps(whole), flush=True)
        for point, times in whole["told"]["passed"].items():
            for occurrence in range(1, times + 1):
                world.settings = template
                case = one(world, agent, folder / f"{operation}-{point}-{occurrence}", operation, point, occurrence)
                print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
