"""What every command of the broker shares: options, how refusals are told, how answers are printed.

Decides exit statuses (0 fine, 1 refused, 2 usage, 4 could not judge) and the two forms of output: one JSON object, or
lines for people.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from broker.commands.admin_client import REFUSED, REMEDIES, USAGE, AdminClient, AdminError, load_key
from broker.errors import MEANING, BrokerCode, BrokerError
from broker.wire.errors import WireError

PASSPHRASE_VARIABLE: Final = "CLOISTER_ROOT_PASSPHRASE"

Url = Annotated[str, typer.Option("--broker", envvar="CLOISTER_BROKER", help="The broker's public URL.")]
KeyFile = Annotated[
    Path, typer.Option("--key-file", envvar="CLOISTER_KEY_FILE", help="An administrator's private key, PEM.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Folder = Annotated[Path, typer.Argument(help="The broker's folder.")]
Name = Annotated[str, typer.Argument(help="tenant/path/name")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="May be repeated.")]
Source = Annotated[Path, typer.Argument(help="A file with the value, or - for standard input.")]


@contextmanager
def answering(as_json: bool) -> Iterator[None]:
    """Turn refusals into a message on stderr (and, with --json, an object on stdout) and an exit status."""
    try:
        yield
    except AdminError as error:
        told = error.problem.to_dict() if error.problem else {"code": error.code, "detail": error.detail}
        fail(error.code, error.detail, _more(error), error.status, told if as_json else None)
    except (BrokerError, WireError) as error:
        more = [f"what to do: {MEANING[error.code][1]}"] if isinstance(error, BrokerError) else []
        told = {"code": str(error.code), "detail": error.detail}
        status = USAGE if error.code in (BrokerCode.CONFIG_INVALID, BrokerCode.STORE_IN_USE) else REFUSED
        fail(error.code, error.detail, more, status, told if as_json else None)


def _more(error: AdminError) -> list[str]:
    """What the broker says beside code and title; where to look when that is not enough."""
    problem = error.problem
    if problem is None:
        remedy = REMEDIES.get(error.code, "")
        return [f"what to do: {remedy}"] if remedy else []
    lines = problem.detail.splitlines()
    if problem.codes and not lines:
        lines.append(f"because: {', '.join(dict.fromkeys(problem.codes))}")
    if remedy := REMEDIES.get(problem.code, problem.remedy):
        lines.append(f"what to do: {remedy}")
    if problem.correlation_id:
        lines.append(f"the broker's log says more under correlation id {problem.correlation_id}")
    return lines


def fail(code: str, detail: str, more: Iterable[str], status: int, told: dict[str, Any] | None) -> None:
    if told is not None:
        print(json.dumps(told))
    print(f"cloister: {code}: {detail}", file=sys.stderr)
    for line in more:
        print(f"  {line}", file=sys.stderr)
    raise typer.Exit(status)


def refuse_to_start(error: Exception) -> None:
    """Everything that is wrong, and exit status 2: something is not set up."""
    for found in getattr(error, "all", (error,)):  # a policy has several mistakes at once
        told = f"{found.filename}: {found.strerror}" if isinstance(found, OSError) and found.filename else str(found)
        print(f"cloister: {told}", file=sys.stderr)
    remedy = getattr(error, "remedy", "")
    if remedy:
        print(f"  what to do: {remedy}", file=sys.stderr)
    raise typer.Exit(USAGE) from None


def show(found: dict[str, Any], as_json: bool, lines: Callable[[], Iterator[str]]) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        for line in lines():
            print(line)


def note_empty(found: Sized, as_json: bool, text: str) -> None:
    """Nothing to list is an answer, too; it goes where no pipe takes it for a line."""
    if not found and not as_json:
        print(f"cloister: {text}", file=sys.stderr)


def connect(url: str, key_file: Path) -> AdminClient:
    return AdminClient(url, load_key(key_file))


def time_text(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def ask_passphrase(*, confirm: bool) -> bytes:
    """From the environment, else from the terminal."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None:
        given = typer.prompt("Passphrase of the root key", hide_input=True, confirmation_prompt=confirm, err=True)
    return str(given).encode()
