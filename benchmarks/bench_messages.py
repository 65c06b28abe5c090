"""Sealed, durable, policy-checked messages of 1 KiB, counted from send until their removal is durable.

Three processes: senders, receivers, and `cloister lab` with its broker as it is served (fsync for every commit). The
end is read from the database: no parcel is left. Beside it: what the cryptography alone costs, NATS JetStream through
nats-py, and plain grpcio streaming, unsealed and kept nowhere. All share the machine's processors; the broker's own
processor time is printed, its event loop and everything else (the writer) apart, and beside it what its store wrote.

Not every JetStream can be told to sync each write before it is acknowledged. So it is compared at equal durability the
other way round, too: its default, with ours where commits are not synced either (see watched.py).
"""

import logging
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import beside, mailroom, newsroom
from benchmarks.bench_broker import running_lab
from benchmarks.harness import PartMissing, Row
from benchmarks.mailroom import Order
from benchmarks.watched import UNSYNCED, Counters

ONE_PAIR, ALL_PAIRS, PER_PAIR, FEWER = 60_000, 100, 600, 30_000
PACED, PACE_PER_S = 1_000, 200.0
BAR_PER_S = 30_000
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run took. Times in seconds; `loop` and `rest` are the broker's processor time, `wrote` is its store's
    part, in `batches` parcels."""

    messages: int
    wall: float
    accepted: float
    loop: float
    rest: float
    senders: float
    receivers: float
    p50: float
    p99: float
    batches: int
    wrote: Counters

    @property
    def per_s(self) -> float:
        return self.messages / self.wall

    @property
    def busy(self) -> float:
        """Of all processors, the part that these processes used."""
        return (self.loop + self.rest + self.senders + self.receivers) / (self.wall * (os.cpu_count() or 1))


def rows() -> Iterator[Row]:
    logging.getLogger("cloister").setLevel(logging.ERROR)
    with _lab() as told:
        one = run(told, Order(told=told, pairs=1, count=ONE_PAIR, name="one"))
        yield _row("one pair", one, bar=True)
        yield _spent("one pair", one)
        every = run(told, Order(told=told, pairs=ALL_PAIRS, count=PER_PAIR, name="all"))
        yield _row(f"{ALL_PAIRS} pairs", every)
        yield _spent(f"{ALL_PAIRS} pairs", every)
        kept = Order(told=told, pairs=1, count=FEWER, name="kept", durable=True)
        yield _row("durable mailbox, one pair", run(told, kept))
        paced = run(told, Order(told=told, pairs=1, count=PACED, per_s=PACE_PER_S, name="paced"))
        yield Row(
            name=f"latency from send to handler, one pair, {PACE_PER_S:.0f}/s",
            figure=f"p50 {paced.p50 * 1e3:.1f} ms, p99 {paced.p99 * 1e3:.1f} ms",
            values={"p50_s": paced.p50, "p99_s": paced.p99},
        )
        yield from newsroom.rows(told)
    with _lab(UNSYNCED) as told:
        unsynced = run(told, Order(told=told, pairs=1, count=FEWER, name="unsynced"))
        yield _row("one pair, our commits not synced (for comparison; no broker can be set so)", unsynced)
    yield from _beside(one.per_s, unsynced.per_s)


@contextmanager
def _lab(*how: str) -> Iterator[dict[str, str]]:
    """A lab that is warm, and where its counters stand."""
    with tempfile.TemporaryDirectory() as name:
        counters = str(Path(name) / "counters")
        with running_lab(Path(name), sys.executable, "-m", "benchmarks.watched", counters, *how) as lab:
            told = {**lab, "counters": counters}
            run(told, Order(told=told, pairs=1, count=2_000, name="warm"))
            yield told


def _beside(ours: float, unsynced: float) -> Iterator[Row]:
    each = beside.bare_crypto()
    yield _plain(
        "the bare cryptography of such a message, both ends", 1 / each, f"{each * 1e6:.1f} µs of one processor"
    )
    for always, kept, equal in (
        (True, "every write synced", ours),
        (False, "its default: acknowledged before it is synced", unsynced),
    ):
        name = f"nats-py and JetStream's file store, one pair, {kept}"
        try:
            with beside.nats_server(always=always) as url:
                found = beside.jetstream(url)
        except PartMissing as missing:
            yield Row(name=name, figure=f"not measured: {missing}")
            continue
        more = f"ours is {equal / found:.1f} × at the same durability"
        more += "" if always else f", {ours / found:.1f} × when it syncs every commit"
        yield _plain(name, found, more, bar="< ours at the same durability", met=found < equal)
    found = beside.plain_grpc()
    yield _plain("plain grpcio streams, one by one, unsealed, kept nowhere", found, f"ours is {ours / found:.1f} ×")


def _plain(name: str, per_s: float, more: str, **bar: Any) -> Row:
    return Row(name=name, figure=f"{per_s:,.0f}/s ({more})", values={"per_s": per_s}, **bar)


def _row(name: str, found: Run, *, bar: bool = False) -> Row:
    each = 1e6 / found.messages
    broker_per_s = found.messages / (found.loop + found.rest)
    figure = (
        f"{found.per_s:,.0f}/s (the broker alone {broker_per_s:,.0f}/s per processor); "
        f"p50 {found.p50 * 1e3:.0f} ms, p99 {found.p99 * 1e3:.0f} ms; processor µs each: "
        f"broker loop {found.loop * each:.1f}, rest {found.rest * each:.1f}, "
        f"sender {found.senders * each:.1f}, receiver {found.receivers * each:.1f}"
    )
    return Row(
        name=f"sealed durable messages, 1 KiB, {name}",
        figure=figure,
        bar=f"≥ {BAR_PER_S:,}/s" if bar else "",
        met=found.per_s >= BAR_PER_S if bar else None,
        values={
            "per_s": found.per_s,
            "broker_per_s": broker_per_s,
            "broker_loop_us": found.loop * each,
            "broker_rest_us": found.rest * each,
            "sender_us": found.senders * each,
            "receiver_us": found.receivers * each,
            "p50_s": found.p50,
            "p99_s": found.p99,
        },
    )


def _spent(name: str, found: Run) -> Row:
    """Where the time of a run went."""
    wrote, wall = found.wrote, found.wall
    idle = max(0.0, wall - wrote.working - wrote.committing)
    figure = (
        f"processors {found.busy:.0%} busy; {found.messages / found.batches:.0f} messages in a batch, "
        f"{found.messages / wrote.commits:.0f} in a commit; row writes {wrote.rows / found.messages:.2f} each; "
        f"the writer: {wrote.working / wall:.0%} statements, {wrote.committing / wall:.0%} commits and their fsync "
        f"({wrote.committing / wrote.commits * 1e3:.1f} ms each), {idle / wall:.0%} waiting for work"
    )
    return Row(
        name=f"where the time goes, {name}",
        figure=figure,
        values={
            "busy": found.busy,
            "messages_per_batch": found.messages / found.batches,
            "messages_per_commit": found.messages / wrote.commits,
            "row_writes": wrote.rows / found.messages,
            "statements": wrote.working / wall,
            "commits": wrote.committing / wall,
        },
    )


def run(told: dict[str, str], order: Order) -> Run:
    """Let the workers work, and watch the database until nothing is left in it."""
    spawn = multiprocessing.get_context("spawn")
    workers: list[tuple[Any, Any]] = []
    for act in (mailroom.receiver, mailroom.sender):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=act, args=(order, theirs))
        process.start()
        theirs.close()  # so that its death is heard of
        if ours.recv() != "ready":
            raise RuntimeError("a worker did not get ready")
        workers.append((process, ours))
    database, counters = Path(told["machine"]).parent / "broker" / "broker.sqlite", Path(told["counters"])
    before, wrote, parcels = _processor(int(told["pid"])), Counters.read(counters), _parcels(database)
    for _, pipe in workers:
        pipe.send("go")
    received, sent = (pipe.recv() for _, pipe in workers)
    ended = _emptied(database)
    after, wrote, parcels = (
        _processor(int(told["pid"])),
        Counters.read(counters).since(wrote),
        _parcels(database) - parcels,
    )
    for process, pipe in workers:
        pipe.send("stop")
        process.join(30)
    used = [seconds - before.get(thread, 0.0) for thread, seconds in after.items()]
    loop = max(used)  # the busiest thread is the event loop's
    latencies = sorted(received["latencies"])
    return Run(
        messages=order.pairs * order.count,
        wall=ended - sent["begun"],
        accepted=sent["ended"] - sent["begun"],
        loop=loop,
        rest=sum(used) - loop,
        senders=sent["busy"],
        receivers=received["busy"],
        p50=latencies[len(latencies) // 2] / 1e9,
        p99=latencies[len(latencies) * 99 // 100] / 1e9,
        batches=parcels,
        wrote=wrote,
    )


def _parcels(database: Path) -> int:
    """How many were ever taken in."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'parcel'").fetchone()
    return int(row[0]) if row else 0


def _emptied(database: Path) -> float:
    """When no parcel is left."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    deadline = time.monotonic() + 60
    while connection.execute("SELECT count(*) FROM parcel").fetchone() != (0,):
        if time.monotonic() > deadline:
            raise RuntimeError("the queue did not empty")
        time.sleep(0.002)
    connection.close()
    return time.monotonic()


def _processor(pid: int) -> dict[str, float]:
    """Processor time of each thread of the broker."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text("ascii").rpartition(")")[2].split()
        found[task.name] = (int(fields[11]) + int(fields[12])) * TICK_S
    return found
