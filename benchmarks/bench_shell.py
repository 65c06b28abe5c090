"""What a person waits for: `cloister verify` from a cold shell, and the lab."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import corpus
from benchmarks.harness import PartMissing, Row

RUNS = 11
LAB_RUNS = 3
CLOISTER = Path(sys.executable).with_name("cloister")


def rows() -> Iterator[Row]:
    if not CLOISTER.exists():
        raise PartMissing("`cloister` beside the interpreter: install the project (make setup)")
    yield _verify()
    yield _lab()


def _verify() -> Row:
    sample = corpus.load()[1][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "quote").write_bytes(sample.raw)
        (folder / "collateral.json").write_text(sample.collateral_json)
        command: list[str | Path] = [CLOISTER, "verify", folder / "quote", "--collateral", folder / "collateral.json"]
        command += ["--at", str(int(sample.at.timestamp())), "--accept", "any", "--json"]
        if sample.root_pem is not None:
            (folder / "root.pem").write_bytes(sample.root_pem)
            command += ["--root", folder / "root.pem"]
        taken = []
        for _ in range(RUNS):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            taken.append(time.perf_counter() - start)
            if done.returncode != 0:
                raise PartMissing(
                    f"`cloister verify` (exit {done.returncode}: {(done.stderr or done.stdout)[-200:]!r})"
                )
    seconds = median(taken)
    return Row(
        name="cloister verify from a cold shell",
        figure=f"{seconds * 1e3:.0f} ms (median of {RUNS})",
        bar="< 300 ms",
        met=seconds < 0.3,
        values={"seconds": seconds},
    )


def _lab() -> Row:
    taken = []
    for _ in range(LAB_RUNS):
        with tempfile.TemporaryDirectory() as name:
            start = time.perf_counter()
            command = [str(CLOISTER), "lab", "--json", "--dir", f"{name}/lab"]
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as lab:
                assert lab.stdout is not None
                line = lab.stdout.readline()
                taken.append(time.perf_counter() - start)
                lab.send_signal(signal.SIGTERM)
                lab.wait(30)
        if not line.startswith(b"{"):
            raise PartMissing("`cloister lab --json`")
        json.loads(line)
    seconds = median(taken)
    return Row(
        name="cloister lab until it serves",
        figure=f"{seconds:.2f} s (median of {LAB_RUNS})",
        values={"seconds": seconds},
    )
