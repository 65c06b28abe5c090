"""The settings of a bundle as values: `bundle.toml` and `reference-values.toml`, read.

Decides what can be set, and that every setting knows where it stands, so that a refusal can name the line. What the
files may say is decided by `readsettings`, what settings ask of a verdict by `appraisal`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from policies.codes import PolicyCode
from policies.errors import Reason
from policies.mailrules import MailRules
from policies.model import Place
from policies.reference import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbRule:
    """Which TCB states pass. `advisories_allowed` None means that any advisory may be there, unless denied."""

    accept: frozenset[str]
    min_evaluation_number: int = 0
    min_tcb_date: datetime | None = None
    advisories_allowed: frozenset[str] | None = frozenset()
    advisories_denied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """A looser rule that holds until a date; what passes only by it stands at `grace`, which rules can read."""

    rule: TcbRule
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Platforms:
    """Whose hardware is trusted: lists of ids (any one suffices), or everything until a date."""

    ppids: frozenset[str] = frozenset()
    piids: frozenset[str] = frozenset()
    fmspcs: frozenset[str] = frozenset()
    any_until: datetime | None = None
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None
    max_addresses: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One allowance (a name that `verify_quote` knows), until a date."""

    name: str
    until: datetime
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`bundle.toml` and `reference-values.toml`, read. `lines` says where each key stands."""

    tenant: str
    version: int
    tcb: TcbRule
    grace: Grace | None
    platforms: Platforms
    grants: tuple[Grant, ...]
    max_age_s: int
    age_grace_s: int
    suites: frozenset[str]
    roles: frozenset[str]
    workloads: tuple[Workload, ...]
    unbound: bool = False
    """Whether evidence without a Binding can pass `Admit`: for services that verify and grant nothing."""
    mail: MailRules = field(default_factory=MailRules)
    tools: tuple[tuple[str, str], ...] = ()
    """Tools by the name that `CallTool` is asked about, and the digest of the description that is approved."""
    lines: tuple[tuple[str, int], ...] = ()

    def place(self, key: str) -> Place:
        """Where a key stands; for one that was left out, the table around it, which may be the file itself."""
        known = dict(self.lines)
        while key and key not in known:
            key = key.rpartition(".")[0]
        return Place(file="bundle.toml", line=known.get(key, 1))

    def reason(
        self, code: PolicyCode, key: str, *, expected: str, found: str, passes_if: str, nearest: str = ""
    ) -> Reason:
        """That what stands at `key` is not met."""
        place = self.place(key)
        return Reason(
            code=code,
            rule=key,
            file=place.file,
            line=place.line,
            expected=expected,
            found=found,
            nearest=nearest,
            passes_if=passes_if,
        )
