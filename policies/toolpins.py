"""Which descriptions of tools the policy approves: agents that pin a tool nowhere else go by these.

Decides the form, `[[tool]]` with `name` and `digest`. The name is the one that `CallTool` is asked about; the digest is
that of the description which the tool's server gives, and callers compare it: a broker sees neither descriptions nor
arguments. Whether a tool may be called is the rules' to say.
"""

from __future__ import annotations

from typing import Final

from attestation.names import name_problem
from policies.codes import BundleCode
from policies.tables import Table

DIGEST_DIGITS: Final = 64  # SHA-256


def read_tool_pins(tables: list[Table], tenant: str) -> tuple[tuple[str, str], ...]:
    """Name and digest of each `[[tool]]`, by name."""
    found: dict[str, str] = {}
    for table in tables:
        name, digest = table.text("name", required=True), table.hex("digest", DIGEST_DIGITS, required=True)
        if name and (name_problem(name) or name.split("/")[:2] != [tenant, "tools"] or name.count("/") < 3):
            hint = f'write name = "{tenant}/tools/AGENT/TOOL", as CallTool is asked about it'
            table.complain("name", BundleCode.VALUE, f"{table.name('name')} = {name!r} is no tool's name here", hint)
        if name in found:
            table.complain("name", BundleCode.DUPLICATE, f"the tool {name!r} stands twice", "keep one")
        found[name] = digest
        table.done()
    return tuple(sorted(found.items()))
