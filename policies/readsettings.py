"""`bundle.toml` and `reference-values.toml` → Settings. Every mistake is reported with file, line and suggestion.

Decides which keys there are, which must be there, and what the strict defaults are.
"""

from __future__ import annotations

import re
from datetime import datetime

from attestation.names import SEGMENT
from policies.codes import BundleCode
from policies.mailrules import read_mail_rules
from policies.reference import ANY, ATTRIBUTES, PINNED_FOR_LAUNCHES, REGISTERS, Value, Workload
from policies.settings import Grace, Grant, Platforms, Settings, TcbRule
from policies.tables import Table, nearest
from policies.toolpins import read_tool_pins
from policies.vocabulary import ACCEPTABLE_STATES, ALLOWANCES, ROLES, SUITES

ADVISORY = re.compile(r"INTEL-SA-\d{5}")
WORKLOAD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_AGE_S = 86_400


def read_settings(bundle: Table, references: Table) -> Settings:
    """Both files as one value. With problems the value is incomplete and must not be used; the caller refuses."""
    tenant = bundle.text("tenant", required=True)
    if tenant and not SEGMENT.fullmatch(tenant):
        hint = "letters, digits, '_', '.', '-'; up to 64; no leading dot"
        bundle.complain("tenant", BundleCode.VALUE, f"tenant = {tenant!r} is no name", hint)
    bundle.text("description", remark=True)
    version = bundle.number("version", required=True, low=1)
    tcb_table = bundle.table("tcb", required=True)
    grace_table = tcb_table.table("grace")
    tcb = _tcb(tcb_table)
    grace = _grace(grace_table, tcb) if grace_table.data else None
    tcb_table.done()
    platforms = _platforms(bundle)
    granted = bundle.tables("allowance")
    grants = tuple(grant for table in granted if (grant := _grant(table)))
    freshness = bundle.table("freshness", required=True)
    max_age_s = freshness.number("max_age_s", required=True, low=1, high=MAX_AGE_S)
    age_grace_s = freshness.number("grace_s", high=MAX_AGE_S)
    freshness.done()
    suites = bundle.texts("suites", one_of=SUITES)
    roles = bundle.texts("roles", one_of=ROLES)
    binding = bundle.text("binding", one_of=("required", "optional"))
    mail = read_mail_rules(bundle.table("mail"), tenant)
    tools = read_tool_pins(bundle.tables("tool"), tenant)
    bundle.done()
    _duplicates(bundle, "allowance", [str(table.data.get("name", "")) for table in granted])
    return Settings(
        tenant=tenant,
        version=version or 0,
        tcb=tcb,
        grace=grace,
        platforms=platforms,
        grants=grants,
        max_age_s=max_age_s or 0,
        age_grace_s=age_grace_s or 0,
        suites=frozenset(suites or SUITES[:1]),
        roles=frozenset(roles or ROLES[:1]),
        workloads=read_workloads(references),
        unbound=binding == "optional",
        mail=mail,
        tools=tools,
        lines=_lines(bundle),
    )


def _lines(table: Table) -> tuple[tuple[str, int], ...]:
    """Every key as people write it → its first line."""
    found: dict[str, int] = {}
    for path, line in table.document.lines.items():
        found.setdefault(".".join(str(part) for part in path if not isinstance(part, int)), line)
    return tuple(found.items())


def _duplicates(table: Table, key: str, names: list[str]) -> None:
    """Names of array tables that stand twice, blamed on the later one."""
    for index, name in enumerate(names):
        if name and name in names[:index]:
            path = (*table.path, key, index)
            table.document.complain(path, BundleCode.DUPLICATE, f"{key} {name!r} is defined twice", "keep one")


def _tcb(table: Table) -> TcbRule:
    accept = _states(table)
    number = table.number("min_evaluation_number", high=10_000)
    date = table.moment("min_tcb_date")
    advisories = table.table("advisories")
    return TcbRule(
        accept=accept,
        min_evaluation_number=number or 0,
        min_tcb_date=date,
        advisories_allowed=_advisories_allowed(advisories),
        advisories_denied=_advisories(advisories, "deny"),
    )


