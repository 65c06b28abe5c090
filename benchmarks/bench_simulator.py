"""How fast the simulator quotes, and what a thousand simulated trust domains weigh."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.harness import Row, memory_mib

SECONDS = 1.5
DOMAINS = 1000


def rows() -> Iterator[Row]:
    from simulator.machine import Machine

    domain = Machine.create(seed="bench").launch("td")
    domain.quote(bytes(63) + b"\1")
    done, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        done += 1
        domain.quote(done.to_bytes(64, "big"))
    rate = done / SECONDS
    yield Row(
        name="simulated quotes", figure=f"{rate:,.0f}/s", bar="≥ 1,000/s", met=rate >= 1000, values={"per_s": rate}
    )
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_simulator"], capture_output=True, text=True, check=True
    )
    told = json.loads(child.stdout)
    yield Row(
        name=f"{DOMAINS:,} simulated trust domains",
        figure=f"{told['kib_each']:.1f} KiB each, {told['peak_mib']:.0f} MiB in all, in {told['seconds']:.2f} s",
        values=told,
    )


def _many() -> dict[str, float]:
    """Launch them in a process of their own, each with a register extended, and say what they weigh."""
    from simulator.machine import Machine

    machine = Machine.create(seed="bench")
    machine.launch("first").quote(bytes(63) + b"\1")
    before = memory_mib()[0]
    start = time.perf_counter()
    domains = [machine.launch(f"td{number}") for number in range(DOMAINS)]
    for domain in domains:
        domain.extend(3, bytes(48))
    seconds = time.perf_counter() - start
    peak = memory_mib()[1]
    return {"kib_each": (peak - before) * 1024 / DOMAINS, "peak_mib": peak, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(_many()))
