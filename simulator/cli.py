"""`cloister sim`: the simulated machine at the command line, kept in a folder. `lab` and `demo` start from here too.

Decides options, output and exit status: 0 fine, 2 for wrong usage and for a machine that cannot be used. Every command
opens the folder for itself, so it may run beside a lab; nothing here needs a daemon.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from simulator.ending import Ending
from simulator.errors import SimulatorCode, SimulatorError

if TYPE_CHECKING:
    from simulator.machine import Machine
    from simulator.registry import Exhibit

USAGE: Final = 2
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_NAME: Final = re.compile(r"[A-Z0-9-]{1,64}")


def sim(arguments: Sequence[str]) -> int:
    """`cloister sim …`: returns the exit status."""
    line = list(arguments)
    if line[:1] == ["run"]:
        from simulator.guest.cli import run

        return run(line[1:])
    return _guarded(_parser(), line)


def lab(arguments: Sequence[str]) -> int:
    """`cloister lab …`"""
    return _hand_on("lab", arguments)


def demo(arguments: Sequence[str]) -> int:
    """`cloister demo`"""
    return _hand_on("demo", arguments)


def _hand_on(name: str, arguments: Sequence[str]) -> int:
    """To `simulator.lab` or `simulator.demo`, which need the broker and the enclave with all that they need."""
    try:
        main: Callable[[list[str]], int] = import_module(f"simulator.{name}").main
    except ModuleNotFoundError as error:
        print(
            f"cloister {name} needs {error.name}, which is not installed: pip install 'cloister[all]'", file=sys.stderr
        )
        return USAGE
    return main(list(arguments))


def _guarded(parser: argparse.ArgumentParser, line: list[str]) -> int:
    try:
        options = parser.parse_args(line)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    carry_out: Callable[[argparse.Namespace], int] = options.carry_out
    try:
        return carry_out(options)
    except SimulatorError as error:
        print(f"cloister sim: {error}\n  what to do: {error.remedy}", file=sys.stderr)
    except BrokenPipeError:
        raise  # the caller knows what to do when nobody reads on
    except OSError as error:
        print(f"cloister sim: {error.filename or 'file'}: {error.strerror}", file=sys.stderr)
    return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloister sim", description="The simulated machine, kept in a folder.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _up_options(_command(commands, "up", _up, "make a machine, or show the one that is there"))
    _quote_options(_command(commands, "quote", _quote, "make one quote with its collateral"))
    _fault_options(_command(commands, "fault", _fault, "list the named faults"))
    _pcs_options(_command(commands, "pcs", _pcs, "serve the machine's collateral under Intel's URLs"))
    _recover_options(_command(commands, "recover", _recover, "TCB recoveries, revocations, updates, the clock"))
    commands.add_parser("run", help="run any program in a trust domain: sim run --machine DIR -- PROGRAM …")
    return parser


def _command(commands: Any, name: str, carry_out: Callable[[argparse.Namespace], int], text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(carry_out=carry_out)
    if name != "fault":
        parser.add_argument("--machine", type=Path, required=True, metavar="DIR", help="folder; made when missing")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    return parser


def _open(options: argparse.Namespace) -> Machine:
    from simulator.machine import Machine

    return Machine.open(options.machine, create=True)


# --- up ---


def _up_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", help="make it from this text: the same text gives the same machine")


def _up(options: argparse.Namespace) -> int:
    from simulator.machine import Machine

    machine = Machine.create(options.machine, seed=options.seed) if options.seed else _open(options)
    _show(options, _description(machine))
    return 0


def _description(machine: Machine) -> dict[str, Any]:
    ledger = machine.ledger()
    return {
        "machine": str(machine.path),
        "simulated": True,
        "root_pem": str(machine.path / "root.pem") if machine.path else None,
        "root_sha256": machine.root_sha256,
        "clock": machine.clock.now().isoformat(timespec="seconds"),
        "clock_moved": machine.clock.moved,
        "evaluation_sets": {channel: ledger.current(channel).number for channel in ("early", "standard")},
        "platforms": [
            {"index": index, "ppid": platform.ppid.hex(), **platform.spec.to_dict()}
            for index, platform in enumerate(machine.platforms)
        ],
    }


# --- quote ---


def _quote_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report-data", type=_report_data, required=True, metavar="HEX", help="64 bytes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the quote goes")
    parser.add_argument("--collateral-out", type=Path, metavar="FILE", help="where its collateral goes")
    parser.add_argument("--root-out", type=Path, metavar="PEM", help="where the machine's root goes")
    parser.add_argument("--event-log-out", type=Path, metavar="FILE", help="where the event log (CCEL) goes")
    parser.add_argument("--version", type=int, choices=(4, 5), help="what the quoting enclave would choose, else")
    parser.add_argument("--body", type=int, choices=(2, 3, 4), help="TD report 1.0, 1.5, 1.5 extended")
    parser.add_argument("--fault", metavar="NAME", help="make one thing wrong; see `sim fault --list`")
    parser.add_argument("--at", type=_time, metavar="TIME", help="as of then, not of the machine's clock")
    parser.add_argument("--platform", type=int, default=0, metavar="N", help="which platform quotes; 0 is the first")
    parser.add_argument(
        "--image", default="default", metavar="NAME", help="made-up image with a measurement of its own"
    )
    parser.add_argument("--pad-to", type=int, default=0, metavar="BYTES", help="pad with zeros, as some hosts do")


def _quote(options: argparse.Namespace) -> int:
    from simulator import faults

    machine = _open(options)
    if options.fault is not None:
        _expect_form(faults.find(options.fault).forms, options)
    scene: dict[str, Any] = {
        "report_data": options.report_data,
        "at": options.at,
        "platform": options.platform,
        "version": options.version,
        "body": options.body,
        "options": {"image": options.image, "pad_to": options.pad_to, "label": "sim-quote"},
    }
    shown = faults.good(machine, **scene) if options.fault is None else faults.exhibit(machine, options.fault, **scene)
    _write(options, shown)
    summary = {"out": str(options.out), "bytes": len(shown.quote), "at": shown.at, "simulated": True}
    expected = str(faults.find(options.fault).code) if options.fault else None
    _show(options, summary | {"fault": options.fault, "code": expected})
    return 0


def _expect_form(forms: frozenset[str], options: argparse.Namespace) -> None:
    """A fault of an event log needs somewhere to put it; one of a binding has no file here at all."""
    from simulator.registry import COLLATERAL, EVENT_LOG, QUOTE

    if forms & {QUOTE, COLLATERAL} or (EVENT_LOG in forms and options.event_log_out is not None):
        return
    wanted = "ask for --event-log-out" if EVENT_LOG in forms else "it is in what an agent sends beside its quote"
    detail = f"{options.fault} has no quote or collateral form: {wanted}"
    raise SimulatorError(SimulatorCode.FAULT_FORM, detail)


def _write(options: argparse.Namespace, shown: Exhibit) -> None:
    files = {
        options.out: shown.quote,
        options.collateral_out: shown.collateral.encode(),
        options.root_out: shown.root_pem,
        options.event_log_out: shown.event_log,
    }
    for path, content in files.items():
        if path is not None:
            path.write_bytes(content)


# --- fault ---


def _fault_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", required=True, help="each fault with the code it provokes")


def _fault(options: argparse.Namespace) -> int:
    from simulator.faults import FAULTS, FORMS

    if options.json:
        listed = [
            {"name": f.name, "code": str(f.code), "what": f.what, "forms": [form for form in FORMS if form in f.forms]}
            for f in FAULTS.values()
        ]
        print(json.dumps(listed, indent=1))
        return 0
    name, code = (max(len(str(value)) for value in column) for column in zip(*_columns(), strict=True))
    for fault in FAULTS.values():
        print(f"{fault.name:<{name}}  {fault.code!s:<{code}}  {fault.what}")
    return 0


def _columns() -> list[tuple[str, str]]:
    from simulator.faults import FAULTS

    return [(fault.name, str(fault.code)) for fault in FAULTS.values()]


# --- pcs ---


def _pcs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback unless told otherwise")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; any free one unless told otherwise")
    parser.add_argument("--delay", type=_duration, default=0, metavar="TIME", help="every answer waits so long")
    parser.add_argument("--rate-limit", type=int, metavar="N", help="more than N requests a second are answered 429")
    parser.add_argument("--fail", type=int, choices=(401, 404, 429, 500, 502, 503), help="answer everything with this")
    parser.add_argument("--stale", type=_duration, default=0, metavar="TIME", help="serve what was right so long ago")
    parser.add_argument("--mixed", action="store_true", help="serve TCB info and identities of different sets")


def _pcs(options: argparse.Namespace) -> int:
    from simulator.pcs_server import PcsServer, Trouble

    with Ending() as ending, PcsServer(_open(options), host=options.host, port=options.port) as server:
        server.trouble = Trouble(
            delay_s=options.delay,
            rate_limit=options.rate_limit,
            status=options.fail,
            stale_s=int(options.stale),
            mixed=options.mixed,
        )
        _show(options, {"pcs_url": server.url, "simulated": True}, one_line=True)
        ending.wait()
    return 0


# --- recover ---


def _recover_options(parser: argparse.ArgumentParser) -> None:
    from simulator.recovery import COMPONENT_STATES, KINDS, STATES

    kinds = {
        **KINDS,
        "patch": "a platform gets other microcode, TDX module or quoting enclaves",
        "clone": "a platform exists twice: what somebody has who extracted its keys",
        "clock": "the machine's clock is set, advanced or reset",
    }
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["kinds:", *(f"  {kind:<18} {text}" for kind, text in kinds.items())])
    parser.add_argument("kind", choices=tuple(kinds), metavar="KIND")
    parser.add_argument("--platform", type=int, metavar="N", help="revoke-pck, patch, clone: which platform")
    parser.add_argument("--ca", choices=("platform", "processor"), help="revoke-ca: which PCK CA")
    parser.add_argument("--what", choices=("platform", "module", "qe"), help="publish, status: whose levels")
    parser.add_argument("--fmspc", help="publish, status: of this platform family alone")
    parser.add_argument("--tee", choices=("sgx", "tdx"), help="publish, status: for this TEE alone")
    parser.add_argument("--svn", type=int, help="status: which level")
    parser.add_argument("--status", choices=STATES, help=f"status: its new state; module and qe: {COMPONENT_STATES}")
    parser.add_argument("--advisory", type=_advisory, action="append", dest="advisories", metavar="ID")
    parser.add_argument(
        "--standard", action="store_true", default=None, help="publish: standard at once, not only early"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="MEMBER=N", help="patch: microcode=9, module_svn=…"
    )
    parser.add_argument("--to", type=_time, metavar="TIME", help="clock: stop it at this moment")
    parser.add_argument("--advance", type=_duration, metavar="TIME", help="clock: move it on, 31d for example")
    parser.add_argument("--reset", action="store_true", help="clock: be the wall clock again")


def _recover(options: argparse.Namespace) -> int:
    machine = _open(options)
    match options.kind:
        case "patch":
            machine.patch_platform(options.platform or 0, **_members(options.set))
        case "clone":
            machine.clone_platform(options.platform or 0)
        case "clock":
            _move(machine, options)
        case _:
            names = ("platform", "ca", "what", "fmspc", "tee", "svn", "status", "advisories", "standard")
            given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
            machine.recover(options.kind, **given)
    _show(options, _description(machine))
    return 0


def _members(pairs: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in ("microcode", "pcesvn", "module_version", "module_svn", "qe_svn", "sgx_qe_svn"):
            raise SimulatorError(SimulatorCode.RECOVERY_INVALID, f"a platform's {name!r} cannot be patched")
        if not value.isdecimal() or int(value) > (0xFFFF if name == "pcesvn" or "qe" in name else 0xFF):
            raise SimulatorError(SimulatorCode.RECOVERY_INVALID, f"{pair!r} has no SVN")
        found[name] = int(value)
    if not found:
        raise SimulatorError(SimulatorCode.RECOVERY_INVALID, "patch needs --set, microcode=9 for example")
    return found


def _move(machine: Machine, options: argparse.Namespace) -> None:
    if [options.to is not None, options.advance is not None, options.reset].count(True) != 1:
        raise SimulatorError(SimulatorCode.RECOVERY_INVALID, "clock needs one of --to, --advance and --reset")
    try:
        if options.to is not None:
            machine.clock.set(options.to)
        elif options.advance is not None:
            machine.clock.advance(options.advance)
        else:
            machine.clock.reset()
    except ValueError as error:
        raise SimulatorError(SimulatorCode.RECOVERY_INVALID, str(error)) from error


# --- input and output ---


def _show(options: argparse.Namespace, values: dict[str, Any], *, one_line: bool = False) -> None:
    if options.json:
        print(json.dumps(values, indent=None if one_line else 1), flush=True)
        return
    for name, value in values.items():
        if isinstance(value, list):
            for item in value:
                print(f"{name}: {', '.join(f'{key} {text}' for key, text in item.items())}")
        elif value is not None:
            print(f"{name}: {value}", flush=True)


def _report_data(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("not hexadecimal") from error
    if len(raw) != 64:
        raise argparse.ArgumentTypeError(f"REPORT_DATA has 64 bytes (128 digits), not {len(raw)}")
    return raw


def _time(text: str) -> float:
    """RFC 3339 or Unix seconds."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("not a time: 2026-01-31T12:00:00Z or Unix seconds") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _duration(text: str) -> float:
    """Seconds, or a number with s, m, h or d."""
    unit = _UNITS.get(text[-1:], 1)
    try:
        return float(text[:-1] if text[-1:] in _UNITS else text) * unit
    except ValueError as error:
        raise argparse.ArgumentTypeError("not a duration: 90, 15m, 31d for example") from error


def _advisory(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("an advisory is called like INTEL-SA-01313")
    return text
