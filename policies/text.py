"""Refusals, differences and forecasts as lines for people. Decides words and layout only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from policies.bundle import Bundle
from policies.diff import Change, show
from policies.errors import BundleError, Reason
from policies.explain import scope_text
from policies.rules import Rule

LONG = 40


def reason_lines(reasons: Iterable[Reason], indent: str = "  ") -> Iterator[str]:
    """Every failed check: what, where, expected, found, nearest, and what would make it pass."""
    for reason in reasons:
        where = f"  ({reason.where})" if reason.where else ""
        yield f"{indent}{reason.code}  {reason.rule}{where}"
        for label, value in (
            ("expected", reason.expected),
            ("found", reason.found),
            ("nearest", reason.nearest),
            ("passes if", reason.passes_if),
        ):
            if value:
                yield f"{indent}    {label:<9} {value}"


def mistake_lines(error: BundleError) -> Iterator[str]:
    """Every mistake as `file:line: what (hint)  [code]`."""
    for problem in error.all:
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        yield f"{where}: {problem.detail}" + (f" ({problem.hint})" if problem.hint else "") + f"  [{problem.code}]"


def change_lines(changes: Iterable[Change]) -> Iterator[str]:
    for change in changes:
        where = f"  ({change.file}:{change.line})" if change.line else f"  ({change.file})"
        yield f"{change.effect:<8} {change.what}{where}"
        yield f"           was {_short(change.old)}"
        yield f"           now {_short(change.new)}"


def _short(value: str) -> str:
    """Long digests are cut in the middle where that loses nothing that a reader could compare by eye."""
    return value if len(value) <= 200 else f"{value[:120]} … {value[-60:]}"


def bundle_lines(bundle: Bundle) -> Iterator[str]:
    """A bundle in words: who is trusted, what may run, who may do what."""
    settings = bundle.settings
    yield f"tenant {settings.tenant}, version {settings.version}, digest {bundle.digest}"
    if bundle.signed_by:
        yield f"signed by {', '.join(key[:16] + '…' for key in bundle.signed_by)}"
    yield "trusted platforms"
    platforms = settings.platforms
    if platforms.any_until:
        yield f"  any, before {show(platforms.any_until)}"
    for name, ids in (("ppid", platforms.ppids), ("piid", platforms.piids), ("fmspc", platforms.fmspcs)):
        if ids:
            yield f"  {name} {show(ids)}"
    yield f"  TCB {show(settings.tcb.accept)}, evaluation number {settings.tcb.min_evaluation_number} or more"
    if settings.grace:
        looser = settings.grace.rule
        yield (
            f"  before {show(settings.grace.until)} with grace: TCB {show(looser.accept)}, evaluation number "
            f"{looser.min_evaluation_number} or more"
        )
    for grant in settings.grants:
        yield f"  allowance {grant.name}, before {show(grant.until)}"
    yield f"  evidence no older than {settings.max_age_s} s" + (
        f", with grace {settings.max_age_s + settings.age_grace_s} s" if settings.age_grace_s else ""
    )
    yield "workloads"
    for workload in settings.workloads:
        yield f"  {workload.name}"
        for value in workload.values:
            pins = ", ".join(f"{key} {_cut(digest)}" for key, digest in value.fields)
            launches = "" if value.launches is None else f", launches [{', '.join(map(_cut, value.launches))}]"
            until = f", before {show(value.until)}" if value.until else ""
            yield f"    {pins}{launches}{until}: {value.source}"
    yield "rules"
    for rule in bundle.rules.rules:
        yield from rule_lines(rule)


def _cut(digest: str) -> str:
    return digest if len(digest) <= LONG else f"{digest[:12]}…"


def rule_lines(rule: Rule) -> Iterator[str]:
    actions = ", ".join(sorted(rule.actions)) or "every action"
    who = scope_text("principal", rule.principal) or "anybody"
    what = scope_text("resource", rule.resource) or "anything"
    yield f"  {rule.effect} {rule.id}  ({rule.file}:{rule.line})"
    yield f"    {actions}; {who}; {what}"
    for condition in rule.conditions:
        yield f"    when {condition.text}"
