"""`cloister broker init`, `serve`, `unseal`, `confirm`, `holder-key` and `rewrap`: from a folder to an open broker.

Decides options and output. Whoever brings a share sees first where it goes: the broker's evidence is judged by a trust
file, unless the holder says that there is none. Whoever confirms a checkpoint compares it with the one remembered in a
file of his own; a log that is shorter, or another one, is not confirmed.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from cryptography.hazmat.primitives.asymmetric import ec

from broker.commands import domain_cli
from broker.commands.admin_client import REFUSED, USAGE, AdminClient, AdminError
from broker.commands.cli_parts import (
    AsJson,
    Folder,
    KeyFile,
    Url,
    answering,
    ask_passphrase,
    connect,
    refuse_to_start,
    show,
)
from broker.errors import BrokerCode, BrokerError
from broker.wire.unseal import UnsealStatus

if TYPE_CHECKING:
    import socket

    from attestation.sealing import SealingKey
    from broker.rootkey.methods import Keeping
    from broker.rootkey.shares import Share
    from broker.service import Broker

Passphrase = Annotated[bool, typer.Option("--passphrase", help="Keep the root key under a passphrase.")]
Shares = Annotated[str | None, typer.Option(help="Cut the root key into shares: 3/5 wants three of five.")]
Holders = Annotated[
    list[Path] | None, typer.Option("--holder", help="A holder's public key; once for each share, in order.")
]
Tpm = Annotated[bool, typer.Option("--tpm", help="Keep the root key in this machine's TPM 2.0.")]
Tcti = Annotated[str | None, typer.Option(help="Where the TPM is: device:/dev/tpmrm0 unless told.")]
Pcrs = Annotated[str | None, typer.Option(help="PCRs that must not change: sha256:0,2,4,7 unless told.")]
MAX_REMEMBERED: Final = 4096


def init(
    folder: Folder,
    tenant: Annotated[str, typer.Option(help="The first tenant's name.")] = "dev",
    kind: Annotated[str, typer.Option(help="Which starter bundle: dev, tenant, relying or lab.")] = "dev",
    public_url: Annotated[str | None, typer.Option(help="What clients call; http://HOST:PORT unless given.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port for REST; gRPC takes the next one.")] = 8443,
    production: Annotated[bool, typer.Option("--production", help="The strict profile.")] = False,
    pcs_url: Annotated[str, typer.Option(help="A PCS or PCCS.")] = "https://api.trustedservices.intel.com",
    root: Annotated[Path | None, typer.Option(help="PEM of a root to trust in place of Intel's.")] = None,
    passphrase: Passphrase = False,
    shares: Shares = None,
    holders: Holders = None,
    tpm: Tpm = False,
    tcti: Tcti = None,
    pcrs: Pcrs = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder with keys, settings and a starter policy. Nothing that is there is overwritten."""
    from broker.commands.setup import initialise
    from policies.errors import BundleError

    with answering(as_json):
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
                keeping=_keeping(passphrase=passphrase, shares=shares, holders=holders, tpm=tpm, tcti=tcti, pcrs=pcrs),
                at=datetime.now(UTC),
            )
        except (BundleError, OSError) as error:
            refuse_to_start(error)
    found: dict[str, Any] = {name: str(getattr(made, name)) for name in made.__dataclass_fields__ if name != "shares"}
    lines = [f"{name:<15} {value}" for name, value in found.items()]
    found |= {"shares": [str(path) for path in made.shares]} if made.shares else {}
    told = [f"share           {path}: give it to its holder, and delete it here" for path in made.shares]
    show(found, as_json, lambda: iter([*lines, *told]))
    if not as_json:
        print(
            f"next: write {folder}/policy (cloister policy test {folder}/policy), then cloister broker serve {folder}\n"
            f"agents are given trust.json; you administer with --key-file {made.admin_key_file}",
            file=sys.stderr,
        )


