"""`cloister verify`: one quote, one answer, for people and for programs.

Decides the order (the quote is parsed before anything is fetched), what the JSON object holds, and the exit status: 0
fine, 1 refused, 2 usage, 3 malformed evidence, 4 could not judge. Whether a quote is genuine is decided in
`verifier`, whether a policy is satisfied in `policies`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attestation.appraisal import TcbState
from attestation.chains import claimed_platform
from attestation.collateral import MAX_COLLATERAL, Collateral
from attestation.errors import MEANING, AttestationError, CollateralUnavailable, MalformedEvidence, VerificationFailed
from attestation.eventlog import MAX_LOG, EventLog
from attestation.inspect import report, title
from attestation.pki import TrustRoots
from attestation.quote import MAX_QUOTE, Quote, Tee
from attestation.tcb import ANY_TCB, UP_TO_DATE, TcbStates, TcbStatus
from attestation.terminal import (
    FINE,
    MALFORMED,
    REFUSED,
    UNJUDGED,
    USAGE,
    UsageError,
    moment,
    paint,
    plain,
    read_file,
    read_hex,
    read_quote,
    read_time,
)
from attestation.verifier import NOT_COMPARED, Allowance, Check, NotCompared, VerifiedQuote, Verifier

_MAX_PEM: Final = 64 << 10
_SIMULATED: Final = "▨▨▨ NOT UNDER INTEL'S ROOT: nothing protects this trust domain ▨▨▨"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, as typed."""

    quote: str
    collateral: str | None = None
    at: str | None = None
    report_data: str | None = None
    event_log: str | None = None
    root: str | None = None
    bundle: str | None = None
    accept: str | None = None
    allow: Sequence[str] = ()
    pcs: str | None = None
    cache: str | None = None
    as_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A check as it is shown: one of the verifier's, of the event log, or of a policy."""

    name: str
    code: str
    ok: bool
    detail: str
    remedy: str = ""
    warning: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "code", "ok", "detail", "remedy", "warning")}


@dataclass(slots=True, kw_only=True)
class Answer:
    """What was found out, filled in from front to back; unknown members stay None."""

    at: datetime
    status: int = UNJUDGED
    code: str | None = None
    detail: str = ""
    remedy: str = ""
    genuine: bool | None = None
    quote: Quote | None = None
    verified: VerifiedQuote | None = None
    state: TcbState | None = None
    lines: list[Line] = field(default_factory=list)
    log: EventLog | None = None
    policy: str | None = None

    @property
    def ok(self) -> bool:
        return self.status == FINE

    def refuse(self, status: int, code: str, detail: str, remedy: str) -> None:
        """The first refusal names the answer."""
        if self.code is None:
            self.status, self.code, self.detail, self.remedy = status, code, detail, remedy


def verify(options: Options) -> int:
    """Print the answer; returns the exit status."""
    import sys

    try:
        answer = judge(options)
    except UsageError as error:
        print(f"cloister verify: {error}", file=sys.stderr)
        return USAGE
    if options.as_json:
        print(json.dumps(members(answer), indent=2))
    else:
        print("\n".join(lines(answer)))
    return answer.status


def judge(options: Options) -> Answer:
    """Raises UsageError; everything else is an answer."""
    if (options.quote, options.collateral, options.event_log, options.root).count("-") > 1:
        raise UsageError("only one file can come from standard input")
    raw = read_quote(options.quote, MAX_QUOTE)
    demands = _demands(options)
    answer = Answer(at=demands.at)
    try:
        answer.quote = Quote.parse(raw)
        if options.event_log is not None:
            answer.log = EventLog.parse(read_file(options.event_log, MAX_LOG))
        collateral = _collateral(options, demands, answer.quote)
    except MalformedEvidence as error:
        answer.refuse(MALFORMED, error.code, error.detail, MEANING[error.code][1])
    except CollateralUnavailable as error:
        answer.refuse(UNJUDGED, error.code, error.detail, MEANING[error.code][1])
    else:
        _verify(answer, answer.quote, collateral, demands)
        _check_log(answer, answer.quote)
        _check_policy(answer, demands)
        if answer.code is None:
            answer.status = FINE
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demands:
    """The options, read and checked."""

    at: datetime
    report_data: bytes | NotCompared
    roots: TrustRoots
    accept: TcbStates
    allow: frozenset[Allowance]
    bundle: Any = None  # policies.bundle.Bundle, where the package is there and asked for


