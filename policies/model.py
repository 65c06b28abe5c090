"""What is judged: the facts of a verdict, the action asked for, and the circumstances.

Decides the vocabulary that bundles, rules and tests share; judges nothing. `Facts` is a plain view, so that generated
test facts and recorded evidence go through the same code as live verdicts. Only `engine.decide`, which takes a
`Verdict`, turns a judgement into a Permit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, cast, final

if TYPE_CHECKING:
    from attestation.verdict import Verdict

NEVER: Final = datetime(1, 1, 1, tzinfo=UTC)

Compared = Literal["binding", "bytes", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFact:
    """One `cloister run` in the TD's life: SHA-384 over the code (hex) and the name it was given."""

    digest: str
    name: str = ""


@final
class Alike:
    """Values that are looked up by, often: they are hashed once."""

    __slots__ = ("_hash", "_values")

    def __init__(self, values: tuple[object, ...]) -> None:
        self._values = values
        self._hash = hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and self._values == other._values


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a verdict says, as plain values. Whatever is missing stays empty, and empty passes no check.

    Measurements, ids and attributes are lower-case hex; times are aware, UTC.
    """

    subject: str = ""
    tenant: str = ""
    role: str = ""
    tee: str = ""
    compared: Compared = "nothing"
    tcb_status: str = ""
    platform_tcb_status: str = ""
    module_tcb_status: str = ""
    qe_tcb_status: str = ""
    advisory_ids: tuple[str, ...] = ()
    tcb_date: datetime = NEVER
    tcb_evaluation_number: int = 0
    qe_evaluation_number: int = 0
    fmspc: str = ""
    ppid: str = ""
    piid: str = ""
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None
    mr_td: str = ""
    mr_seam: str = ""
    rtmr0: str = ""
    rtmr1: str = ""
    rtmr2: str = ""
    rtmr3: str = ""
    mr_config_id: str = ""
    mr_owner: str = ""
    mr_owner_config: str = ""
    mr_service_td: str = ""
    td_attributes: str = ""
    xfam: str = ""
    report_data: str = ""
    launches: tuple[LaunchFact, ...] = ()
    event_log_present: bool = False
    event_digests: tuple[tuple[str, ...], ...] = ()
    allowances: tuple[str, ...] = ()
    jkt: str = ""
    suite: str = ""
    broker_id: str = ""
    trust_file_digest: str = ""
    quote_digest: str = ""
    collateral_digest: str = ""
    root_sha256: str = ""
    simulated: bool = False
    verified_at: datetime = NEVER
    valid_until: datetime = NEVER

    @cached_property
    def alike(self) -> Alike:
        """All that these facts have in common with those of other agents who must be judged alike."""
        return Alike(_alike(self))

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        """The facts of a verdict; a pure copy."""
        values: dict[str, Any] = dict(zip(_COPIED, _copied(verdict), strict=True))
        for name in _OTHER_TEXT:
            values[name] = str(values[name] or "")
        rtmrs = tuple(verdict.rtmrs) or ("", "", "", "")
        values.update({f"rtmr{index}": value for index, value in enumerate(rtmrs)})
        values["launches"] = tuple(LaunchFact(digest=launch.digest, name=launch.name) for launch in verdict.launches)
        values["compared"] = compared_of(verdict)
        made = object.__new__(cls)
        made.__dict__.update(values)  # every field, as `__init__` would do it one by one
        return made


_SPECIAL: Final = {"rtmr0", "rtmr1", "rtmr2", "rtmr3", "launches", "compared"}
_COPIED: Final = tuple(item.name for item in fields(Facts) if item.name not in _SPECIAL)
_OTHER_TEXT: Final = ("tee", "tcb_status", "platform_tcb_status", "module_tcb_status", "qe_tcb_status", "piid")
"""What is not plain text in a verdict, or may be missing there."""
_copied: Final = attrgetter(*_COPIED)
OF_ONE: Final = {"subject", "jkt", "report_data", "quote_digest", "verified_at", "valid_until"}
"""What is one agent's own, and no appraisal asks for but that of its age."""
_alike: Final = attrgetter(*(item.name for item in fields(Facts) if item.name not in OF_ONE))


def compared_of(verdict: Verdict) -> Compared:
    """What REPORT_DATA was compared with; `admission` is true only for a Binding."""
    if verdict.admission:
        return "binding"
    return "bytes" if verdict.compared else "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The circumstances of one decision. `at` is aware; naive times raise TypeError.

    via                 "cloister" (the own protocol) or "kbs"
    source_ip           the caller's address as the broker saw it
    platform_addresses  from how many addresses this platform id was seen lately, this one included
    """

    at: datetime
    via: str = "cloister"
    source_ip: str | None = None
    platform_addresses: int = 1

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise TypeError("`at` must be an aware datetime")


@dataclass(frozen=True, slots=True)
class Admit:
    """Be admitted as an agent of the bundle's tenant."""

    action: ClassVar[str] = "Admit"


