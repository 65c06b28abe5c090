"""The demo's policy bundle: who may run, and what each of them gets. Small enough to be read aloud.

Decides nothing at run time: it writes the files of a bundle, which the broker loads like any other. The agents' code
digests come from measuring their copies, the image's measurements from the simulated machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.scaffold import starter

TENANT = "demo"
SECRET = "demo/research/report-key"
_BUNDLE = """\
# Who is trusted: this one platform, fully patched, with fresh evidence.
tenant = "demo"
version = 1

[platforms]
ppid = ["{ppid}"]

[tcb]
accept = ["UpToDate"]

[freshness]
max_age_s = 600
"""
_WORKLOAD = """
[[workload]]
name = "{name}"

[[workload.value]]
source = "measured by the demo before it started"
mr_td = "{mr_td}"
rtmr1 = "{rtmr1}"
rtmr2 = "{rtmr2}"
launches = ["{code}"]
"""
_ADMIT = """
@id("admit-{name}")
permit (principal in Workload::"{name}", action == Action::"Admit", resource == Tenant::"demo")
when {{ context.via == "cloister" }};

@id("mail-{name}")
permit (principal in Workload::"{name}", action in [Action::"Send", Action::"Receive"], resource in Path::"demo/mail")
when {{ context.standing == "current" }};
"""
_RELEASE = """\
// The report's key goes to the researcher's exact code and to nobody else.
@id("release-report-key")
permit (principal in Workload::"researcher", action == Action::"ReleaseSecret", resource in Path::"demo/research")
when { principal.tcb_status == "UpToDate" && context.via == "cloister" };
"""


def bundle(*, ppid: str, measurements: Mapping[str, str], code: Mapping[str, str]) -> dict[str, bytes]:
    """The files of the bundle. `measurements` has mr_td, rtmr1 and rtmr2 in hex; `code` agent's name → digest."""
    values = "".join(_WORKLOAD.format(name=name, code=digest, **measurements) for name, digest in code.items())
    rules = _RELEASE + "".join(_ADMIT.format(name=name) for name in code)
    return {
        "bundle.toml": _BUNDLE.format(ppid=ppid).encode(),
        "reference-values.toml": values.encode(),
        "policy.cedar": rules.encode(),
        "schema.cedarschema": starter("lab")["schema.cedarschema"],
    }
