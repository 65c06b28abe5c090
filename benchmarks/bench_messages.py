"""Sealed, durable, policy-checked messages of 1 KiB, counted from send until their removal is durable.

Three processes: senders, receivers, and `cloister lab` with its broker as it is served (fsync for every commit). The
end is read from the database: no parcel is left. Beside it: what the cryptography alone costs, NATS JetStream through
nats-py with every write synced, and plain grpcio streaming, unsealed and kept nowhere. All share the machine's
processors; the broker's own processor time is printed, its event loop and everything else (the writer) apart.
"""

import logging
import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import beside, mailroom
from benchmarks.bench_broker import running_lab
from benchmarks.harness import PartMissing, Row
from benchmarks.mailroom import Order

ONE_PAIR, ALL_PAIRS, PER_PAIR, DURABLE = 60_000, 100, 600, 30_000
PACED, PACE_PER_S = 1_000, 200.0
BAR_PER_S = 30_000
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run took. Times in seconds; `loop` and `rest` are the broker's processor time."""

    messages: int
    wall: float
    accepted: float
    loop: float
    rest: float
    senders: float
    receivers: float
    p50: float
    p99: float

    @property
    def per_s(self) -> float:
        return self.messages / self.wall


def rows() -> Iterator[Row]:
    logging.getLogger("cloister").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name, running_lab(Path(name)) as told:
        warm = run(told, Order(told=told, pairs=1, count=2_000, name="warm"))
        assert warm.messages
        one = run(told, Order(told=told, pairs=1, count=ONE_PAIR, name="one"))
        yield _row("one pair", one, bar=True)
        yield _row(f"{ALL_PAIRS} pairs", run(told, Order(told=told, pairs=ALL_PAIRS, count=PER_PAIR, name="all")))
        kept = Order(told=told, pairs=1, count=DURABLE, name="kept", durable=True)
        yield _row("durable mailbox, one pair", run(told, kept))
        paced = run(told, Order(told=told, pairs=1, count=PACED, per_s=PACE_PER_S, name="paced"))
        yield Row(
            name=f"latency from send to handler, one pair, {PACE_PER_S:.0f}/s",
            figure=f"p50 {paced.p50 * 1e3:.1f} ms, p99 {paced.p99 * 1e3:.1f} ms",
            values={"p50_s": paced.p50, "p99_s": paced.p99},
        )
    yield from _beside(one.per_s)


def _beside(ours: float) -> Iterator[Row]:
    each = beside.bare_crypto()
    yield _plain(
        "the bare cryptography of such a message, both ends", 1 / each, f"{each * 1e6:.1f} µs of one processor"
    )
    for always in (True, False):
        kept = "every write synced" if always else "acknowledged before it is synced: less than ours keeps"
        name = f"nats-py and JetStream's file store, one pair, {kept}"
        try:
            with beside.nats_server(always=always) as url:
                found = beside.jetstream(url)
        except PartMissing as missing:
            yield Row(name=name, figure=f"not measured: {missing}")
            continue
        bar = {"bar": "< ours", "met": found < ours} if always else {}
        yield _plain(name, found, f"ours is {ours / found:.1f} ×", **bar)
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


def run(told: dict[str, str], order: Order) -> Run:
    """Let the workers work, and watch the database until nothing is left in it."""
    spawn = multiprocessing.get_context("spawn")
    workers: list[tuple[Any, Any]] = []
    for act in (mailroom.receiver, mailroom.sender):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=act, args=(order, theirs))
        process.start()
        if ours.recv() != "ready":
            raise RuntimeError("a worker did not get ready")
        workers.append((process, ours))
    before = _processor(int(told["pid"]))
    for _, pipe in workers:
        pipe.send("go")
    received, sent = (pipe.recv() for _, pipe in workers)
    ended = _emptied(Path(told["machine"]).parent / "broker" / "broker.sqlite")
    after = _processor(int(told["pid"]))
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
    )


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
