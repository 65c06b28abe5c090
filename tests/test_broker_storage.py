"""A disk that fails: cut inside records, bits flipped, writes lost. Detected or harmless, never silently accepted.

After each fault the broker is started, its whole log verified, every secret released to an agent that attests anew.
What got by all of that must hold exactly what the undamaged database held.
"""

import asyncio
import random
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attestation.errors import AttestationError
from broker.audit import verify_store
from broker.errors import BrokerCode, BrokerError
from broker.store.sql import SqlFile, SqlStore
from broker.wire.errors import WireError
from broker.wire.log import Checkpoint
from tests.broker_world import World, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SECRETS = {f"acme/open/s{n}": f"value {n}".encode() for n in range(4)}
# What finds releases is an index: it is checked against its own digest when it is shown, and the log is the record.
TABLES = ("mark", "secret", "log_entry", "log_node", "log_head")
FLIPS = 80


@dataclass
class Disk:
    """A closed broker's database, and what stands in it."""

    world: World
    database: bytes
    rows: dict[str, list[tuple[object, ...]]]
    folder: Path
    count: int = 0


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in TABLES}
    finally:
        connection.close()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    folder = tmp_path_factory.mktemp("storage")

    async def filled() -> World:
        world = await World.make(folder, database=True)
        for name, value in SECRETS.items():
            await world.put(name, value)
        agent = await world.admitted()
        for name in SECRETS:
            await agent.release(name)
        await world.broker.administration.revoke(world.settings.admins[0], agent.subject, "storage")
        await world.broker.close()
        return world

    world = asyncio.run(filled())
    path = folder / "broker.db"
    return Disk(world=world, database=path.read_bytes(), rows=rows(path), folder=folder)


async def used(disk: Disk, raw: bytes) -> str:
    """What becomes of a broker on this file: the code that stopped it, or "ok" with every row as it was."""
    disk.count += 1
    path = disk.folder / f"case-{disk.count}.db"
    path.write_bytes(raw)
    world = World(**{name: getattr(disk.world, name) for name in World.__dataclass_fields__})
    world.settings = replace(world.settings, database=path)
    try:
        await world.restart()
    except (AttestationError, BrokerError, WireError) as error:
        return str(error.code)
    try:
        found = rows(path)
        kept = {name: [row for row in disk.rows[name] if row not in found[name]] for name in TABLES}
        changed = [name for name in TABLES if kept[name] and name != "log_head"]
        verify_store(SqlFile(path), world.broker.identity.log_key)
        agent = await world.admitted()
        told = {name: await outcome(agent.release(name)) for name in SECRETS}
    except (AttestationError, BrokerError, WireError) as error:
        return str(error.code)
    finally:
        await world.broker.close()
        for file in disk.folder.glob(f"case-{disk.count}.db*"):
            file.unlink()
    refused = next((code for code in told.values() if code != "ok"), None)
    return refused or (f"silently changed: {', '.join(changed)}" if changed else "ok")


def judged(disk: Disk, raw: bytes) -> str:
    return asyncio.run(used(disk, raw))


def test_an_undamaged_copy_is_fine(disk: Disk) -> None:
    assert judged(disk, disk.database) == "ok"


