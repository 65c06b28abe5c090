"""`cloister audit`: show and prove entries, verify a log, hand out decisions, compare receipts, ask after tokens.

Decides options and output. What needs no broker asks none: a log is verified, and its decisions taken again, from a
database or a copy of it. Exit status 1 says that something was found that should not be so.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import typer

from broker.commands.admin_client import REFUSED, UNJUDGED, USAGE, AdminError
from broker.commands.cli_parts import AsJson, KeyFile, Url, answering, connect, show, time_text

if TYPE_CHECKING:
    from attestation.pki import TrustRoots
    from broker.commands.admin_client import AdminClient
    from broker.store.sql import SqlFile
    from broker.wire.log import Checkpoint

MAX_INPUT: Final = 1 << 20
TIMEOUT_S: Final = 30
LogKey = Annotated[Path, typer.Option("--log-key", help="The log's public key: the file log.vkey.")]
Database = Annotated[Path, typer.Argument(help="The broker's database, or a copy of it.")]


def add(audit: typer.Typer) -> None:
    """Put the commands into their group."""
    for name, command in (
        ("show", show_log),
        ("verify", verify_log),
        ("prove", prove),
        ("bundle", bundle),
        ("compare", compare),
        ("token", token),
    ):
        audit.command(name)(command)


def entry_lines(entry: dict[str, Any]) -> Iterator[str]:
    parts = [time_text(entry["at_ms"] / 1000), entry["kind"], entry.get("subject", ""), entry.get("resource", "")]
    yield "  ".join(part for part in (*parts, " ".join(entry.get("codes", []))) if part)
    for reason in entry.get("reasons", []):
        yield f"    {reason}"


def entries_of(
    client: "AdminClient", *, start: int = 0, limit: int, kind: str | None = None, subject: str | None = None
) -> dict[str, Any]:
    """So many entries, over as many pages as that takes; `next` is there when there may be more."""
    entries: list[dict[str, Any]] = []
    following: int | None = start
    while following is not None and len(entries) < limit:
        most = limit - len(entries)
        page = client.get("/v1/log/entries", start=following, limit=most, kind=kind, subject=subject)
        entries += page["entries"]
        following = page.get("next")
    return {"entries": entries} if following is None else {"entries": entries, "next": following}


def show_log(
    url: Url,
    key_file: KeyFile,
    start: Annotated[int, typer.Option(help="The first entry's index.")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 1000,
    kind: Annotated[str | None, typer.Option(help="agent.refused, secret.released, …")] = None,
    subject: Annotated[str | None, typer.Option(help="About this agent alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Entries of the log, oldest first."""
    with answering(as_json):
        client = connect(url, key_file)
        found = entries_of(client, start=start, limit=limit, kind=kind, subject=subject)
        show(
            found,
            as_json,
            lambda: (f"{item['index']:>6}  {line}" for item in found["entries"] for line in entry_lines(item["entry"])),
        )


