"""`cloister broker`, `secret`, `agent` and `audit`.

Decides options, output and exit status: 0 fine, 1 refused, 2 usage, 4 could not judge. What talks to a broker goes
through admin_client.py; what runs one imports the server only then. `--json` prints one object; without it, lines for
people. A secret is read from a file or standard input, never from the command line, where others could see it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from broker import domain_cli
from broker.admin_client import AdminClient, AdminError, load_key
from broker.errors import MEANING, BrokerError
from broker.wire.errors import WireError

OK, REFUSED, USAGE, UNJUDGED = 0, 1, 2, 4
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
def _answering(as_json: bool) -> Iterator[None]:
    """Turn refusals into a message on stderr (and, with --json, an object on stdout) and an exit status."""
    try:
        yield
    except AdminError as error:
        told = error.problem.to_dict() if error.problem else {"code": error.code, "detail": error.detail}
        remedy = error.problem.remedy if error.problem else ""
        _fail(error.code, error.detail, remedy, error.status, told if as_json else None)
    except (BrokerError, WireError) as error:
        remedy = MEANING[error.code][1] if isinstance(error, BrokerError) else ""
        _fail(error.code, error.detail, remedy, REFUSED, {"code": error.code} if as_json else None)


def _fail(code: str, detail: str, remedy: str, status: int, told: dict[str, Any] | None) -> None:
    if told is not None:
        print(json.dumps(told))
    print(f"cloister: {code}: {detail}", file=sys.stderr)
    if remedy:
        print(f"  {remedy}", file=sys.stderr)
    raise typer.Exit(status)


def _show(found: dict[str, Any], as_json: bool, lines: Callable[[], Iterator[str]]) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        for line in lines():
            print(line)


def _client(url: str, key_file: Path) -> AdminClient:
    return AdminClient(url, load_key(key_file))


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ── broker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@broker.command("init")
def init(
    folder: Folder,
    tenant: Annotated[str, typer.Option(help="The first tenant's name.")] = "dev",
    kind: Annotated[str, typer.Option(help="Which starter bundle: dev, tenant, relying or lab.")] = "dev",
    public_url: Annotated[str | None, typer.Option(help="What clients call; http://HOST:PORT unless given.")] = None,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8443,
    production: Annotated[bool, typer.Option("--production", help="The strict profile.")] = False,
    pcs_url: Annotated[str, typer.Option(help="A PCS or PCCS.")] = "https://api.trustedservices.intel.com",
    root: Annotated[Path | None, typer.Option(help="PEM of a root to trust in place of Intel's.")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Keep the root key under a passphrase.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a folder with keys, settings, a starter policy and an empty database."""
    from broker.setup import initialise
    from policies.errors import BundleError

    with _answering(as_json):
        try:
            made = initialise(
                folder,
                public_url=public_url or f"http://{host}:{port}",
                host=host,
                port=port,
                tenant=tenant,
                kind=kind,
                profile="production" if production else "development",
                pcs_url=pcs_url,
                roots_file=root,
                passphrase=_passphrase(confirm=True) if passphrase else None,
                at=datetime.now(UTC),
            )
        except (BundleError, OSError) as error:
            print(f"cloister: {error}", file=sys.stderr)
            raise typer.Exit(USAGE) from None
    found = {name: str(getattr(made, name)) for name in made.__dataclass_fields__}
    _show(found, as_json, lambda: (f"{name:<15} {value}" for name, value in found.items()))


def _passphrase(*, confirm: bool) -> bytes:
    given = os.environ.get("CLOISTER_ROOT_PASSPHRASE")
    if given is None:
        given = typer.prompt("Passphrase of the root key", hide_input=True, confirmation_prompt=confirm, err=True)
    return str(given).encode()


@broker.command("serve")
def serve(
    folder: Folder,
    trust_domain: Annotated[
        str | None, typer.Option(help="Where it runs and proves to agents that it does: tdx, simulated or none.")
    ] = None,
    machine: domain_cli.Machine = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON once it serves.")] = False,
) -> None:
    """Serve the broker of a folder until SIGTERM. Log lines go to stderr as JSON."""
    import asyncio

    from attestation.errors import AttestationError
    from broker import app
    from broker.config import load
    from broker.domains import open_domain
    from broker.rootkey.keyfile import needs_passphrase
    from broker.setup import SETTINGS
    from broker.telemetry import log_to
    from policies.errors import BundleError

    grpc: list[str] = []

    def ready(url: str) -> None:
        told = {"broker_url": url, "grpc_address": grpc[0] if grpc else None, "console_url": f"{url}/console"}
        line = f"serving {url}" + "".join(f", gRPC on {address}" for address in grpc)
        print(json.dumps(told) if as_json else line, flush=True)

    async def run() -> None:
        domain = open_domain(trust_domain or settings.trust_domain, machine)
        built = await app.build(settings, passphrase=passphrase, domain=domain)
        await app.serve(built, ready=lambda: ready(settings.public_url), on_grpc=grpc.append)

    with _answering(False):
        settings = load(folder / SETTINGS, os.environ)
        log_to(sys.stderr, settings.log_level)
        locked = settings.root_key_file is not None and needs_passphrase(settings.root_key_file)
        passphrase = _passphrase(confirm=False) if locked else None
        try:
            _run(run, asyncio)
        except (BundleError, AttestationError, OSError) as error:
            print(f"cloister: {error}", file=sys.stderr)
            raise typer.Exit(USAGE) from None