def serve(
    folder: Folder,
    trust_domain: Annotated[
        str | None, typer.Option(help="Where it runs and proves to agents that it does: tdx, simulated or none.")
    ] = None,
    machine: domain_cli.Machine = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON once it serves.")] = False,
) -> None:
    """Serve the broker of a folder until SIGTERM. Log lines go to stderr as JSON."""
    from attestation.errors import AttestationError
    from broker import tracing
    from broker.app import serve as serve_broker
    from broker.commands.hardening import harden
    from broker.commands.setup import SETTINGS
    from broker.config import load
    from broker.domains import open_domain
    from broker.opening import Opening
    from broker.rootkey.keyfile import needs_passphrase
    from broker.telemetry import log_to
    from policies.errors import BundleError

    grpc: list[str] = []

    def ready(url: str) -> None:
        told = {"broker_url": url, "grpc_address": grpc[0] if grpc else None, "console_url": f"{url}/console"}
        line = f"serving {url}" + "".join(f", gRPC on {address}" for address in grpc)
        print(json.dumps(told) if as_json else line, flush=True)

    def sealed() -> None:
        logging.getLogger("cloister.broker").warning("broker.sealed", extra={"see": f"{settings.public_url}/v1/unseal"})

    async def serving(broker: "Broker", bound: "socket.socket") -> None:
        await serve_broker(broker, sock=bound, ready=lambda: ready(settings.public_url), on_grpc=grpc.append)

    async def run() -> None:
        domain = open_domain(trust_domain or settings.trust_domain, machine)
        await Opening(settings=settings, domain=domain, passphrase=passphrase).run(sealed=sealed, serving=serving)

    with answering(False):
        harden()
        settings = load(folder / SETTINGS, os.environ)
        log_to(sys.stderr, settings.log_level)
        tracing.configure(os.environ)
        locked = settings.root_key_file is not None and needs_passphrase(settings.root_key_file)
        passphrase = ask_passphrase(confirm=False) if locked else None
        try:
            _run(run)
        except (BundleError, AttestationError, OSError) as error:
            refuse_to_start(error)


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On uvloop where there is one."""
    import asyncio

    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main())
    else:
        uvloop.run(main())


def holder_key(
    path: Annotated[Path, typer.Argument(help="Where to write it; PATH.pub is what others get.")],
    as_json: AsJson = False,
) -> None:
    """Make a key for somebody who will hold a share. Only the .pub file leaves his hands."""
    from broker.rootkey.holders import create

    with answering(as_json):
        try:
            made = create(path)
        except OSError as error:
            raise AdminError("root.holder_file", f"{path}: {error.strerror}", status=USAGE) from None
        found = {"public": f"{path}.pub", "thumbprint": made.thumbprint}
        show(found, as_json, lambda: iter([f"{path}.pub  {made.thumbprint}"]))


def admin_key(
    path: Annotated[Path, typer.Argument(help="The key's file; made, mode 0600, when there is none.")],
    name: Annotated[str, typer.Option(help="Whose it is: goes into the log.")] = "",
    role: Annotated[str, typer.Option(help="security, operator or auditor.")] = "operator",
    tenants: Annotated[list[str] | None, typer.Option("--tenant", help="For this tenant alone; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make another administrator's key. Prints what the broker's settings need; the key stays with its owner."""
    from broker.commands.admin_client import load_key
    from broker.commands.setup import admin_key as make
    from broker.rights import ROLES
    from broker.wire.jose import thumbprint

    with answering(as_json):
        if role not in ROLES:
            raise AdminError("admin.usage", f"a role is one of {', '.join(ROLES)}", status=USAGE)
        try:
            jkt = thumbprint(load_key(path).public_key()) if path.exists() else make(path)
        except OSError as error:
            raise AdminError("admin.key_file", f"{path}: {error.strerror}", status=USAGE) from None
        found = {"name": name or path.stem, "jkt": jkt, "role": role} | ({"tenants": tenants} if tenants else {})
        lines = [f"{key} = {json.dumps(value)}" for key, value in found.items()]
        show(found, as_json, lambda: iter(["[[admins]]", *lines]))