def _states(table: Table) -> frozenset[str]:
    accept = table.texts("accept", required=True)
    good: set[str] = set()
    for state in accept:
        if state == "Revoked":
            table.complain("accept", BundleCode.VALUE, "Revoked is never acceptable", "remove it")
        elif state not in ACCEPTABLE_STATES:
            near = nearest(state, ACCEPTABLE_STATES)
            hint = f"did you mean {near!r}?" if near else f"one of {', '.join(ACCEPTABLE_STATES)}"
            table.complain("accept", BundleCode.VALUE, f"{table.name('accept')} holds {state!r}", hint)
        else:
            good.add(state)
    if isinstance(table.data.get("accept"), list) and not accept:
        table.complain("accept", BundleCode.VALUE, f"{table.name('accept')} is empty", 'list at least "UpToDate"')
    return frozenset(good)


def _advisories_allowed(table: Table) -> frozenset[str] | None:
    """`allow`: a list, or the word "any". Left out: none."""
    if table.data.get("allow") == ANY:
        table.known.add("allow")
        found = None
    else:
        found = _advisories(table, "allow")
    table.known.add("deny")
    table.done()
    return found


def _advisories(table: Table, key: str) -> frozenset[str]:
    found = table.texts(key)
    for advisory in found:
        if not ADVISORY.fullmatch(advisory):
            detail = f"{table.name(key)} holds {advisory!r}"
            table.complain(key, BundleCode.VALUE, detail, 'advisories look like "INTEL-SA-00837"')
    return frozenset(found)


def _grace(table: Table, tcb: TcbRule) -> Grace | None:
    """Keys that a grace rule leaves out are those of the strict rule."""
    accept = _states(table) if "accept" in table.data else tcb.accept
    table.known.add("accept")
    number = table.number("min_evaluation_number", high=10_000)
    date = table.moment("min_tcb_date")
    advisories = table.table("advisories")
    until = table.moment("until", required=True)
    denied = _advisories(advisories, "deny") if "deny" in advisories.data else tcb.advisories_denied
    allowed = _advisories_allowed(advisories) if "allow" in advisories.data else tcb.advisories_allowed
    table.done()
    rule = TcbRule(
        accept=accept,
        min_evaluation_number=tcb.min_evaluation_number if number is None else number,
        min_tcb_date=date or tcb.min_tcb_date,
        advisories_allowed=allowed,
        advisories_denied=denied,
    )
    if rule == tcb and until:
        table.complain("", BundleCode.RULE_NEVER_FIRES, "the grace rule is no looser than [tcb]", "remove it")
    return Grace(rule=rule, until=until) if until else None


def _platforms(bundle: Table) -> Platforms:
    """`platforms = "any"` with `platforms_until`, or a table of ids. One of them must be there."""
    if isinstance(bundle.data.get("platforms"), str):
        word = bundle.text("platforms")
        if word != ANY:
            bundle.complain("platforms", BundleCode.VALUE, f"platforms = {word!r}", 'write "any", or a table of ids')
        until = bundle.moment("platforms_until", required=True)
        return Platforms(any_until=until)
    bundle.known.add("platforms_until")
    if "platforms" not in bundle.data:
        hint = 'a [platforms] table with ppid, piid or fmspc lists, or platforms = "any" with platforms_until = "…"'
        bundle.complain("", BundleCode.KEY_MISSING, "platforms is missing: whose hardware is trusted?", hint)
    elif "platforms_until" in bundle.data:
        bundle.complain("platforms_until", BundleCode.KEY_UNKNOWN, 'platforms_until belongs to platforms = "any"')
    table = bundle.table("platforms")
    any_until = table.moment("any_until")
    found = Platforms(
        ppids=frozenset(table.hexes("ppid", 32)),
        piids=frozenset(table.hexes("piid", 32)),
        fmspcs=frozenset(table.hexes("fmspc", 12)),
        any_until=any_until,
        dynamic_platform=table.flag("dynamic_platform"),
        cached_keys=table.flag("cached_keys"),
        smt_enabled=table.flag("smt_enabled"),
        max_addresses=table.number("max_addresses", low=1, high=10_000) or 1,
    )
    table.done()
    if table.data and not (found.ppids or found.piids or found.fmspcs or any_until):
        hint = 'list ppid, piid or fmspc, or any_until = "2027-06-30"'
        table.complain("", BundleCode.KEY_MISSING, "[platforms] names no platform", hint)
    if any_until and (found.ppids or found.piids or found.fmspcs):
        detail = "any_until makes the lists of ids meaningless"
        table.complain("any_until", BundleCode.RULE_NEVER_FIRES, detail, "keep one of the two")
    return found