def _run(main: Callable[[], Any], asyncio: Any) -> None:
    """On uvloop where there is one."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main())
    else:
        uvloop.run(main())


broker.command("reference")(domain_cli.reference)


@broker.command("status")
def status(url: Url, key_file: KeyFile, as_json: AsJson = False) -> None:
    """Generation, agents by state, size of the log, policies and collateral in force."""
    with _answering(as_json):
        found = _client(url, key_file).get("/v1/status")

        def lines() -> Iterator[str]:
            yield f"generation  {found['generation']}"
            yield "agents      " + ", ".join(f"{count} {state}" for state, count in found["agents"].items())
            yield f"log         {found['log_size']} entries"
            for name in ("policies", "collateral"):
                for key, digest in found[name].items():
                    yield f"{name:<11} {key} {digest}"

        _show(found, as_json, lines)


@broker.command("reload")
def reload(url: Url, key_file: KeyFile, as_json: AsJson = False) -> None:
    """Have the policy bundles read anew; every permit is void then."""
    with _answering(as_json):
        found = _client(url, key_file).send("POST", "/v1/policies:reload", {})
        _show(found, as_json, lambda: (f"{tenant} {digest}" for tenant, digest in found["policies"].items()))


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
    state = "destroyed" if found["destroyed"] else _time(found["created_at_s"])
    return f"{found['name']}  version {found['version']}  {state}  {labels}"


@secret.command("put")
def put(name: Name, source: Source, url: Url, key_file: KeyFile, label: Labels = None, as_json: AsJson = False) -> None:
    """Store the next version of a secret."""
    with _answering(as_json):
        body = {"value": _value(source), "labels": label or []}
        found = _client(url, key_file).send("PUT", f"/v1/secrets/{name}", body)
        _show(found, as_json, lambda: iter([_secret_line(found)]))


@secret.command("rotate")
def rotate(
    name: Name,
    url: Url,
    key_file: KeyFile,
    source: Annotated[Path | None, typer.Argument(help="The new value; 32 random bytes unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """A new version of a secret that exists, with the labels it has."""
    with _answering(as_json):
        body = {} if source is None else {"value": _value(source)}
        found = _client(url, key_file).send("POST", f"/v1/secrets/{name}:rotate", body)
        _show(found, as_json, lambda: iter([_secret_line(found)]))


@secret.command("list")
def list_secrets(
    url: Url,
    key_file: KeyFile,
    tenant: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Names, versions and labels. Values cannot be listed."""
    with _answering(as_json):
        client = _client(url, key_file)
        found: list[dict[str, Any]] = []
        after = ""
        while page := client.get("/v1/secrets", tenant=tenant, after=after, limit=1000)["secrets"]:
            found += page
            after = page[-1]["name"]
        _show({"secrets": found}, as_json, lambda: map(_secret_line, found))


