"""`cloister verify --bundle-file`: a recorded decision, taken again with nothing but the file.

Decides what is printed and the exit status: 0 for a yes that stands, 1 for a no or for what does not stand, 2 usage, 3
for a file that is no decision. How a decision is taken again stands in `policies.decided`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from attestation.errors import MalformedEvidence
from attestation.pki import TrustRoots
from attestation.terminal import FINE, MALFORMED, REFUSED, USAGE, UsageError, moment, paint, plain, read_file
from attestation.transparency import LogError, parse_verifier_key

_MAX_PEM = 64 << 10
_MAX_KEY = 4096


def verify(path: str, *, log_key: str | None, root: str | None, as_json: bool) -> int:
    """Print what taking the decision again showed; returns the exit status."""
    import sys

    from policies.codes import MEANING
    from policies.decided import check
    from policies.decision import MAX_FILE, Decision, DecisionError

    try:
        key, roots = _log_key(log_key), _roots(root)
        raw = read_file(path, MAX_FILE + 1)
    except UsageError as error:
        print(f"cloister verify: {error}", file=sys.stderr)
        return USAGE
    try:
        finding = check(Decision.from_bytes(raw), roots=roots, log_key=key)
    except DecisionError as error:
        told = {"ok": False, "code": error.code, "detail": error.detail, "remedy": MEANING[error.code][1]}
        print(json.dumps(told, indent=2) if as_json else f"✗ MALFORMED  {plain(error.detail)} [{error.code}]")
        return MALFORMED
    print(json.dumps(members(finding), indent=2) if as_json else "\n".join(lines(finding)))
    return FINE if finding.stands and finding.permitted else REFUSED


def members(finding: Any) -> dict[str, Any]:
    """The JSON object. `ok`: a yes that stands; `stands`: yes or no, it would be taken again."""
    failed = finding.failed
    code = failed.code if failed else next(iter(finding.codes), None)
    return {
        "ok": finding.stands and finding.permitted,
        "stands": finding.stands,
        "permitted": finding.permitted,
        "code": code,
        "detail": failed.detail if failed else None,
        "kind": finding.kind,
        "at": moment(finding.at),
        "subject": finding.subject or None,
        "resource": finding.resource or None,
        "codes": list(finding.codes),
        "verdict": finding.verdict.to_claims() if finding.verdict else None,
        "checks": [
            {"name": step.name, "code": step.code, "ok": step.ok, "detail": step.detail} for step in finding.steps
        ],
    }


def lines(finding: Any) -> Iterator[str]:
    """For people: the answer first."""
    about = " ".join(part for part in (finding.kind, finding.subject, finding.resource) if part)
    if not finding.stands:
        word = paint("✗ DOES NOT STAND", "bad")
    else:
        word = paint("✓ STANDS", "good") if finding.permitted else paint("✗ REFUSED, RIGHTLY", "bad")
    yield f"{word}  {plain(about)}, decided at {moment(finding.at)}"
    for code in finding.codes:
        yield f"  because of {plain(code)}"
    yield ""
    for step in finding.steps:
        mark = paint("✓", "good") if step.ok else paint("!", "warn") if step.ok is None else paint("✗", "bad")
        yield f"  {mark} {step.name:<9} {plain(step.detail)}" + ("" if step.ok else f" [{step.code}]")


def _log_key(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return parse_verifier_key(read_file(path, _MAX_KEY).decode("ascii", "replace"))[1]
    except LogError as error:
        raise UsageError(f"--log-key {path}: {error}") from error


def _roots(path: str | None) -> TrustRoots:
    if path is None:
        return TrustRoots.intel()
    try:
        return TrustRoots.from_pem(read_file(path, _MAX_PEM))
    except MalformedEvidence as error:
        raise UsageError(f"--root {path}: {error.detail}") from error
