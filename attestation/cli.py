"""The options of `cloister verify`, `cloister quote` and `cloister measure`.

Decides names and help texts of options alone; each command lives in a file of its own, which is imported when it runs.

The standard library parses the line here, not typer: typer brings pydantic, and the two cost more than everything
else that `cloister verify` does from a cold start.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from attestation.terminal import prepare_output

_STATUS = "Exit status: 0 fine, 1 refused, 2 usage, 3 malformed evidence, 4 could not judge."


def verify(arguments: Sequence[str]) -> int:
    """`cloister verify`; returns the exit status."""
    parser = _parser("verify", "Verify a quote: is it genuine, up to date, and about what you expect?")
    add = parser.add_argument
    text = "the quote: raw bytes, or a file of hex digits and white space; - is stdin"
    add("quote", metavar="QUOTE", nargs="?", help=text)
    add("--bundle-file", metavar="FILE", help="in place of a quote: a recorded decision, taken again offline")
    add("--log-key", metavar="FILE", help="with --bundle-file: the log's public key, log.vkey")
    add("--collateral", metavar="FILE", help="collateral as JSON; without it the PCS is asked")
    add("--at", metavar="TIME", help="judge as of this time, RFC 3339 or Unix seconds (default: now)")
    add("--report-data", metavar="HEX", help="the 64 bytes that REPORT_DATA must be; without it, not compared")
    add("--event-log", metavar="FILE", help="event log (CCEL data or dstack JSON) that must replay to the RTMRs")
    add("--root", metavar="PEM", help="trust the roots in this file instead of Intel's")
    add("--bundle", metavar="DIR", help="a policy bundle, which then decides what is accepted")
    add("--accept", metavar="STATUS,…|any", help="TCB states that pass (default: UpToDate alone)")
    add(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        help="sept_ve_disable_clear, migratable, service_td, nested_vm or unknown_attributes; may be repeated",
    )
    add("--pcs", metavar="URL", help="ask this PCS or PCCS (default: Intel's)")
    add("--cache", metavar="DIR", help="where fetched collateral is kept (default: the user's cache folder)")
    _json(parser)
    options = parser.parse_args(arguments)
    prepare_output()
    if options.bundle_file is not None:
        return _decision(parser, options)
    if options.quote is None or options.log_key is not None:
        parser.error("name a QUOTE, or a decision with --bundle-file (which alone takes --log-key)")
    from attestation import verify_cli

    return verify_cli.verify(
        verify_cli.Options(
            quote=options.quote,
            collateral=options.collateral,
            at=options.at,
            report_data=options.report_data,
            event_log=options.event_log,
            root=options.root,
            bundle=options.bundle,
            accept=options.accept,
            allow=tuple(options.allow),
            pcs=options.pcs,
            cache=options.cache,
            as_json=options.json,
        )
    )


def _decision(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """`verify --bundle-file`: the file brings its own evidence, collateral, policy and time."""
    given = vars(options)
    alone = ("quote", "collateral", "at", "report_data", "event_log", "bundle", "accept", "pcs", "cache", "allow")
    if surplus := [name for name in alone if given[name]]:
        parser.error(f"--bundle-file brings everything itself; leave out {', '.join(surplus)}")
    from attestation import decision_cli

    return decision_cli.verify(options.bundle_file, log_key=options.log_key, root=options.root, as_json=options.json)


def quote(arguments: Sequence[str]) -> int:
    """`cloister quote inspect` and `cloister quote diff`; returns the exit status."""
    parser = _parser("quote", "Show what a quote claims. Nothing is verified.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "every field with offset, length, value and meaning, and what the certificates say"
    inspect = commands.add_parser("inspect", help=text, description=text, allow_abbrev=False)
    inspect.add_argument("file", metavar="FILE", help="a quote: raw bytes or hex; - is stdin")
    text = "the fields in which two quotes differ"
    diff = commands.add_parser("diff", help=text, description=text, allow_abbrev=False)
    diff.add_argument("first", metavar="A", help="a quote")
    diff.add_argument("second", metavar="B", help="another one")
    for each in (inspect, diff):
        _json(each)
    options = parser.parse_args(arguments)
    from attestation import inspect_cli

    prepare_output()
    if options.command == "inspect":
        return inspect_cli.inspect(options.file, as_json=options.json)
    return inspect_cli.diff(options.first, options.second, as_json=options.json)


def measure(arguments: Sequence[str]) -> int:
    """`cloister measure`; returns the exit status."""
    parser = _parser(
        "measure", "Predict MRTD, and with an event log the RTMRs, of a trust domain started from an image."
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a TDVF firmware image")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        default="single-pass",
        help="the order in which the VMM measures pages: single-pass (default) or two-pass",
    )
    parser.add_argument("--event-log", metavar="FILE", type=Path, help="an event log, whose replay predicts the RTMRs")
    _json(parser)
    options = parser.parse_args(arguments)
    from attestation import measure_cli

    prepare_output()
    return measure_cli.measure(
        options.image, variant=options.variant, event_log=options.event_log, as_json=options.json
    )


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"cloister {name}", description=description, epilog=_STATUS, allow_abbrev=False)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
