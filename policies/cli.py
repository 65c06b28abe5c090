"""`cloister policy`: write, check, test, explain, compare, replay, forecast and sign bundles.

Decides how answers are printed and which exit status they have: 0 fine; 1 refused, failed or different; 2 usage, or a
file that is not there; 3 recorded evidence that is malformed. This is the rim: where no `--at` is given, the wall clock
is read here and nowhere else in the package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from policies import signing, text
from policies.bundle import Bundle, bundle_of, load_bundle, read_files
from policies.cases import coverage, read_cases, run_cases
from policies.codes import BundleCode
from policies.diff import WIDER, diff, flips
from policies.errors import BundleError
from policies.keys import manifest_signer, private_key, public_key
from policies.model import parse_action
from policies.readsettings import WORKLOAD_NAME
from policies.scaffold import measurements_of, starter, write
from policies.signing import Signers
from policies.tables import to_moment

OK, REFUSED, USAGE, MALFORMED = 0, 1, 2, 3

app = typer.Typer(
    name="policy",
    help="Write, check, test, explain, compare, replay, forecast and sign policy bundles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
policy = app

Directory = Annotated[Path, typer.Argument(help="A bundle: the directory with bundle.toml in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
At = Annotated[str | None, typer.Option("--at", help="RFC 3339 or Unix seconds; now unless given.")]
Actions = Annotated[
    list[str] | None,
    typer.Option(
        "--action", help="Admit, ReleaseSecret:tenant/path/name, Send:…, …; may be repeated. Admit by default."
    ),
]
Via = Annotated[str, typer.Option("--via", help='"cloister" or "kbs".')]


def moment(given: str | None) -> datetime:
    """The time asked for, else now. Exits with 2 for a text that is no time."""
    if given is None:
        return datetime.now(UTC)
    try:
        return to_moment(datetime.fromtimestamp(int(given), UTC) if given.isdecimal() else given)
    except (ValueError, OverflowError):
        raise _usage(f"--at {given!r} is not a time; write 2026-12-01T12:00:00Z or Unix seconds") from None


def _usage(message: str) -> typer.Exit:
    print(f"cloister policy: {message}", file=sys.stderr)
    return typer.Exit(USAGE)


@contextmanager
def mistakes(*, as_json: bool) -> Iterator[None]:
    """Turn a BundleError into its lines (or JSON) and the exit status that fits."""
    try:
        yield
    except BundleError as error:
        if as_json:
            print(json.dumps({"ok": False, "mistakes": [problem.to_dict() for problem in error.all]}))
        else:
            _print(text.mistake_lines(error), to=sys.stderr)
        raise typer.Exit(_status(error)) from None
    except OSError as error:
        raise _usage(f"{error.filename}: {error.strerror}") from None


def _status(error: BundleError) -> int:
    if error.detail.startswith("no such") or error.file.startswith("--"):
        return USAGE
    return MALFORMED if error.code is BundleCode.RECORDING else REFUSED


def _print(lines: Iterable[str], *, to: Any = None) -> None:
    for line in lines:
        print(line, file=to or sys.stdout)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write; must be absent or empty.")],
    kind: Annotated[str, typer.Option(help="dev, tenant, relying or lab.")] = "dev",
    tenant: Annotated[str | None, typer.Option(help="The tenant's name.")] = None,
    quote: Annotated[
        Path | None, typer.Option(help="Take MRTD, RTMR1 and RTMR2 from this quote, as it claims.")
    ] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented starter bundle whose tests pass."""
    with mistakes(as_json=as_json):
        measured = _measured(quote) if quote else {}
        files = starter(kind, tenant=tenant, at=moment(at), measurements=measured)
        written = write(files, directory)
    if as_json:
        print(json.dumps({"ok": True, "kind": kind, "files": [str(path) for path in written]}))
        return
    _print(f"wrote {path}" for path in written)
    if kind == "tenant" and not quote:
        print("reference-values.toml holds placeholders: put in the measurements of your image")
    print(f"next: cloister policy check {directory}; cloister policy test {directory}")


def _measured(path: Path) -> dict[str, str]:
    from attestation.errors import MalformedEvidence
    from attestation.quote import Quote

    try:
        return measurements_of(Quote.parse(path.read_bytes()))
    except (MalformedEvidence, TypeError) as error:
        raise BundleError(BundleCode.RECORDING, str(path), 0, f"no TDX quote: {error}") from error