def _demands(options: Options) -> _Demands:
    at = datetime.now(UTC).replace(microsecond=0) if options.at is None else read_time(options.at)
    if options.collateral is not None and options.pcs is not None:
        raise UsageError("--collateral and --pcs exclude each other")
    bundle = None if options.bundle is None else _load_bundle(options.bundle)
    if bundle is not None and (options.accept is not None or options.allow):
        raise UsageError("with --bundle, the bundle says what is accepted and allowed; leave out --accept and --allow")
    return _Demands(
        at=at,
        report_data=_report_data(options.report_data),
        roots=_roots(options.root),
        accept=ANY_TCB if bundle is not None else _accept(options.accept),
        allow=bundle.allowances(at) if bundle is not None else _allow(options.allow),
        bundle=bundle,
    )


def _report_data(text: str | None) -> bytes | NotCompared:
    if text is None:
        return NOT_COMPARED
    value = read_hex(text, 64, "--report-data")
    if not any(value):
        raise UsageError("an all-zero --report-data would bind the quote to nothing")
    return value


def _roots(path: str | None) -> TrustRoots:
    if path is None:
        return TrustRoots.intel()
    try:
        return TrustRoots.from_pem(read_file(path, _MAX_PEM))
    except MalformedEvidence as error:
        raise UsageError(f"--root {path}: {error.detail}") from error


def _accept(text: str | None) -> TcbStates:
    if text is None:
        return UP_TO_DATE
    if text == "any":
        return ANY_TCB
    names = [name.strip() for name in text.split(",")]
    known = {str(state): state for state in sorted(ANY_TCB)}
    if unknown := [name for name in names if name not in known]:
        hint = "; nothing revoked is ever accepted" if TcbStatus.REVOKED in unknown else ""
        raise UsageError(
            f"--accept does not know {', '.join(map(repr, unknown))}: any, or some of {', '.join(known)}{hint}"
        )
    return frozenset(known[name] for name in names)


def _allow(names: Iterable[str]) -> frozenset[Allowance]:
    known = {str(allowance): allowance for allowance in Allowance}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--allow does not know {', '.join(map(repr, unknown))}: there are {', '.join(known)}")
    return frozenset(known[name] for name in names)


def _load_bundle(path: str) -> Any:
    from policies.bundle import load_bundle
    from policies.errors import BundleError

    try:
        return load_bundle(Path(path))
    except (BundleError, OSError) as error:
        raise UsageError(f"--bundle {path}: {error} (see `cloister policy check {path}`)") from error


def _collateral(options: Options, demands: _Demands, quote: Quote) -> Collateral:
    """Raises MalformedEvidence, CollateralUnavailable, UsageError."""
    if options.collateral is not None:
        return Collateral.from_json(read_file(options.collateral, 2 * MAX_COLLATERAL))
    from attestation.net.pcs import INTEL, PcsClient

    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(options.cache) if options.cache is not None else Path(home) / "cloister" / "collateral"
    try:
        client = PcsClient(options.pcs or INTEL, cache, roots=demands.roots, now=lambda: demands.at)
    except ValueError as error:
        raise UsageError(f"--pcs: {error}") from error
    return client.fetch(quote)


def _verify(answer: Answer, quote: Quote, collateral: Collateral, demands: _Demands) -> None:
    """Judge as asked; when that fails, judge once more leniently to tell a genuine quote from one that is not."""
    verifier = Verifier(demands.roots)
    try:
        answer.verified = verifier.verify(
            quote,
            collateral,
            report_data=demands.report_data,
            at=demands.at,
            accept=demands.accept,
            allow=demands.allow,
        )
        checks = answer.verified.checks
    except VerificationFailed as failure:
        checks = failure.checks
        first = next((check for check in checks if not check.ok and check.code == failure.code), None)
        remedy = (first.remedy if first else "") or MEANING[failure.code][1]
        answer.refuse(REFUSED, failure.code, failure.detail, remedy)
        try:
            answer.verified = verifier.verify(
                quote, collateral, report_data=NOT_COMPARED, at=demands.at, accept=ANY_TCB, allow=frozenset(Allowance)
            )
        except VerificationFailed as hopeless:  # a Revoked platform is known for what it is, and still not genuine
            answer.verified, answer.state = None, hopeless.state
    answer.genuine = answer.verified is not None
    answer.state = answer.verified.tcb_state if answer.verified else answer.state
    answer.lines += [_line(check) for check in checks]


