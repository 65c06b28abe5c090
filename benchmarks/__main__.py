"""Runs every benchmark and prints one table; `python -m benchmarks verify shell` runs some of them.

A part that cannot be measured here prints a line that names what is missing, and counts as not measured, never as met.
"""

import platform
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import PartMissing, Row, show, write

MODULES = ("verify", "scaling", "policies", "simulator", "broker", "floor", "garbage", "fleet", "messages", "shell")
REPORT = Path("build") / "bench.json"


def _rows(name: str) -> Iterator[Row]:
    module = f"benchmarks.bench_{name}"
    if find_spec(module) is None:
        yield Row(name=name, figure=f"not measured: {module} is missing")
        return
    try:
        yield from import_module(module).rows()
    except (ImportError, PartMissing) as missing:
        yield Row(name=name, figure=f"not measured: {missing}")


def main(wanted: list[str]) -> int:
    found: list[Row] = []
    start = time.perf_counter()
    for name in wanted or MODULES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        found += _rows(name)
    print(show(found))
    seconds = time.perf_counter() - start
    met, missed = ([row.name for row in found if row.met is answer] for answer in (True, False))
    print(f"\n{len(found)} rows in {seconds:.0f} s; {len(met)} bars met, {len(missed)} not met")
    write(found, REPORT, python=platform.python_version(), machine=platform.machine(), seconds=seconds)
    print(f"written to {REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