@dataclass(frozen=True, slots=True)
class ReleaseSecret:
    """Have a secret sealed to the agent. `name` is tenant/path/name."""

    name: str
    version: int = 0
    labels: frozenset[str] = frozenset()
    action: ClassVar[str] = "ReleaseSecret"


@dataclass(frozen=True, slots=True)
class Send:
    """Put a message into a mailbox or topic."""

    mailbox: str
    message_type: str = ""
    labels: frozenset[str] = frozenset()
    kind: Literal["mailbox", "topic"] = "mailbox"
    action: ClassVar[str] = "Send"


@dataclass(frozen=True, slots=True)
class Receive:
    """Read a mailbox or topic."""

    mailbox: str
    labels: frozenset[str] = frozenset()
    kind: Literal["mailbox", "topic"] = "mailbox"
    action: ClassVar[str] = "Receive"


@dataclass(frozen=True, slots=True)
class CallTool:
    """Call a tool; `labels` are those of what goes into it."""

    tool: str
    labels: frozenset[str] = frozenset()
    action: ClassVar[str] = "CallTool"


@dataclass(frozen=True, slots=True)
class Declassify:
    """Send there without `labels`, although what the sender has read carries them."""

    mailbox: str
    message_type: str = ""
    labels: frozenset[str] = frozenset()
    kind: Literal["mailbox", "topic"] = "mailbox"
    action: ClassVar[str] = "Declassify"


@dataclass(frozen=True, slots=True)
class IssueToken:
    """Be given a token for somebody else: `audience` is whoever will read it, compared as a whole text."""

    audience: str
    action: ClassVar[str] = "IssueToken"


@dataclass(frozen=True, slots=True)
class Administer:
    """Do an administrative operation ("rotate", "lower_labels" …) on something of the tenant."""

    target: str
    operation: str
    labels: frozenset[str] = frozenset()
    action: ClassVar[str] = "Administer"


Action = Admit | ReleaseSecret | Send | Receive | CallTool | Declassify | IssueToken | Administer
NO_LABELS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Asked:
    """An action as rules see it: which action, on which resource, with which words beside it."""

    action: str
    kind: str
    name: str
    labels: frozenset[str] = NO_LABELS
    version: int = 0
    extra: tuple[tuple[str, str], ...] = ()


def asked(action: Action, tenant: str) -> Asked:
    """The rule's view of an action. `Admit` is asked of the bundle's own tenant."""
    match action:
        case Admit():
            return Asked("Admit", "Tenant", tenant)
        case ReleaseSecret(name, version, labels):
            return Asked("ReleaseSecret", "Secret", name, labels, version)
        case Send(name, message_type, labels, kind):
            return Asked("Send", kind.capitalize(), name, labels, extra=(("message_type", message_type),))
        case Receive(name, labels, kind):
            return Asked("Receive", kind.capitalize(), name, labels)
        case CallTool(name, labels):
            return Asked("CallTool", "Tool", name, labels)
        case Declassify(name, message_type, labels, kind):
            return Asked("Declassify", kind.capitalize(), name, labels, extra=(("message_type", message_type),))
        case IssueToken(audience):
            return Asked("IssueToken", "Tenant", tenant, extra=(("audience", audience),))
        case Administer(name, operation, labels):
            return Asked("Administer", "Target", name, labels, extra=(("operation", operation),))


_NAMED: Final[dict[str, type[Any]]] = {
    "Admit": Admit,
    "ReleaseSecret": ReleaseSecret,
    "Send": Send,
    "Receive": Receive,
    "CallTool": CallTool,
    "Declassify": Declassify,
    "IssueToken": IssueToken,
    "Administer": Administer,
}
ACTIONS: Final = tuple(_NAMED)


def parse_action(text: str, options: Mapping[str, Any] | None = None) -> Action:
    """`Admit`, `ReleaseSecret:acme/db/password`, `Administer:acme/db/password:rotate`, `Send:topic:acme/news`,
    `IssueToken:https://models.example` …

    Raises ValueError with the list of actions, or the fields that the action lacks.
    """
    name, _, rest = text.partition(":")
    kind = _NAMED.get(name)
    if kind is None:
        raise ValueError(f"unknown action {name!r}; there are {', '.join(ACTIONS)}")
    values: dict[str, Any] = dict(options or {})
    if "labels" in values:
        values["labels"] = frozenset(values["labels"])
    positional: list[str] = []
    if rest:
        if name in ("Send", "Receive", "Declassify") and rest.partition(":")[0] in ("topic", "mailbox"):
            values["kind"], _, rest = rest.partition(":")
        positional = rest.split(":") if name == "Administer" else [rest]
    try:
        return cast("Action", kind(*positional, **values))
    except TypeError as error:
        known = ", ".join(item.name for item in fields(kind))
        wanted = [item.name for item in fields(kind) if item.default is MISSING]
        hint = f"; write {':'.join([name, *wanted])}" if wanted else ""
        raise ValueError(f"{name} takes {known or 'nothing'}{hint}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something stands in a bundle."""

    file: str
    line: int = 0
