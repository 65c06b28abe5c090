"""How things are timed and shown. Decides nothing about what is measured.

Compared things take turns within one run, so that a slow moment of the machine hits all of them. The figure is a
median, and the bar is mostly a ratio. Processor time of the thread is counted where one thread does the work, else
wall time.
"""

import gc
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

Clock = Callable[[], int]
thread_ns: Clock = time.thread_time_ns
wall_ns: Clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `met` is None where there is no bar, or where nothing could be measured."""

    name: str
    figure: str
    bar: str = ""
    met: bool | None = None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return "" if self.met is None else ("met" if self.met else "NOT MET")


class PartMissing(Exception):
    """Something that a row needs is not there; the message names it."""


def take_turns(
    candidates: dict[str, Callable[[], object]], *, rounds: int, burst: int = 1, clock: Clock = thread_ns
) -> dict[str, float]:
    """Median seconds of one call of each candidate; each gets a burst of calls in every round, in changing order."""
    names = list(candidates)
    for name in names:
        candidates[name]()
    taken: dict[str, list[int]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call = candidates[name]
                start = clock()
                for _ in range(burst):
                    call()
                taken[name].append((clock() - start) // burst)
    finally:
        gc.enable()
    return {name: median(times) / 1e9 for name, times in taken.items()}


def ratio_row(name: str, measured: float, compared: float, bar: float, *, against: str) -> Row:
    """Met when `measured` is at most `bar` times `compared`; both in seconds."""
    ratio = measured / compared
    return Row(
        name=name,
        figure=f"{ratio:.2f} × ({micro(measured)} against {micro(compared)})",
        bar=f"≤ {bar:g} × {against}",
        met=ratio <= bar,
        values={"ratio": ratio, "measured_s": measured, "compared_s": compared},
    )


def faster_row(name: str, measured: float, compared: float, times: float, *, than: str) -> Row:
    """Met when `measured` is at least `times` faster than `compared`; both in seconds."""
    factor = compared / measured
    return Row(
        name=name,
        figure=f"{factor:.1f} × faster ({micro(measured)} against {micro(compared)})",
        bar=f"≥ {times:g} × faster than {than}",
        met=factor >= times,
        values={"factor": factor, "measured_s": measured, "compared_s": compared},
    )


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def memory_mib() -> tuple[float, float]:
    """Of this process: memory in use, and its peak since it began. From /proc, because getrusage inherits a peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    now, peak = (int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def show(rows: Iterable[Row]) -> str:
    """The table as text."""
    lines = [(row.name, row.figure, row.bar, row.answer) for row in rows]
    header = ("what", "figure", "bar", "")
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in [header, *lines]
    )


def write(rows: list[Row], path: Path, **about: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