def test_a_truncated_database_is_refused(disk: Disk) -> None:
    """At page boundaries and inside of pages."""
    size = len(disk.database)
    cuts = [size - 1, size - 100, size - 4096, size - 4097, size // 2, size // 2 + 7, 4096, 100, 17]
    for cut in cuts:
        assert judged(disk, disk.database[:cut]) not in ("ok", ""), cut


def test_an_emptied_database_shows_as_another_broker(disk: Disk) -> None:
    """Nothing on the disk can tell; whoever pinned the broker's id, or remembers a checkpoint, can."""
    before = disk.world.broker.identity.broker_id
    path = disk.folder / "empty.db"
    world = World(**{name: getattr(disk.world, name) for name in World.__dataclass_fields__})
    world.settings = replace(world.settings, database=path)
    asyncio.run(world.restart())
    assert world.broker.identity.broker_id != before
    asyncio.run(world.broker.close())


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[at] ^= 1 << bit
    return bytes(changed)


def test_no_flipped_bit_anywhere_in_the_file_is_silently_accepted(disk: Disk) -> None:
    drawn = random.Random(5)
    wrong = []
    for _ in range(FLIPS):
        at, bit = drawn.randrange(len(disk.database)), drawn.randrange(8)
        told = judged(disk, flipped(disk.database, at, bit))
        if told.startswith("silently"):
            wrong.append((at, bit, told))
    assert wrong == []


def places(disk: Disk, *needles: bytes) -> list[int]:
    """Where the bytes of these values stand in the file."""
    return [
        at + offset for needle in needles for offset in range(len(needle)) if (at := disk.database.find(needle)) >= 0
    ]


def test_each_bit_of_the_last_records_is_protected(disk: Disk) -> None:
    """The newest entry of the log, the newest secret's key and ciphertext, its labels, a revocation."""
    entry = max(disk.rows["log_entry"], key=lambda row: int(str(row[0])))
    secret = disk.rows["secret"][-1]
    mark = next(row for row in disk.rows["mark"] if str(row[0]).startswith("revoked/"))
    raw = [bytes(item) for item in (*entry, *secret, mark[2]) if isinstance(item, bytes)]
    spots = places(disk, *raw, str(mark[1]).encode())
    assert len(spots) > 200
    drawn = random.Random(7)
    for at in drawn.sample(spots, 60):
        told = judged(disk, flipped(disk.database, at, drawn.randrange(8)))
        assert told in (
            BrokerCode.LOG_TAMPERED,
            BrokerCode.ROOT_WRONG,
            BrokerCode.STORE_ROW_FORGED,
            BrokerCode.STORE_ROWS,
            BrokerCode.STORE_DAMAGED,
            BrokerCode.STORE_UNAVAILABLE,
        ), at


@pytest.mark.asyncio
async def test_a_secret_whose_labels_were_changed_does_not_open(tmp_path: Path) -> None:
    """Labels decide who may have it: a rule forbids `top`, and somebody takes the label off."""
    world = await World.make(tmp_path, database=True)
    await world.put("acme/open/top", b"value", "top")
    await world.broker.close()
    connection = sqlite3.connect(tmp_path / "broker.db")
    connection.execute("UPDATE secret SET labels = '[]'")
    connection.commit()
    connection.close()
    await world.restart()
    agent = await world.admitted()
    assert await outcome(agent.release("acme/open/top")) == BrokerCode.ROOT_WRONG
    await world.broker.close()


@pytest.mark.asyncio
async def test_writes_that_were_lost_show_to_whoever_holds_a_receipt(tmp_path: Path) -> None:
    """The write-ahead log cut anywhere: what is left is a whole earlier state, and shorter than a known checkpoint."""
    world = await World.make(tmp_path, database=True)
    await world.put("acme/open/a", b"1")
    await world.put("acme/open/a", b"2")
    known = Checkpoint.open(world.broker.audit.head().note, world.broker.audit.log_key)
    wal = tmp_path / "broker.db-wal"
    whole = wal.read_bytes()
    sizes: set[int] = set()
    codes: set[BrokerCode] = set()
    drawn = random.Random(3)
    for number in range(24):
        cut = len(whole) if number == 0 else drawn.randrange(len(whole))
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        shutil.copy(tmp_path / "broker.db", folder / "broker.db")
        (folder / "broker.db-wal").write_bytes(whole[:cut])
        try:
            store = SqlStore(folder / "broker.db", mac_key=world.root_key.derive("marks"))
        except BrokerError as error:
            codes.add(error.code)
            continue
        head = store.read(lambda tx: tx.log.head())
        store.close()
        if head is not None:
            shown = Checkpoint.open(head.note, world.broker.audit.log_key)
            assert shown.size < known.size or shown.root == known.root
            verify_store(SqlFile(folder / "broker.db"), world.broker.audit.log_key)
            sizes.add(shown.size)
    assert known.size in sizes
    assert codes <= {BrokerCode.STORE_DAMAGED}
    await world.broker.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database at all" * 400)
    with pytest.raises(BrokerError) as caught:
        SqlStore(tmp_path / "a.db", mac_key=b"k")
    assert caught.value.code is BrokerCode.STORE_DAMAGED
