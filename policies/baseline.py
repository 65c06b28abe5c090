"""The floor that no policy can lower, repeated here so that a later loosening elsewhere cannot lower it.

`verify_quote` refuses most of this already; a verdict that shows it nevertheless is refused again. Nothing in a bundle
can switch any of it off.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.codes import PolicyCode
from policies.errors import Reason
from policies.model import Asked, Context, Facts
from policies.requirements import attribute_bits
from policies.rules import Rule

DEBUG = 1


def floor(facts: Facts, action: str, context: Context, *, unbound: bool = False) -> tuple[Reason, ...]:
    """Every part of the floor that the facts miss, for an action. `unbound` lets bare REPORT_DATA pass `Admit`."""
    reasons: list[Reason] = []

    def no(code: PolicyCode, expected: str, found: str, passes_if: str) -> None:
        reasons.append(Reason(code=code, rule="floor", expected=expected, found=found, passes_if=passes_if))

    if facts.tee != "tdx":
        no(PolicyCode.FLOOR_TEE, "tdx", facts.tee or "none", "the evidence is a TDX quote")
    bits = attribute_bits(facts.td_attributes)
    if bits is None or bits & DEBUG:
        found = f"td_attributes {facts.td_attributes or 'missing'}"
        no(PolicyCode.FLOOR_DEBUG, "DEBUG (bit 0) clear", found, "the TD is launched without DEBUG")
    states = (facts.tcb_status, facts.platform_tcb_status, facts.module_tcb_status, facts.qe_tcb_status)
    if not facts.tcb_status or "Revoked" in states:
        found = ", ".join(state or "none" for state in states)
        no(PolicyCode.FLOOR_REVOKED, "no state Revoked", found, "no part of the platform is revoked")
    if not facts.verified_at <= context.at <= facts.valid_until:
        window = f"{facts.verified_at.isoformat()} to {facts.valid_until.isoformat()}"
        no(PolicyCode.FLOOR_TIME, window, context.at.isoformat(), "the evidence is verified again at this time")
    if facts.compared == "nothing":
        passes = "the quote is verified against the expected REPORT_DATA"
        no(PolicyCode.FLOOR_NOT_COMPARED, "REPORT_DATA compared", "not compared", passes)
    elif facts.compared != "binding" and context.via != "kbs" and not (unbound and action == "Admit"):
        passes = "the agent attests with a Binding (keys, nonce and tenant in REPORT_DATA)"
        no(PolicyCode.FLOOR_NOT_ADMITTED, "a Binding", "bare REPORT_DATA", passes)
    return tuple(reasons)


def kbs_unnamed(rules: Sequence[Rule], permits: Sequence[str], asked: Asked, context: Context) -> tuple[Reason, ...]:
    """Over the KBS protocol, with its weaker tokens, a secret goes out only by a permit that says so.

    A permit that does not mention `context.via` was written with the own protocol in mind.
    """
    if context.via != "kbs" or asked.action != "ReleaseSecret":
        return ()
    named = {rule.id for rule in rules if rule.names_via}
    if any(name in named for name in permits):
        return ()
    rule = next((rule for rule in rules if rule.id in permits), None)
    return (
        Reason(
            code=PolicyCode.CONDITION,
            rule=rule.id if rule else "kbs",
            file=rule.file if rule else "",
            line=rule.line if rule else 0,
            expected='a permit that names context.via == "kbs"',
            found=f"{', '.join(permits)}, which does not mention it",
            passes_if='a permit for this secret has the condition context.via == "kbs"',
        ),
    )