def verify_log(
    database: Database,
    vkey: LogKey,
    root: Annotated[
        str | None,
        typer.Option("--root", help="Take every decision again under the roots in this PEM file; `intel` for Intel's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the log from a database, offline. Also looks for what should not be in it."""
    from broker.audit import verify_store
    from broker.auditing import review

    with answering(as_json):
        log_key, file = _log_key(vkey), _database(database)
        checkpoint = verify_store(file, log_key)
        flags = [flag.to_dict() for flag in review(file, log_key, roots=_roots(root))]
        found = {
            "ok": not flags,
            "origin": checkpoint.origin,
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "repeated": root is not None,
            "flags": flags,
        }

        def lines() -> Iterator[str]:
            yield f"{checkpoint.size} entries give root {checkpoint.root.hex()}: verified"
            for flag in flags:
                yield f"{flag['index'] if flag['index'] is not None else '-':>6}  {flag['code']}  {flag['detail']}"

        show(found, as_json, lines)
        if flags:
            raise typer.Exit(REFUSED)


def prove(
    index: Annotated[int, typer.Argument(help="The entry's index.")],
    url: Url,
    key_file: KeyFile,
    vkey: Annotated[Path | None, typer.Option("--log-key", help="Verify the proof under this key as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """A receipt: one entry with the proof that it stands in the log."""
    from broker.wire.log import Receipt

    with answering(as_json):
        found = connect(url, key_file).get(f"/v1/log/entries/{index}")
        receipt = Receipt.from_dict(found)
        if vkey is not None:
            receipt.verify(_log_key(vkey))
        verified = "" if vkey is None else ": verified"
        show(
            found,
            as_json,
            lambda: iter([f"entry {index}{verified}", *entry_lines(json.loads(receipt.entry)), receipt.checkpoint]),
        )


def bundle(
    index: Annotated[int, typer.Argument(help="Index of an admission, a release or a refusal.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    url: Annotated[str | None, typer.Option("--broker", envvar="CLOISTER_BROKER", help="The broker's URL.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", envvar="CLOISTER_KEY_FILE", help="With --broker: an administrator's key."),
    ] = None,
    database: Annotated[Path | None, typer.Option("--database", help="Ask this database, not a broker.")] = None,
    vkey: Annotated[Path | None, typer.Option("--log-key", help="With --database: the file log.vkey.")] = None,
    as_json: AsJson = False,
) -> None:
    """One decision with all that it rests on, in a file. `cloister verify --bundle-file` checks it by itself."""
    from broker.decisions import decision_file
    from broker.wire.jose import unb64u

    with answering(as_json):
        if database is not None and vkey is not None:
            raw = decision_file(_database(database), index, _log_key(vkey))
        elif url is not None and key_file is not None:
            raw = unb64u(connect(url, key_file).get(f"/v1/log/decisions/{index}")["decision"])
        else:
            raise AdminError("audit.usage", "name --broker and --key-file, or --database and --log-key", status=USAGE)
        try:
            out.write_bytes(raw)
        except OSError as error:
            raise AdminError("audit.file", f"{out}: {error.strerror}", status=USAGE) from None
        found = {"index": index, "file": str(out), "bytes": len(raw)}
        show(found, as_json, lambda: iter([f"wrote {out}, {len(raw)} bytes: `cloister verify --bundle-file {out}`"]))


def compare(
    first: Annotated[Path, typer.Argument(help="A receipt (JSON) or a checkpoint.")],
    second: Annotated[Path, typer.Argument(help="Another one, held by somebody else.")],
    vkey: LogKey,
    url: Annotated[str | None, typer.Option("--broker", envvar="CLOISTER_BROKER", help="Ask it for a proof.")] = None,
    database: Annotated[Path | None, typer.Option("--database", help="Take the proof from this database.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether two receipts come from one log. If not, the two are the proof of a fork."""
    from broker.wire.log import verify_consistency

    with answering(as_json):
        log_key = _log_key(vkey)
        old, new = sorted((_checkpoint(path, log_key) for path in (first, second)), key=lambda found: found.size)
        forked = old.origin != new.origin
        if not forked and old.size == new.size:
            forked = old.root != new.root
        elif not forked:
            if url is None and database is None:
                detail = f"sizes {old.size} and {new.size} need a proof: name --broker or --database"
                raise AdminError("audit.usage", detail, status=UNJUDGED)
            proof = _consistency(url, database, old.size, new.size)
            if proof is None:
                forked = True
            else:
                verify_consistency(old.size, old.root, new.size, new.root, proof)
        found = {"ok": not forked, "code": "audit.fork" if forked else None, "sizes": [old.size, new.size]}
        told = "two histories: the log was forked, and these receipts prove it" if forked else "one history"
        show(found, as_json, lambda: iter([f"sizes {old.size} and {new.size}: {told}"]))
        if forked:
            raise typer.Exit(REFUSED)


def token(
    database: Database,
    file: Annotated[Path, typer.Option("--token", help="A file with the admission or peer token.")],
    jwks: Annotated[Path, typer.Option("--jwks", help="The broker's key set: /.well-known/jwks.json.")],
    as_json: AsJson = False,
) -> None:
    """Look for the admission behind a token. Its evidence must be archived, and the broker must have signed it."""
    from broker.auditing import token_flags

    with answering(as_json):
        verdict = _token_verdict(_read(file).decode("ascii", "replace").strip(), _read(jwks))
        flags = [flag.to_dict() for flag in token_flags(_database(database), verdict)]
        found = {"ok": not flags, "subject": verdict.get("subject"), "flags": flags}
        good = f"{verdict.get('subject')}: admitted, and the evidence is there"
        show(found, as_json, lambda: iter([f"{flag['code']}  {flag['detail']}" for flag in flags] or [good]))
        if flags:
            raise typer.Exit(REFUSED)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_INPUT)
    except OSError as error:
        raise AdminError("audit.file", f"{path}: {error.strerror}", status=USAGE) from None


def _log_key(path: Path) -> bytes:
    from broker.wire.errors import WireError
    from broker.wire.log import parse_verifier_key

    try:
        return parse_verifier_key(_read(path).decode("ascii", "replace"))[1]
    except WireError as error:  # a file that is named wrongly says nothing about the log
        raise AdminError("audit.file", f"{path}: {error.detail}", status=USAGE) from None


def _database(path: Path) -> "SqlFile":
    from broker.store.sql import SqlFile

    try:
        return SqlFile(path)
    except OSError as error:
        raise AdminError("audit.file", str(error), status=USAGE) from None


def _roots(name: str | None) -> "TrustRoots | None":
    from attestation.errors import MalformedEvidence
    from attestation.pki import TrustRoots

    if name is None:
        return None
    try:
        return TrustRoots.intel() if name == "intel" else TrustRoots.from_pem(_read(Path(name)))
    except MalformedEvidence as error:
        raise AdminError("audit.file", f"{name}: {error.detail}", status=USAGE) from None


def _checkpoint(path: Path, log_key: bytes) -> "Checkpoint":
    """Of a checkpoint, or of a receipt, whose proof is verified too. Raises WireError log.*, body.*"""
    from broker.wire.fields import parse_object
    from broker.wire.log import Checkpoint, Receipt

    raw = _read(path)
    if raw.lstrip()[:1] != b"{":
        return Checkpoint.open(raw.decode("utf-8", "replace"), log_key)
    members = parse_object(raw, max_len=MAX_INPUT)
    return Receipt.from_dict(members.get("receipt", members)).verify(log_key)


def _consistency(url: str | None, database: Path | None, old: int, size: int) -> tuple[bytes, ...] | None:
    """The proof; None when who keeps the log has no tree of those sizes."""
    from broker.decisions import consistency
    from broker.wire.jose import unb64u

    if database is not None:
        return consistency(_database(database), old, size)
    try:
        with build_opener(ProxyHandler({})).open(
            f"{url}/v1/log/consistency?old={old}&size={size}", timeout=TIMEOUT_S
        ) as got:
            return tuple(unb64u(sibling) for sibling in json.loads(got.read(MAX_INPUT))["proof"])
    except (URLError, OSError, ValueError, KeyError) as error:
        if getattr(error, "code", None) == 404:
            return None
        raise AdminError(
            "broker.unreachable", f"{url} gives no proof ({type(error).__name__})", status=UNJUDGED
        ) from None


def _token_verdict(text: str, keys: bytes) -> dict[str, Any]:
    """The verdict inside a token that one of the keys signed. Raises AdminError audit.token."""
    from broker.wire.jose import es256_valid, key_from_jwk, split_compact

    try:
        header, claims, signed, signature = split_compact(text, max_len=MAX_INPUT)
        known = {key.get("kid"): key_from_jwk(key) for key in json.loads(keys)["keys"]}
        if not es256_valid(known[header.get("kid")], signature, signed):
            raise ValueError("the signature does not verify")
        return dict(claims["cloister_verdict"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdminError("audit.token", f"not a token that these keys signed: {error}", status=REFUSED) from None