def _line(check: Check) -> Line:
    remedy = check.remedy or ("" if check.ok else MEANING[check.code][1])
    return Line(
        name=check.name, code=check.code, ok=check.ok, detail=check.detail, remedy=remedy, warning=check.warning
    )


def _check_log(answer: Answer, quote: Quote) -> None:
    if answer.log is None:
        return
    from attestation.errors import Code

    name = "event_log"
    try:
        if quote.tee is not Tee.TDX:
            raise VerificationFailed(Code.EVENTLOG_NOT_A_TD, "an SGX enclave has no run-time registers")
        answer.log.check(quote.td)
        launches = answer.log.launches()
    except VerificationFailed as failure:
        remedy = MEANING[failure.code][1]
        answer.lines.append(Line(name=name, code=failure.code, ok=False, detail=failure.detail, remedy=remedy))
        answer.refuse(REFUSED, failure.code, failure.detail, remedy)
        answer.log = None
        return
    told = f"{len(answer.log.entries)} events replay to RTMR0 to 3"
    if launches:
        told += "; launched: " + ", ".join(f"{launch.name} ({launch.digest[:16]}…)" for launch in launches)
    answer.lines.append(Line(name=name, code=Code.EVENTLOG_REPLAY, ok=True, detail=told))


def _check_policy(answer: Answer, demands: _Demands) -> None:
    if demands.bundle is None or answer.verified is None or answer.code is not None:
        return
    from attestation.verdict import Verdict
    from policies.engine import appraise_verdict
    from policies.model import Context

    bundle = demands.bundle
    answer.policy = bundle.digest
    verdict = Verdict.of(answer.verified, event_log=answer.log)
    reasons = appraise_verdict(bundle, verdict, context=Context(at=demands.at))
    for reason in reasons:
        told = f"{reason.rule}{f' ({reason.where})' if reason.where else ''}: found {reason.found or 'nothing'}"
        told += f", expected {reason.expected}" if reason.expected else ""
        told += f", nearest {reason.nearest}" if reason.nearest else ""
        line = Line(name="policy", code=reason.code, ok=False, detail=told, remedy=reason.passes_if)
        answer.lines.append(line)
        answer.refuse(REFUSED, line.code, line.detail, line.remedy)
    if not reasons:
        told = f"bundle of tenant {bundle.tenant}, version {bundle.version}, {bundle.digest[:16]}…"
        answer.lines.append(Line(name="policy", code="policy.accepted", ok=True, detail=told))


def members(answer: Answer) -> dict[str, Any]:
    """The JSON object. Members that are unknown are null."""
    quote, verified, state = answer.quote, answer.verified, answer.state
    fmspc, ppid = _platform(answer)
    return {
        "ok": answer.ok,
        "genuine": answer.genuine,
        "code": answer.code,
        "detail": answer.detail or None,
        "remedy": answer.remedy or None,
        "tee": str(quote.tee) if quote else None,
        "version": quote.version if quote else None,
        "tcb_status": str(state.status) if state else None,
        "platform_tcb_status": str(state.platform.status) if state else None,
        "module_tcb_status": str(state.module.status) if state and state.module else None,
        "qe_tcb_status": str(state.qe.status) if state else None,
        "advisory_ids": list(state.advisory_ids) if state else None,
        "tcb_date": moment(state.date) if state else None,
        "tcb_evaluation_number": verified.tcb_evaluation_number if verified else None,
        "qe_evaluation_number": verified.qe_evaluation_number if verified else None,
        "fmspc": fmspc,
        "ppid": ppid,
        "root_sha256": verified.root_sha256 if verified else None,
        "simulated": _simulated(verified) if verified else None,
        "allowances_used": sorted(verified.allowances_used) if verified else None,
        "valid_until": moment(verified.valid_until) if verified else None,
        "policy": answer.policy,
        "report": report(quote) if quote else None,
        "checks": [line.to_dict() for line in answer.lines],
        "at": moment(answer.at),
    }


