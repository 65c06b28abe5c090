"""`cloister sim run`: the options of a run in a sandbox, and what is said when there can be none.

Decides options and messages. Exit status and death by signal are the program's; 2 says that it was never started, as do
126 and 127 with the meaning that shells give them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

USAGE: Final = 2


def run(arguments: Sequence[str]) -> int:
    """Returns the program's exit status, or 2."""
    parser = _parser()
    line = list(arguments)
    options_end = line.index("--") if "--" in line else len(line)
    try:
        options = parser.parse_args(line[:options_end])
        program = line[options_end + 1 :]
        if not program:
            parser.error("no program: put it after --, as in `cloister sim run --machine DIR -- PROGRAM …`")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    return _run(options, program)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloister sim run",
        usage="cloister sim run --machine DIR [OPTIONS] -- PROGRAM [ARGUMENTS]...",
        description="Run any program inside a simulated TDX trust domain, with the kernel's files, QGS and dstack's "
        "socket where it expects them. Nothing protects the program: this is for development.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--machine", type=Path, required=True, metavar="DIR", help="folder of the machine; made when missing")
    add("--name", default="td", metavar="NAME", help="label of the trust domain")
    add("--platform", type=int, default=0, metavar="N", help="which of the machine's platforms; 0 is the first")
    add("--image", default="default", metavar="NAME|FILE", help="TDVF image, or a name to make one up from")
    add("--pad-to", type=int, default=0, metavar="BYTES", help="pad quotes with zeros, as some hosts do")
    add("--debug", action="store_true", help="launch with the DEBUG attribute; verifiers refuse it")
    add("--dstack", action="store_true", help="extend RTMR3 as dstack's images do at boot")
    add("--qgs-port", type=int, metavar="PORT", help="QGS on this loopback port too; 0 lets the kernel choose")
    add("--all-attributes", action="store_true", help="show auxblob and privlevel, which TDX has not")
    add("--busy", type=int, default=0, metavar="N", help="the first N reads of outblob answer EBUSY")
    add("--interfere", type=int, default=0, metavar="N", help="another process writes into the first N requests")
    add("--quiet", action="store_true", help="do not say on standard error that this is a simulation")
    return parser


def _run(options: argparse.Namespace, program: Sequence[str]) -> int:
    from attestation.errors import MalformedEvidence
    from simulator.domain import DEBUG, SEPT_VE_DISABLE
    from simulator.errors import SimulatorError
    from simulator.guest import sandbox
    from simulator.guest.tsm import Mischief
    from simulator.machine import Machine

    image = Path(options.image)
    launch: dict[str, Any] = {
        "image": image if image.is_file() else options.image,
        "pad_to": options.pad_to,
        "attributes": SEPT_VE_DISABLE | (DEBUG if options.debug else 0),
    }
    guest = sandbox.Guest(
        label=options.name,
        platform=options.platform,
        launch=launch,
        dstack=options.dstack,
        qgs_port=options.qgs_port,
        other_attributes=options.all_attributes,
        mischief=Mischief(busy=options.busy, interfere=options.interfere),
        quiet=options.quiet,
    )
    try:
        return sandbox.run(Machine.open(options.machine, create=True), program, guest)
    except sandbox.SandboxError as error:
        print(f"cloister sim run {error}", file=sys.stderr)
    except (SimulatorError, MalformedEvidence) as error:
        print(f"cloister sim run: {error}", file=sys.stderr)
    except OSError as error:
        print(f"cloister sim run: {error.filename or 'system'}: {error.strerror}", file=sys.stderr)
    return USAGE
