"""Who among the administrators may do what: three roles, scoped to tenants, and acts that need two people.

Decides the table of acts. Nobody, in any role, may read a secret: there is no such act. An act that the operator has
marked is done when a second administrator, under another key, asks for exactly the same within the hour (second.py).

    security   everything: revoke, destroy, reload policies, confirm checkpoints
    operator   daily work: put and rotate secrets, end leases, refresh collateral, give dead letters another chance
    auditor    looks at everything, changes nothing
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from broker.errors import BrokerCode, BrokerError

ROLES: Final = ("security", "operator", "auditor")


class Act(StrEnum):
    """What an administrator can do. Public and stable: settings name them."""

    AGENT_LIST = "agent.list"
    AGENT_REVOKE = "agent.revoke"
    CHECKPOINT_CONFIRM = "checkpoint.confirm"
    COLLATERAL_REFRESH = "collateral.refresh"
    KEY_ROTATE = "key.rotate"
    LEASE_END = "lease.end"
    LOG_READ = "log.read"
    MAIL_LIST = "mail.list"
    MAIL_REDRIVE = "mail.redrive"
    POLICY_RELOAD = "policy.reload"
    RELEASE_LIST = "release.list"
    SECRET_DESTROY = "secret.destroy"
    SECRET_LIST = "secret.list"
    SECRET_PUT = "secret.put"
    SECRET_ROTATE = "secret.rotate"
    STATUS_READ = "status.read"


_LOOKING: Final = frozenset(
    {Act.AGENT_LIST, Act.LOG_READ, Act.MAIL_LIST, Act.RELEASE_LIST, Act.SECRET_LIST, Act.STATUS_READ}
)
_DAILY: Final = frozenset(
    {Act.SECRET_PUT, Act.SECRET_ROTATE, Act.COLLATERAL_REFRESH, Act.KEY_ROTATE, Act.LEASE_END, Act.MAIL_REDRIVE}
    | _LOOKING
)
MAY: Final[dict[str, frozenset[Act]]] = {"security": frozenset(Act), "operator": _DAILY, "auditor": _LOOKING}
MARKABLE: Final = frozenset(Act) - _LOOKING - {Act.CHECKPOINT_CONFIRM}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """An administrator: the RFC 7638 thumbprint of a P-256 key, a role, and the tenants it holds for (none: all)."""

    name: str
    jkt: str
    role: str = "security"
    tenants: tuple[str, ...] = ()

    @property
    def may_change(self) -> bool:
        return self.role != "auditor"

    def require_role(self, act: Act) -> None:
        """Raises BrokerError admin.role."""
        if act not in MAY.get(self.role, frozenset()):
            raise BrokerError(BrokerCode.ADMIN_ROLE, f"{self.name} is {self.role}: no {act}")

    def require(self, act: Act, tenant: str) -> None:
        """Raises BrokerError admin.role, admin.tenant."""
        self.require_role(act)
        if self.tenants and tenant not in self.tenants:
            raise BrokerError(BrokerCode.ADMIN_TENANT, f"{self.name} is for {', '.join(self.tenants)}, not {tenant!a}")

    def require_everywhere(self, act: Act) -> None:
        """For what concerns the whole broker. Raises BrokerError admin.role, admin.tenant."""
        self.require(act, "")

    def scope(self, act: Act, tenant: str | None) -> str | None:
        """The tenant whose things a listing may show; None for all. Raises BrokerError admin.role, admin.tenant."""
        if tenant is None and len(self.tenants) == 1:
            tenant = self.tenants[0]
        self.require(act, tenant or "")
        return tenant

    def sees(self, tenant: str, subject: str = "") -> bool:
        """Whether an entry of the log about that tenant or agent is his to read."""
        his = (f"agent/{name}/" for name in self.tenants)
        return not self.tenants or tenant in self.tenants or any(subject.startswith(prefix) for prefix in his)
