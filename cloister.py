"""The `cloister` command: finds the subcommand and hands the rest of the line to the package that owns it.

Decides only who is called. Nothing is imported before it is known to be needed, because `cloister verify` is run in
loops and scripts: a subcommand pays for its own package and for nobody else's. What a subcommand does, its options and
its exit status are its package's business; all of them keep to 0 fine, 1 refused, 2 usage, 3 malformed evidence,
4 could not judge.

A subcommand is a reference `module:object` to either a function that takes the remaining arguments and returns an exit
status, or a typer application. Those of the simulator, and of any other package, come through the entry-point group
`cloister.commands`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

USAGE: Final = 2
UNSAID: Final = 4  # what was found out could not be written down
INTERRUPTED: Final = 130
GROUP: Final = "cloister.commands"

# name → (reference, extra that brings its dependencies, one line for --help)
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "verify": ("attestation.cli:verify", "", "Verify a quote: is it genuine, up to date, and about what you expect?"),
    "quote": ("attestation.cli:quote", "", "Show every field of a quote with its meaning, or compare two quotes."),
    "measure": ("attestation.cli:measure", "", "Predict MRTD and RTMRs from a TDVF firmware image."),
    "policy": ("policies.cli:policy", "", "Write, check, test, explain, compare, forecast and sign policy bundles."),
    "run": ("enclave.cli:run", "enclave", "Measure an agent, attest it, and run it inside a trust domain."),
    "broker": ("broker.cli:broker", "broker", "Set up, serve and look at a broker."),
    "secret": ("broker.cli:secret", "broker", "Put, rotate, list and destroy secrets."),
    "agent": ("broker.cli:agent", "broker", "List, show and revoke agents."),
    "audit": ("broker.cli:audit", "broker", "Show, verify and prove entries of the audit log."),
}
# Subcommands of the simulator, which this file never names as code: it may not be installed.
SIMULATED: Final = {
    "sim": "The simulated machine: quotes, trust domains, faults, recoveries, its PCS.",
    "lab": "A simulated machine, its PCS, a broker and a console in one command.",
    "demo": "The whole story in one minute, then it exits.",
}


class OutputFailed(Exception):
    """Standard output takes no more. No OSError: subcommands explain those as troubles with files of their own."""


class _Output(io.FileIO):
    """Standard output where it is a file, device or pipe."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.strerror) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit status. This is the console script."""
    if arguments is None:
        _prepare()
    line = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(line)
        if sys.stdout is not None:  # closed by the caller, who looks at the status alone
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has gone
        _silence(sys.stdout.fileno())
        return 1
    except OutputFailed as error:
        print(f"cloister: standard output cannot be written to: {error}", file=sys.stderr)
        _silence(sys.stdout.fileno())
        return UNSAID
    return status


def _prepare() -> None:
    """What the caller has closed goes nowhere, rather than into the first file that is opened; and a standard output
    that takes no more is told from other files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _silence(number)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  until the end
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and not out.isatty():
        options: dict[str, Any] = {"encoding": out.encoding, "errors": out.errors, "write_through": out.write_through}
        raw = _Output(out.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=out.line_buffering, **options)


def _silence(number: int) -> None:
    """Whatever is written there goes nowhere, the interpreter's own last flush too."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _dispatch(line: list[str]) -> int:
    name, rest = (line[0], line[1:]) if line else ("", [])
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name in ("--version", "-V"):
        print(f"cloister {_version()}")
        return 0
    if not name or name.startswith("-"):
        print(_help() if not name else f"cloister: no option {name}; try `cloister --help`", file=sys.stderr)
        return USAGE
    command = _find(name)
    return USAGE if command is None else _call(name, command, rest)


def _find(name: str) -> object | None:
    """The object behind a subcommand; None when there is none, which has then been explained on stderr."""
    if name in COMMANDS:
        reference, extra, _ = COMMANDS[name]
        return _load(name, reference, extra)
    reference = _entry_points().get(name, "")
    if reference:
        return _load(name, reference, "simulator" if name in SIMULATED else "")
    if name in SIMULATED:
        print(f"cloister {name} needs the simulator: pip install 'cloister[simulator]'", file=sys.stderr)
        return None
    print(f"cloister: no command {name!r}{_nearest(name)}; try `cloister --help`", file=sys.stderr)
    return None


def _load(name: str, reference: str, extra: str) -> object | None:
    from importlib import import_module

    module, _, attribute = reference.partition(":")
    try:
        with _mortal():
            found: object = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        hint = f": pip install 'cloister[{extra}]'" if extra else ""
        print(f"cloister {name} needs the Python package {error.name}, which is not installed{hint}", file=sys.stderr)
        return None
    return found


@contextmanager
def _mortal() -> Iterator[None]:
    """An interrupt ends the process at once, as SIGTERM does: there is nothing to put away yet, and as an exception in
    the middle of an import it may be taken for a trouble of that module's, and be lost."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not the main thread, which alone is interrupted
        ours = False
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _call(name: str, command: Any, rest: list[str]) -> int:
    """Run a subcommand; parsers leave by SystemExit, which becomes a status here."""
    typer = sys.modules.get("typer")
    is_typer = typer is not None and isinstance(command, typer.Typer)
    try:
        status: object = command(rest, prog_name=f"cloister {name}") if is_typer else command(rest)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return status if isinstance(status, int) else 0


def _help() -> str:
    lines = {name: text for name, (_, _, text) in COMMANDS.items()} | SIMULATED
    lines |= {
        name: f"(from {reference.partition('.')[0]})"
        for name, reference in _entry_points().items()
        if name not in lines
    }
    width = max(map(len, lines))
    table = "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())
    return (
        "Usage: cloister COMMAND [ARGUMENTS]...\n\n"
        "Runs AI agents inside Intel TDX trust domains; nothing valuable is let near them until they prove what they "
        "are."
        f"\n\nCommands:\n{table}\n\n"
        "  cloister COMMAND --help   explains one command\n"
        "  cloister --version        prints the version\n\n"
        "Exit status: 0 fine, 1 refused, 2 usage, 3 malformed evidence, 4 could not judge."
    )


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, [*COMMANDS, *SIMULATED, *_entry_points()], n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def _entry_points() -> dict[str, str]:
    """name → reference of the group `cloister.commands`."""
    from attestation.provided import provided

    return provided(GROUP)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cloister")
    except PackageNotFoundError:
        from attestation.provided import checkout

        return str(checkout().get("version", "(unknown)"))


if __name__ == "__main__":
    sys.exit(main())