def unseal(
    share: Annotated[Path, typer.Argument(help="The share's file.")],
    url: Url,
    key: Annotated[Path | None, typer.Option("--holder-key", help="The key of a sealed share's holder.")] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="A trust file whose [broker.reference] the broker has to fit.")
    ] = None,
    unattested: Annotated[
        bool, typer.Option("--without-evidence", help="Bring the share to a broker that proves nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring one share to a sealed broker. First it is judged where the share goes."""
    from attestation.errors import AttestationError
    from broker.commands import unsealing

    with answering(as_json):
        caller = AdminClient(url, ec.generate_private_key(ec.SECP256R1()))  # the door is open: nobody asks whose it is
        try:
            told = unsealing.bring(caller, share, key, trust, unattested=unattested, at=datetime.now(UTC))
        except AttestationError as error:
            raise AdminError(str(error.code), error.detail, status=REFUSED) from None
        _show_status(told, as_json)


def confirm(
    url: Url,
    key_file: KeyFile,
    vkey: Annotated[Path, typer.Option("--log-key", help="The log's public key: the file log.vkey.")],
    remembered: Annotated[Path, typer.Option("--remember", help="Keeps the newest checkpoint that was seen.")],
    first: Annotated[bool, typer.Option("--first", help="There is none to compare with yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stand for a broker's newest checkpoint. It has to continue the one remembered here. Useful at any time."""
    from broker.commands import unsealing
    from broker.wire.log import parse_verifier_key

    with answering(as_json):
        try:
            _, log_key = parse_verifier_key(vkey.read_text(encoding="ascii"))
            known = remembered.read_text(encoding="utf-8")[:MAX_REMEMBERED] if remembered.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise AdminError("audit.file", str(error), status=USAGE) from None
        if known is None and not first:
            detail = f"{remembered} does not exist: say --first when this is the first time"
            raise AdminError("checkpoint.file", detail, status=USAGE)
        caller = connect(url, key_file)
        shown = unsealing.compared(caller, log_key, known)
        told = unsealing.stand_for(caller, shown)
        fresh = remembered.with_name(remembered.name + ".new")
        fresh.write_text(shown.note, encoding="utf-8")
        fresh.replace(remembered)
        _show_status(told, as_json, size=shown.size)


def rewrap(
    folder: Folder,
    passphrase: Passphrase = False,
    shares: Shares = None,
    holders: Holders = None,
    tpm: Tpm = False,
    tcti: Tcti = None,
    pcrs: Pcrs = None,
    share: Annotated[list[Path] | None, typer.Option("--share", help="A share of the present root key.")] = None,
    key: Annotated[list[Path] | None, typer.Option("--holder-key", help="The key of a sealed share's holder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep the same root key another way. The broker must be off; without options: as a bare key file."""
    import asyncio

    from broker.commands.rewrap import rewrap as move
    from broker.rootkey.holders import load_private, read_share

    with answering(as_json):
        keys = [load_private(path) for path in key or []]
        brought = [_opened_share(path, keys, read_share) for path in share or []]
        wish = _keeping(passphrase=passphrase, shares=shares, holders=holders, tpm=tpm, tcti=tcti, pcrs=pcrs)
        try:
            moved = asyncio.run(
                move(folder, wish, brought, lambda: ask_passphrase(confirm=False), at=datetime.now(UTC))
            )
        except OSError as error:
            raise AdminError("root.file", str(error), status=USAGE) from None
        found = {"from": moved.before, "to": moved.after, "shares": [str(path) for path in moved.shares]}
        show(found, as_json, lambda: iter([f"{moved.before} → {moved.after}", *map(str, moved.shares)]))


def _opened_share(
    path: Path, keys: "Sequence[SealingKey]", read: "Callable[[Path, SealingKey | None], Share]"
) -> "Share":
    """With whichever of the keys opens it."""
    for key in keys or (None,):
        try:
            return read(path, key)
        except BrokerError as error:
            last = error
    raise last


def _keeping(
    *,
    passphrase: bool,
    shares: str | None,
    holders: list[Path] | None,
    tpm: bool,
    tcti: str | None,
    pcrs: str | None,
) -> "Keeping":
    """How the options want the root key kept. Raises BrokerError config.invalid, root.share_wrong."""
    from broker.rootkey.holders import load_public
    from broker.rootkey.methods import Keeping, Method
    from broker.rootkey.shares import parse_spelled
    from broker.rootkey.tpm import DEFAULT_PCRS, DEFAULT_TCTI

    if sum((passphrase, shares is not None, tpm)) > 1:
        raise BrokerError(BrokerCode.CONFIG_INVALID, "a root key is kept one way: --passphrase, --shares or --tpm")
    if passphrase:
        return Keeping(method=Method.PASSPHRASE, passphrase=ask_passphrase(confirm=True))
    if tpm:
        return Keeping(method=Method.TPM, tcti=tcti or DEFAULT_TCTI, pcrs=pcrs or DEFAULT_PCRS)
    if shares is None:
        return Keeping()
    threshold, count = parse_spelled(shares)
    people = tuple(load_public(path) for path in holders or [])
    return Keeping(method=Method.SHARES, threshold=threshold, count=count, holders=people)


def _show_status(told: UnsealStatus, as_json: bool, **more: int) -> None:
    missing = max(0, told.threshold - len(told.given))
    lines = {
        "shares": f"sealed: {missing} more of {told.count} shares are needed",
        "checkpoint": "the root key is here; the newest checkpoint is not confirmed yet",
        "open": "open",
    }
    show(told.to_dict() | more, as_json, lambda: iter([lines.get(told.state, told.state)]))


def add(app: typer.Typer) -> None:
    """Hang these commands under `cloister broker`."""
    app.command("init")(init)
    app.command("serve")(serve)
    app.command("unseal")(unseal)
    app.command("confirm")(confirm)
    app.command("admin-key")(admin_key)
    app.command("holder-key")(holder_key)
    app.command("rewrap")(rewrap)
