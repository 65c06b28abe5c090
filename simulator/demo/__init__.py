"""`cloister demo`: the whole story in under a minute, for somebody who has never heard of TDX; then it cleans up.

Decides options and exit status: 0 when everything happened as it must, 1 when something did not, 2 for wrong usage,
128 + n after signal n. What is told is in `story`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from simulator.demo.narrator import Narrator


def main(arguments: Sequence[str]) -> int:
    """Tell the story; returns the exit status."""
    parser = argparse.ArgumentParser(prog="cloister demo", description=__doc__.split(";")[0] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, nothing else")
    options = parser.parse_args(list(arguments))
    from simulator.demo.process import DemoFailed, interruption

    for number in (signal.SIGTERM, signal.SIGINT):  # first: whatever is made from here on is cleaned up
        signal.signal(number, interruption.handle)
    with interruption.held():
        from broker.commands.admin_client import AdminError
        from broker.telemetry import log_to
        from simulator.demo.story import tell
    with (
        tempfile.TemporaryDirectory(prefix="cloister-demo-") as folder,
        Path(folder, "broker.log").open("w", encoding="utf-8") as log,
    ):
        log_to(log, "DEBUG")
        try:
            tell(Narrator(as_json=options.json), Path(folder))
        except (AdminError, DemoFailed, OSError) as error:
            print(f"cloister demo: {error}", file=sys.stderr)
            return 1
    return 0
