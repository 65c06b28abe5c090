"""Throughput with two processes and two threads, and the memory of verifying many quotes of many platforms."""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import corpus
from benchmarks.bench_verify import known
from benchmarks.harness import Row, memory_mib

SECONDS = 2.0
QUOTES, PLATFORMS = 10_000, 100


def _count(deadline_s: float) -> int:
    """Verifications of known platforms that one worker gets done."""
    calls = [known(sample) for sample in corpus.load()[1][:4]]
    for call in calls:
        call()
    done, end = 0, time.perf_counter() + deadline_s
    while time.perf_counter() < end:
        for call in calls:
            call()
        done += len(calls)
    return done


def rows() -> Iterator[Row]:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        pool.map(_count, [0.1, 0.1])  # both workers have started and imported
        one = pool.apply(_count, (SECONDS,))
        two = sum(pool.map(_count, [SECONDS, SECONDS], chunksize=1))
    yield _against("two worker processes", two, one)
    with ThreadPoolExecutor(2) as threads:
        alone = threads.submit(_count, SECONDS).result()
        both = sum(threads.map(_count, [SECONDS, SECONDS]))
    yield _against("two threads", both, alone)
    yield _memory()


def _against(name: str, two: int, one: int) -> Row:
    rate = one / SECONDS
    return Row(
        name=f"{name} against one, known platforms",
        figure=f"{two / one:.2f} × ({two / SECONDS:,.0f}/s against {rate:,.0f}/s)",
        values={"ratio": two / one, "per_s": two / SECONDS, "one_per_s": rate},
    )


def _memory() -> Row:
    """A child process reads quotes from a file, one at a time, and verifies them with one verifier."""
    with tempfile.TemporaryDirectory() as folder:
        _write_quotes(Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_scaling", folder], capture_output=True, text=True, check=True
        )
    told = json.loads(done.stdout)
    grown = told["after_mib"] - told["before_mib"]
    return Row(
        name=f"peak memory, {QUOTES:,} quotes of {PLATFORMS} platforms",
        figure=f"{told['after_mib']:.0f} MiB in all, {grown:.1f} MiB more than before ({told['per_s']:,.0f}/s)",
        values={**told, "grown_mib": grown},
    )


def _write_quotes(folder: Path) -> None:
    from simulator.machine import Machine
    from simulator.platform import PlatformSpec

    specs = [PlatformSpec(identity=f"bench{i}", fmspc="90C06F000000") for i in range(PLATFORMS)]
    machine = Machine.create(seed="memory", platforms=specs)
    domains = [machine.launch(f"td{index}", platform=index) for index in range(PLATFORMS)]
    with (folder / "quotes").open("wb") as file:
        for number in range(QUOTES):
            raw = domains[number % PLATFORMS].quote((number + 1).to_bytes(64, "big"))
            file.write(len(raw).to_bytes(4, "big") + raw)
    (folder / "collateral").write_text(machine.collateral("tdx", "90C06F000000").to_json())
    (folder / "root.pem").write_bytes(machine.root_pem)
    (folder / "at").write_text(machine.clock.now().isoformat())


def _verify_quotes(folder: Path) -> dict[str, float]:
    from datetime import datetime

    from attestation.collateral import Collateral
    from attestation.pki import TrustRoots
    from attestation.quote import Quote
    from attestation.verifier import Verifier

    verifier = Verifier(TrustRoots.from_pem((folder / "root.pem").read_bytes()))
    collateral = Collateral.from_json((folder / "collateral").read_text())
    at = datetime.fromisoformat((folder / "at").read_text())
    before, start, number = memory_mib()[0], time.perf_counter(), 0
    with (folder / "quotes").open("rb") as file:
        while size := file.read(4):
            number += 1
            quote = Quote.parse(file.read(int.from_bytes(size, "big")))
            verifier.verify(quote, collateral, report_data=number.to_bytes(64, "big"), at=at)
    taken = time.perf_counter() - start
    return {"before_mib": before, "after_mib": memory_mib()[1], "quotes": number, "per_s": number / taken}


if __name__ == "__main__":
    print(json.dumps(_verify_quotes(Path(sys.argv[1]))))