@secret.command("destroy")
def destroy(
    name: Name,
    url: Url,
    key_file: KeyFile,
    version: Annotated[int | None, typer.Option(help="One version; all of them unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wipe a secret's value for good."""
    with _answering(as_json):
        body = {} if version is None else {"version": version}
        found = _client(url, key_file).send("POST", f"/v1/secrets/{name}:destroy", body)
        _show(found, as_json, lambda: iter([f"{found['destroyed']} versions of {name} destroyed"]))


# ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _agent_line(found: dict[str, Any]) -> str:
    mark = "SIMULATED" if found["simulated"] else "hardware"
    because = f"  {' '.join(found['codes'])}" if found["codes"] else ""
    return f"{found['subject']}  {found['state']}  {found['tcb_status']}  {mark}{because}"


@agent.command("list")
def list_agents(
    url: Url,
    key_file: KeyFile,
    tenant: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Every agent that was ever admitted, and what it may do now."""
    with _answering(as_json):
        client = _client(url, key_file)
        found: list[dict[str, Any]] = []
        after = ""
        while page := client.get("/v1/agents", tenant=tenant, after=after, limit=1000)["agents"]:
            found += page
            after = page[-1]["subject"]
        _show({"agents": found}, as_json, lambda: map(_agent_line, found))


@agent.command("show")
def show_agent(
    subject: Annotated[str, typer.Argument(help="agent/tenant/thumbprint")],
    url: Url,
    key_file: KeyFile,
    as_json: AsJson = False,
) -> None:
    """One agent: state, reasons, measurements, and what the log says of it."""
    with _answering(as_json):
        client = _client(url, key_file)
        found = client.get(f"/v1/agents/{subject}")
        found["log"] = [item["entry"] for item in client.get("/v1/log/entries", subject=subject, limit=1000)["entries"]]

        def lines() -> Iterator[str]:
            yield _agent_line(found)
            for name, value in found["facts"].items():
                yield f"  {name:<12} {json.dumps(value) if isinstance(value, list) else value}"
            for entry in found["log"]:
                yield from _entry_lines(entry)

        _show(found, as_json, lines)


@agent.command("revoke")
def revoke(
    subject: Annotated[str, typer.Argument(help="agent/tenant/thumbprint")],
    url: Url,
    key_file: KeyFile,
    why: Annotated[str, typer.Option(help="Goes into the log.")] = "",
    as_json: AsJson = False,
) -> None:
    """End an agent's rights for good: its key is never admitted again."""
    with _answering(as_json):
        found = _client(url, key_file).send("POST", f"/v1/agents/{subject}:revoke", {"why": why})
        _show(found, as_json, lambda: iter([f"{subject} is revoked"]))


# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _entry_lines(entry: dict[str, Any]) -> Iterator[str]:
    parts = [_time(entry["at_ms"] / 1000), entry["kind"], entry.get("subject", ""), entry.get("resource", "")]
    yield "  ".join(part for part in (*parts, " ".join(entry.get("codes", []))) if part)
    for reason in entry.get("reasons", []):
        yield f"    {reason}"


@audit.command("show")
def show_log(
    url: Url,
    key_file: KeyFile,
    start: Annotated[int, typer.Option(help="The first entry's index.")] = 0,
    limit: Annotated[int, typer.Option()] = 1000,
    kind: Annotated[str | None, typer.Option(help="agent.refused, secret.released, …")] = None,
    subject: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Entries of the log, oldest first."""
    with _answering(as_json):
        client = _client(url, key_file)
        found = client.get("/v1/log/entries", start=start, limit=limit, kind=kind, subject=subject)
        _show(
            found,
            as_json,
            lambda: (
                f"{item['index']:>6}  {line}" for item in found["entries"] for line in _entry_lines(item["entry"])
            ),
        )


@audit.command("verify")
def verify_log(
    database: Annotated[Path, typer.Argument(help="The broker's database, or a copy of it.")],
    vkey: Annotated[Path, typer.Option("--log-key", help="The log's public key: the file log.vkey.")],
    as_json: AsJson = False,
) -> None:
    """Recompute the whole log from a database, offline, with nothing but the log's public key."""
    from broker.audit import verify_store
    from broker.sql import SqlFile
    from broker.wire.log import parse_verifier_key

    with _answering(as_json):
        try:
            _, log_key = parse_verifier_key(vkey.read_text(encoding="ascii"))
            file = SqlFile(database)
        except (OSError, UnicodeDecodeError) as error:
            raise AdminError("audit.file", str(error), status=USAGE) from None
        checkpoint = verify_store(file, log_key)
        found = {"ok": True, "origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
        _show(found, as_json, lambda: iter([f"{checkpoint.size} entries give root {checkpoint.root.hex()}: verified"]))


@audit.command("prove")
def prove(
    index: Annotated[int, typer.Argument(help="The entry's index.")],
    url: Url,
    key_file: KeyFile,
    vkey: Annotated[Path | None, typer.Option("--log-key", help="Verify the proof under this key as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """A receipt: one entry with the proof that it stands in the log."""
    from broker.wire.log import Receipt, parse_verifier_key

    with _answering(as_json):
        found = _client(url, key_file).get(f"/v1/log/entries/{index}")
        receipt = Receipt.from_dict(found)
        if vkey is not None:
            try:
                text = vkey.read_text(encoding="ascii")
            except OSError as error:
                raise AdminError("audit.file", f"{vkey}: {error.strerror}", status=USAGE) from None
            receipt.verify(parse_verifier_key(text)[1])
        verified = "" if vkey is None else ": verified"
        _show(
            found,
            as_json,
            lambda: iter([f"entry {index}{verified}", *_entry_lines(json.loads(receipt.entry)), receipt.checkpoint]),
        )