def lines(answer: Answer) -> list[str]:
    """The answer for people: the verdict, then what is known, then each check, those that failed before the rest."""
    shown = [_headline(answer)]
    if answer.verified is not None and _simulated(answer.verified):
        shown.append(paint(_SIMULATED, "warn"))
    if answer.code is not None and answer.remedy:
        shown.append(f"  → {plain(answer.remedy)}")
    shown += ["", *_facts(answer)]
    if answer.lines:
        width = max(len(line.name) for line in answer.lines)
        order = sorted(answer.lines, key=lambda line: (line.ok, not line.warning))  # and as they were made
        passed = sum(line.ok and not line.warning for line in order)
        told = f"Checks: {passed} passed" + (f", {len(order) - passed} did not" if passed < len(order) else "")
        shown += ["", paint(told, "bold"), *(text for line in order for text in _check(line, width))]
    return shown


def _headline(answer: Answer) -> str:
    kind = title(answer.quote) if answer.quote else "these bytes"
    if answer.ok and answer.verified is not None:
        compared = not isinstance(answer.verified.compared, NotCompared)
        about = "about the REPORT_DATA you expect" if compared else "REPORT_DATA was not compared"
        style = "warn" if _simulated(answer.verified) else "good"  # nobody takes it for the real thing by its colour
        return f"{paint('✓ TRUSTED', style)}  {kind}: genuine, {answer.verified.tcb_status}; {about}"
    word = {REFUSED: "✗ REFUSED", MALFORMED: "✗ MALFORMED", UNJUDGED: "? NOT JUDGED"}[answer.status]
    style = "warn" if answer.status == UNJUDGED else "bad"
    genuine = "genuine, but refused. " if answer.genuine else ""
    return f"{paint(word, style)}  {kind}: {genuine}{plain(_sentence(answer))} [{answer.code}]"


def _sentence(answer: Answer) -> str:
    """What happened, in one sentence; of a refusal, the numbers stand at the check."""
    known = next((what for code, (what, _) in MEANING.items() if code == answer.code), "")
    if not known:
        return answer.detail
    return known if answer.lines else f"{known} ({answer.detail})"


def _facts(answer: Answer) -> list[str]:
    rows: list[tuple[str, str]] = [("judged at", moment(answer.at))]
    verified, quote = answer.verified, answer.quote
    if verified is not None:
        module = f", TDX module {verified.module_tcb_status}" if verified.module_tcb_status else ""
        parts = f"platform {verified.platform_tcb_status}{module}, QE {verified.qe_tcb_status}"
        rows += [
            ("valid until", moment(verified.valid_until)),
            ("TCB", f"{verified.tcb_status} ({parts}), level of {moment(verified.tcb_date)[:10]}"),
            ("advisories", ", ".join(verified.advisory_ids) or "none"),
            ("evaluation", f"TCB info {verified.tcb_evaluation_number}, QE identity {verified.qe_evaluation_number}"),
        ]
    fmspc, ppid = _platform(answer)
    if fmspc:
        rows.append(("platform", f"FMSPC {fmspc}, PPID {ppid}{'' if verified else ' (claimed)'}"))
    if quote is not None:
        wanted = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_enclave", "mr_signer", "report_data")
        found = report(quote)
        rows += [(name, str(found[name])) for name in wanted if name in found]
    return [f"  {paint(f'{name:<12}', 'dim')} {value}" for name, value in rows]


def _check(line: Line, width: int) -> list[str]:
    mark = paint("!", "warn") if line.warning else paint("✓", "good") if line.ok else paint("✗", "bad")
    code = "" if line.ok and not line.warning else f" [{line.code}]"
    shown = [f"  {mark} {line.name:<{width}}  {plain(line.detail)}{code}"]
    if line.remedy and (line.warning or not line.ok):
        shown.append(f"    {'':<{width}}  → {plain(line.remedy)}")
    return shown


def _platform(answer: Answer) -> tuple[str | None, str | None]:
    """FMSPC and PPID as certified, or as claimed where nothing is certified."""
    if answer.verified is not None:
        return answer.verified.fmspc.hex(), answer.verified.ppid.hex()
    if answer.quote is None:
        return None, None
    try:
        claimed = claimed_platform(answer.quote)
    except AttestationError:
        return None, None
    return claimed.fmspc.hex(), claimed.ppid.hex()


def _simulated(verified: VerifiedQuote) -> bool:
    return verified.root_sha256 not in TrustRoots.intel().sha256