@app.command()
def check(
    directory: Directory,
    signer: Annotated[
        list[Path] | None, typer.Option(help="A public key (PEM) that may sign; may be repeated.")
    ] = None,
    threshold: Annotated[int, typer.Option(help="How many of the signers must have signed.")] = 1,
    newer_than: Annotated[Path | None, typer.Option(help="The bundle in force: an older version is refused.")] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Find every mistake. Spelling, types, rules that can never fire, dates that have passed, versions, signatures."""
    with mistakes(as_json=as_json):
        bundle = _load_checked(directory, signer or [], threshold, newer_than, moment(at))
        cases = read_cases(bundle)
    if as_json:
        found = {"tenant": bundle.tenant, "version": bundle.version, "digest": bundle.digest, "mistakes": []}
        print(json.dumps({"ok": True, **found, "signed_by": list(bundle.signed_by)}))
        return
    count = f"{len(bundle.rules.rules)} rules, {len(bundle.settings.workloads)} workloads, {len(cases)} test cases"
    print(f"fine: tenant {bundle.tenant}, version {bundle.version}, {count}")
    print(f"digest {bundle.digest}")
    if not cases:
        print("there are no tests: write tests/*.toml, so that a mistake in meaning shows before it bites")


def _load_checked(directory: Path, keys: list[Path], threshold: int, newer_than: Path | None, at: datetime) -> Bundle:
    signers = None
    if threshold != 1 and not keys:
        raise _usage("--threshold counts signatures of --signer KEY, and none is named")
    if keys:
        try:
            signers = Signers(tuple(public_key(path) for path in keys), threshold)
        except ValueError as error:
            raise _usage(str(error)) from error
    old = load_bundle(newer_than) if newer_than else None
    return load_bundle(
        directory,
        signers=signers,
        newest_version=old.version if old else None,
        newest_digest=old.digest if old else None,
        at=at,
    )


@app.command("test")
def run_tests(
    directory: Directory,
    strict: Annotated[bool, typer.Option(help="Fail when a rule, workload or action is never exercised.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the bundle's own cases. Also names the rules that none of them exercises."""
    with mistakes(as_json=as_json):
        bundle = load_bundle(directory)
        outcomes = run_cases(bundle, read_cases(bundle))
    missed = coverage(bundle, outcomes)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    ok = not failed and bool(outcomes) and (missed.complete or not strict)
    if as_json:
        never = {"rules": missed.rules, "workloads": missed.workloads, "actions": missed.actions}
        print(json.dumps({"ok": ok, "cases": [item.to_dict() for item in outcomes], "never_exercised": never}))
        raise typer.Exit(OK if ok else REFUSED)
    for outcome in failed:
        case = outcome.case
        print(f"FAILED {case.file}:{case.line}: {case.name}")
        print(f"  expected {_decision(case.permitted, case.codes)}")
        print(f"  got      {_decision(outcome.permitted, outcome.codes)}" + _by(outcome.rules))
        _print(text.reason_lines(outcome.reasons, "    "))
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} cases pass")
    for label, names in (("rule", missed.rules), ("workload", missed.workloads), ("action", missed.actions)):
        _print(f"never exercised: {label} {name}" for name in names)
    raise typer.Exit(OK if ok else REFUSED)


def _decision(permitted: bool, codes: Iterable[str]) -> str:
    return "permit" if permitted else f"refuse, {', '.join(sorted(codes))}"


def _by(rules: tuple[str, ...]) -> str:
    return f" by {', '.join(rules)}" if rules else ""


