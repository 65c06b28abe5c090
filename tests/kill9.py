"""One process of the kill -9 test: a sender that remembers what was acknowledged, or the one that receives.

    python -m tests.kill9 sink FOLDER MESSAGES          python -m tests.kill9 sender-N FOLDER MESSAGES

What counts is on disk before anything depends on it: a sender notes a number when the broker has acknowledged it, the
receiver handles a message in one transaction with the mark that it was handled.
"""

import asyncio
import json
import os
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import CloisterError
from enclave import Agent, Context, Durable
from enclave.trustfile import TrustFile
from simulator.machine import Machine

TABLE = """
CREATE TABLE IF NOT EXISTS handled (
    place INTEGER PRIMARY KEY, sender TEXT, number INTEGER, life TEXT, attempt INTEGER, UNIQUE (sender, number)
);
CREATE TABLE IF NOT EXISTS repeated (sender TEXT, number INTEGER);
"""


@dataclass
class Item:
    sender: str
    number: int


def handled(folder: Path) -> sqlite3.Connection:
    found = sqlite3.connect(folder / "handled.sqlite", isolation_level=None, timeout=60)
    found.execute("PRAGMA journal_mode = WAL")
    found.executescript(TABLE)
    return found


def acknowledged(folder: Path, sender: str) -> int:
    """The highest number that the broker has acknowledged to this sender."""
    try:
        lines = (folder / f"{sender}.sent").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    return max((int(line) for line in lines if line.endswith("\n")), default=0)


def sink(folder: Path) -> Agent:
    agent = Agent("sink", durable=Durable(on_state_loss="redeliver", state_file=folder / "sink.state"))
    done = handled(folder)

    @agent.on_message(Item, idempotent=True)
    async def handle(ctx: Context, item: Item) -> None:
        assert ctx.peer is not None
        row = (
            item.sender,
            item.number,
            ctx.peer.subject,
            ctx.attempt,
        )  # a sender that was killed comes back as somebody else
        new = done.execute("INSERT OR IGNORE INTO handled (sender, number, life, attempt) VALUES (?, ?, ?, ?)", row)
        if not new.rowcount:
            done.execute("INSERT INTO repeated VALUES (?, ?)", (item.sender, item.number))

    return agent


def sender(name: str, folder: Path, messages: int) -> Agent:
    agent = Agent(name)

    @agent.on_start
    async def send(ctx: Context) -> None:
        with (folder / f"{name}.sent").open("a") as noted:
            number = acknowledged(folder, name) + 1
            while number <= messages:
                try:
                    await ctx.send("sink", Item(sender=name, number=number), ttl_s=3600)
                except CloisterError:  # what may have been taken in all the same is sent again, under the same number
                    await asyncio.sleep(0.1)
                    continue
                noted.write(f"{number}\n")
                noted.flush()
                number += 1
        os.kill(os.getpid(), 15)

    return agent


async def run(name: str, folder: Path, messages: int) -> None:
    agent = sink(folder) if name == "sink" else sender(name, folder, messages)
    lab = json.loads((folder / "lab.json").read_text())
    domain = Machine.open(Path(lab["machine"])).launch(name)
    trust = TrustFile.load(Path(lab["trust_file"]))
    while True:
        try:
            await agent.start(domain=domain, trust=trust, broker_url=lab["broker_url"])
            break
        except CloisterError as error:
            print(name, error.code, file=sys.stderr, flush=True)
            await asyncio.sleep(0.5)
    await agent.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
