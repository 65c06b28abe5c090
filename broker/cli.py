"""`cloister broker`, `secret`, `agent` and `audit`.

Decides options, output and exit status: 0 fine, 1 refused, 2 usage, 4 could not judge. What talks to a broker goes
through admin_client.py; what runs one imports the server only then. `--json` prints one object; without it, lines for
people. A secret is read from a file or standard input, never from the command line, where others could see it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from attestation.terminal import plain
from broker.commands import audit_cli, domain_cli, lending_cli, root_cli
from broker.commands.admin_client import USAGE, AdminError
from broker.commands.cli_parts import (
    AsJson,
    KeyFile,
    Labels,
    Name,
    Source,
    Url,
    answering,
    connect,
    note_empty,
    show,
    time_text,
)
from broker.commands.lending_cli import Draw, Lease, Meta, terms_body

MAX_NAME: Final = 80
MAX_SECRET_FILE: Final = 64 * 1024


def _app(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


broker = _app("broker", "Set up, serve and look at a broker.")
secret = _app("secret", "Put, rotate, list and destroy secrets. Nobody can read one back.")
agent = _app("agent", "List, show and revoke agents.")
audit = _app("audit", "Show, verify and prove entries of the audit log.")

# ── broker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


root_cli.add(broker)
broker.command("reference")(domain_cli.reference)


@broker.command("status")
def status(url: Url, key_file: KeyFile, as_json: AsJson = False) -> None:
    """Agents by state, size of the log, policies, collateral."""
    with answering(as_json):
        found = connect(url, key_file).get("/v1/status")

        def lines() -> Iterator[str]:
            yield f"generation  {found['generation']}"
            yield "agents      " + ", ".join(f"{count} {state}" for state, count in found["agents"].items())
            yield f"log         {found['log_size']} entries"
            home = found["attested"]
            yield f"attested    {home['domain']}, quoted {time_text(home['quoted_at_s'])}" if home else "attested    no"
            for name in ("policies", "collateral"):
                for key, digest in found[name].items():
                    yield f"{name:<11} {key} {digest}"
            for platform, addresses in found["platforms_elsewhere"].items():
                yield f"elsewhere   platform {platform} was seen at {', '.join(addresses)}"
            for family, falling in found["early_warnings"].items():
                for subject, codes in falling.items():
                    yield f"early       {subject} of {family} will fall: {', '.join(codes)}"

        show(found, as_json, lines)


@broker.command("reload")
def reload(url: Url, key_file: KeyFile, as_json: AsJson = False) -> None:
    """Have the policy bundles read anew; every permit is void then."""
    with answering(as_json):
        found = connect(url, key_file).send("POST", "/v1/policies:reload", {})
        show(found, as_json, lambda: (f"{tenant} {digest}" for tenant, digest in found["policies"].items()))


@broker.command("rotate-keys")
def rotate_keys(url: Url, key_file: KeyFile, as_json: AsJson = False) -> None:
    """Draw the next token keys: published now, signing in an hour. Nothing is restarted and no token is refused."""
    with answering(as_json):
        found = connect(url, key_file).send("POST", "/v1/keys:rotate", {})
        show(found, as_json, lambda: (f"next key {kid}" for kid in found["kids"]))


# ── secrets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _value(source: Path) -> str:
    """The value as base64url. Exits with 2 when it cannot be read or is too long."""
    from broker.wire.jose import b64u

    try:
        raw = sys.stdin.buffer.read(MAX_SECRET_FILE + 1) if str(source) == "-" else source.read_bytes()
    except OSError as error:
        raise AdminError("secret.file", f"{source}: {error.strerror}", status=USAGE) from None
    if len(raw) > MAX_SECRET_FILE:
        raise AdminError("secret.file", f"{source} is larger than {MAX_SECRET_FILE} bytes", status=USAGE)
    return b64u(raw)


def _secret_line(found: dict[str, Any]) -> str:
    labels = " ".join(found["labels"]) or "-"
    state = "destroyed" if found["destroyed"] else time_text(found["created_at_s"])
    return f"{found['name']}  version {found['version']}  {state}  {labels}"


@secret.command("put")
def put(
    name: Name,
    source: Source,
    url: Url,
    key_file: KeyFile,
    label: Labels = None,
    lease: Lease = None,
    draw: Draw = False,
    meta: Meta = None,
    as_json: AsJson = False,
) -> None:
    """Store the next version of a secret. Terms (lease, drawing, notes) stay as they are unless one is named."""
    with answering(as_json):
        body = {"value": _value(source), "labels": label or []} | terms_body(lease, draw, meta)
        found = connect(url, key_file).send("PUT", f"/v1/secrets/{name}", body)
        show(found, as_json, lambda: iter([_secret_line(found)]))


@secret.command("rotate")
def rotate(
    name: Name,
    url: Url,
    key_file: KeyFile,
    source: Annotated[Path | None, typer.Argument(help="The new value; 32 random bytes unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """A new version of a secret that exists, with the labels it has."""
    with answering(as_json):
        body = {} if source is None else {"value": _value(source)}
        found = connect(url, key_file).send("POST", f"/v1/secrets/{name}:rotate", body)
        show(found, as_json, lambda: iter([_secret_line(found)]))


@secret.command("list")
def list_secrets(
    url: Url,
    key_file: KeyFile,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Names, versions and labels. Values cannot be listed."""
    with answering(as_json):
        found = connect(url, key_file).pages("/v1/secrets", "secrets", "name", tenant=tenant)
        show({"secrets": found}, as_json, lambda: map(_secret_line, found))
        note_empty(found, as_json, "no secret is kept here yet: cloister secret put NAME FILE")