@app.command()
def explain(
    directory: Directory,
    evidence: Annotated[Path | None, typer.Option(help="Recorded evidence to judge; else the bundle is told.")] = None,
    action: Actions = None,
    via: Via = "cloister",
    at: Annotated[
        str | None, typer.Option("--at", help="When to judge; the recording's own time unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell a bundle in words, or why evidence is refused. Says what would make recorded evidence pass."""
    if evidence is None and (action or at or via != "cloister"):
        raise _usage("--action, --at and --via are about evidence: name it with --evidence")
    _check_via(via)
    with mistakes(as_json=as_json):
        bundle = load_bundle(directory)
        if evidence is None:
            lines = list(text.bundle_lines(bundle))
            print(json.dumps({"ok": True, "lines": lines}) if as_json else "\n".join(lines))
            return
        from policies.recording import read_recordings
        from policies.replay import answer

        when = moment(at) if at else None
        wanted = _actions(action)
        results = [
            (recording.name, name, answer(bundle, recording, asked, at=when or recording.at, via=via))
            for recording in read_recordings(evidence)
            for name, asked in wanted
        ]
    refused = [result for result in results if not result[2].permitted]
    if as_json:
        found = [{"name": name, "action": what, **result.to_dict()} for name, what, result in results]
        print(json.dumps({"ok": not refused, "results": found}))
    else:
        for name, what, result in results:
            print(f"{name}: {what}: " + _decision(result.permitted, result.codes) + _by(result.rules))
            if result.detail:
                print(f"  {result.detail}")
            _print(text.reason_lines(result.reasons))
    raise typer.Exit(REFUSED if refused else OK)


def _check_via(via: str) -> None:
    if via not in ("cloister", "kbs"):
        raise _usage(f'--via {via!r} is no protocol; write "cloister" or "kbs"')


def _actions(given: list[str] | None) -> list[tuple[str, Any]]:
    try:
        return [(word, parse_action(word)) for word in given or ["Admit"]]
    except ValueError as error:
        raise _usage(str(error)) from None


@app.command("diff")
def diff_command(
    old: Annotated[Path, typer.Argument(help="The bundle in force.")],
    new: Annotated[Path, typer.Argument(help="The bundle that is to replace it.")],
    as_json: AsJson = False,
) -> None:
    """Tell what changes in meaning, what permits more first. Status 1 when anything does."""
    with mistakes(as_json=as_json):
        before, after = load_bundle(old), load_bundle(new)
        changes, flipped = diff(before, after), flips(before, after)
    if as_json:
        found = {"changes": [item.to_dict() for item in changes], "cases": [item.to_dict() for item in flipped]}
        print(json.dumps({"ok": not changes, "wider": any(item.effect == WIDER for item in changes), **found}))
        raise typer.Exit(REFUSED if changes else OK)
    if not changes:
        print("nothing changes in meaning" + ("" if before.digest == after.digest else " (the text differs)"))
        return
    _print(text.change_lines(changes))
    for flip in flipped:
        print(f"decides  {flip.case} (a case of the {flip.source} bundle): {flip.old} becomes {flip.new}")
    raise typer.Exit(REFUSED)


@app.command()
def replay(
    directory: Directory,
    evidence: Annotated[Path, typer.Argument(help="A recording, or a directory of them (*.json).")],
    against: Annotated[Path | None, typer.Option(help="The bundle in force, to compare with.")] = None,
    action: Actions = None,
    via: Via = "cloister",
    at: Annotated[
        str | None, typer.Option("--at", help="When to judge; each recording's own time unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge recorded evidence again; list what changes. Status 1 when a decision does."""
    from policies.recording import read_recordings
    from policies.replay import replay as replayed

    _check_via(via)
    with mistakes(as_json=as_json):
        new = load_bundle(directory)
        old = load_bundle(against) if against else new
        when = moment(at) if at else None
        results = list(replayed(old, new, read_recordings(evidence), _actions(action), at=when, via=via))
    changed = [result for result in results if result.changed]
    permitted = sum(result.new.permitted for result in results)
    if as_json:
        found = {"changed": len(changed), "permitted": permitted, "results": [item.to_dict() for item in results]}
        print(json.dumps({"ok": not changed, **found}))
        raise typer.Exit(REFUSED if changed else OK)
    for result in changed if against else results:
        before, after = (_decision(item.permitted, item.codes) for item in (result.old, result.new))
        print(f"{result.name}: {result.action}: " + (f"{before} becomes {after}" if against else after))
        _print(text.reason_lines(result.new.reasons))
    print(f"{len(results)} decisions, {permitted} permitted" + (f", {len(changed)} changed" if against else ""))
    raise typer.Exit(REFUSED if changed else OK)


@app.command()
def forecast(
    directory: Directory,
    evidence: Annotated[Path, typer.Argument(help="A recording, or a directory of them (*.json).")],
    early: Annotated[Path | None, typer.Option(help="Collateral file of the early update channel.")] = None,
    action: Actions = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Tell when a decision will change, and why. Reads recorded evidence; status 1 when it is refused already."""
    from policies.forecast import forecast as forecasts
    from policies.recording import collateral_file, read_recordings

    with mistakes(as_json=as_json):
        bundle = load_bundle(directory)
        coming = collateral_file(early) if early else None
        when = moment(at)
        found = [
            forecasts(bundle, recording, asked, at=when, early=coming)
            for recording in read_recordings(evidence)
            for _, asked in _actions(action)
        ]
    ok = all(item.now.permitted for item in found)
    if as_json:
        print(json.dumps({"ok": ok, "forecasts": [item.to_dict() for item in found]}))
        raise typer.Exit(OK if ok else REFUSED)
    for item in found:
        print(f"{item.name}: now {_decision(item.now.permitted, item.now.codes)}")
        for event in item.events:
            mark = "*" if event.changes else " "
            print(f"{mark} {event.at.isoformat()}  {event.what}: {_decision(event.decision == 'permit', event.codes)}")
            _print(f"      missing   {short}" for short in event.missing)
            print(f"      {'by itself' if event.renewable else 'to do    '} {event.mend}")
    raise typer.Exit(OK if ok else REFUSED)


@app.command()
def sign(
    directory: Directory,
    key: Annotated[Path, typer.Option(help="Private key (PEM): Ed25519 or P-256.")],
    as_json: AsJson = False,
) -> None:
    """Add a signature over the bundle's digest to signatures.toml. What does not pass `check` is not signed."""
    with mistakes(as_json=as_json):
        files = read_files(directory)
        bundle = bundle_of(files)
        digest = bytes.fromhex(bundle.digest)
        signer = private_key(key)
        name = signing.key_id(signer.public_key())
        present = signing.read_signatures(files.get(signing.FILE, b""), [])
        signatures = {who: signature for who, (signature, _) in present.items()}
        signatures[name] = signing.sign(signer, digest)
        (directory / signing.FILE).write_text(signing.render(sorted(signatures.items())), encoding="utf-8")
    if as_json:
        print(json.dumps({"ok": True, "digest": bundle.digest, "key": name, "signatures": len(signatures)}))
        return
    print(f"signed version {bundle.version}, digest {bundle.digest}")
    print(f"with key {name}; {len(signatures)} signature(s) in {signing.FILE}")


@app.command("import-corim")
def import_corim_command(
    file: Annotated[Path, typer.Argument(help="A CoRIM (CBOR): COSE_Sign1, or unsigned.")],
    workload: Annotated[str, typer.Option(help="The name that rules will use.")],
    signer: Annotated[
        Path | None, typer.Option(help="Public key or certificate (PEM) of whoever must have signed it.")
    ] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Take a file that nobody signed.")] = False,
    environment: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the environment that is meant (class-id, vendor, model …); may be repeated."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Provenance; the file's name and manifest id unless given.")
    ] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Print the TDX reference values of a CoRIM. They come as a [[workload]] for reference-values.toml."""
    from policies.corim import UNSIGNED, import_corim, parse_environment

    if (signer is None) != unsigned:
        raise _usage("name the key or certificate that must have signed the manifest (--signer FILE), or --unsigned")
    if not WORKLOAD_NAME.fullmatch(workload):
        raise _usage(f"--workload {workload!r} is no name: letters, digits, '_', '.', '-', at most 64")
    when = moment(at)
    with mistakes(as_json=as_json):
        meant = parse_environment(environment or [])
        key = manifest_signer(signer, at=when) if signer else UNSIGNED
        found = import_corim(str(file), file.read_bytes(), signer=key, environment=meant, at=when)
    if as_json:
        values = [dict(value) for value in found.values]
        shown = {"id": found.id, "signature_verified": found.verified, "values": values, "left_out": found.left_out}
        print(json.dumps({"ok": True, **shown, "until": found.until and found.until.isoformat()}))
        return
    for what in found.left_out:
        print(f"left out, since no reference value can say it: {what}", file=sys.stderr)
    if not found.verified:
        print("nobody signed this manifest: make sure of where it came from", file=sys.stderr)
    print(found.to_toml(workload, source or f"CoRIM {found.id} ({file.name})"), end="")