def _grant(table: Table) -> Grant | None:
    name = table.text("name", required=True, one_of=ALLOWANCES)
    until = table.moment("until", required=True)
    table.text("reason", remark=True)
    table.done()
    return Grant(name=name, until=until, line=table.line()) if name in ALLOWANCES and until else None


def read_workloads(references: Table) -> tuple[Workload, ...]:
    """Every workload; a name twice, or a value twice, is a mistake."""
    found: list[Workload] = []
    for table in references.tables("workload", required=True):
        name = table.text("name", required=True)
        if name and not WORKLOAD_NAME.fullmatch(name):
            table.complain("name", BundleCode.VALUE, f"workload name {name!r}", "letters, digits, '_', '.', '-'")
        values = [value for item in table.tables("value", required=True) if (value := _value(item))]
        table.done()
        found.append(Workload(name=name, line=table.line(), values=tuple(values)))
    references.done()
    _duplicates(references, "workload", [workload.name for workload in found])
    seen: dict[tuple[object, ...], str] = {}
    for workload in found:
        for value in workload.values:
            key = (workload.name, value.fields, value.launches, value.events, value.more_launches, value.other_events)
            if key in seen:
                references.document.complain(
                    ("workload",), BundleCode.DUPLICATE, f"{workload.name}: the same value stands twice", "keep one"
                )
            seen[key] = workload.name
    return tuple(found)


def _value(table: Table) -> Value | None:
    """One accepted set of measurements. mr_td and source must be there; `any` for mr_td needs an end date."""
    mr_td = table.hex("mr_td", 96, required=True, words=(ANY,))
    fields = {"mr_td": mr_td}
    for key in REGISTERS[1:]:
        fields[key] = table.hex(key, 96)
    for key in ATTRIBUTES:
        fields[key] = table.hex(key, 16)
    source = table.text("source", required=True)
    until = table.moment("until")
    launches = table.hexes("launches", 96) if "launches" in table.data else None
    table.known.add("launches")
    events = table.hexes("events", 96)
    more = table.flag("more_launches")
    other = table.flag("other_events")
    table.done()
    pinned = {key: value for key, value in fields.items() if value}
    _value_problems(table, pinned, launches, until, more is not None or other is not None)
    if not mr_td or not source:
        return None
    return Value(
        fields=tuple(pinned.items()),
        source=source,
        line=table.line(),
        launches=launches,
        more_launches=bool(more),
        other_events=bool(other),
        events=events,
        until=until,
        lines=tuple((key, table.line(key)) for key in table.data),
    )


def _value_problems(
    table: Table, pinned: dict[str, str], launches: tuple[str, ...] | None, until: datetime | None, about_launches: bool
) -> None:
    if pinned.get("mr_td") == ANY and until is None:
        table.complain("mr_td", BundleCode.KEY_MISSING, 'mr_td = "any" without an end', 'add until = "2027-06-30"')
    loose = [key for key in PINNED_FOR_LAUNCHES if pinned.get(key, ANY) == ANY]
    if launches is not None and loose:
        detail = f"launches count only in a known image, and {', '.join(loose)} is not pinned"
        table.complain("launches", BundleCode.LAUNCH_NOT_PINNED, detail, "pin mr_td, rtmr1 and rtmr2 here")
    if launches is None and about_launches:
        key = "more_launches" if "more_launches" in table.data else "other_events"
        table.complain(key, BundleCode.RULE_NEVER_FIRES, f"{key} says nothing without launches", "add launches = [ … ]")
    if launches is not None and "rtmr3" in pinned:
        detail = "rtmr3 and launches both speak of RTMR3"
        table.complain("rtmr3", BundleCode.DUPLICATE, detail, "keep launches, which reads the log, or rtmr3")