@secret.command("destroy")
def destroy(
    name: Name,
    url: Url,
    key_file: KeyFile,
    version: Annotated[int | None, typer.Option(help="One version; all of them unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wipe a secret's value for good."""
    with answering(as_json):
        body = {} if version is None else {"version": version}
        found = connect(url, key_file).send("POST", f"/v1/secrets/{name}:destroy", body)
        show(found, as_json, lambda: iter([f"{found['destroyed']} versions of {name} destroyed"]))


lending_cli.add(secret)


# ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _agent_line(found: dict[str, Any]) -> str:
    mark = "SIMULATED" if found["simulated"] else "hardware"
    because = f"  {' '.join(found['codes'])}" if found["codes"] else ""
    launches = found["facts"].get("launches") or []  # they name themselves: for people, and not to be obeyed
    names = plain(",".join(str(launch.get("name", "")) for launch in launches))[:MAX_NAME] or "-"
    return f"{found['subject']}  {found['state']}  {found['tcb_status']}  {mark}  {names}{because}"


@agent.command("list")
def list_agents(
    url: Url,
    key_file: KeyFile,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every agent that was ever admitted, and what it may do now."""
    with answering(as_json):
        found = connect(url, key_file).pages("/v1/agents", "agents", "subject", tenant=tenant)
        show({"agents": found}, as_json, lambda: map(_agent_line, found))
        note_empty(found, as_json, "no agent was admitted here yet")


@agent.command("show")
def show_agent(
    subject: Annotated[str, typer.Argument(help="agent/tenant/thumbprint")],
    url: Url,
    key_file: KeyFile,
    as_json: AsJson = False,
) -> None:
    """One agent: state, reasons, measurements, log entries."""
    with answering(as_json):
        client = connect(url, key_file)
        found = client.get(f"/v1/agents/{subject}")
        found["log"] = [item["entry"] for item in audit_cli.entries_of(client, limit=1000, subject=subject)["entries"]]

        def lines() -> Iterator[str]:
            yield _agent_line(found)
            for name, value in found["facts"].items():
                yield f"  {name:<12} {json.dumps(value) if isinstance(value, list) else value}"
            for entry in found["log"]:
                yield from audit_cli.entry_lines(entry)

        show(found, as_json, lines)


@agent.command("revoke")
def revoke(
    subject: Annotated[str, typer.Argument(help="agent/tenant/thumbprint")],
    url: Url,
    key_file: KeyFile,
    why: Annotated[str, typer.Option(help="Goes into the log.")] = "",
    as_json: AsJson = False,
) -> None:
    """End an agent's rights for good: its key is never admitted again."""
    with answering(as_json):
        found = connect(url, key_file).send("POST", f"/v1/agents/{subject}:revoke", {"why": why})
        show(found, as_json, lambda: iter([f"{subject} is revoked"]))


# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────

audit_cli.add(audit)
