"""The policies in force: one bundle for each tenant.

Decides which bundle judges whom: the one of the tenant that the evidence names. What bundles say, and what is wrong
with one, is `policies`' business; that a change voids every permit is generation.py's.
"""

from collections.abc import Iterable
from typing import final

from broker.errors import BrokerCode, BrokerError
from policies.bundle import Bundle


@final
class Bundles:
    """Bundles by tenant."""

    def __init__(self, bundles: Iterable[Bundle]) -> None:
        self._found: dict[str, Bundle] = {}
        for bundle in bundles:
            if bundle.tenant in self._found:
                raise BrokerError(BrokerCode.CONFIG_INVALID, f"two bundles for tenant {bundle.tenant}")
            self._found[bundle.tenant] = bundle

    def of(self, tenant: str) -> Bundle:
        """Raises BrokerError attestation.tenant_unknown."""
        found = self._found.get(tenant)
        if found is None:
            raise BrokerError(BrokerCode.ATTESTATION_TENANT, f"tenant {tenant!a}")
        return found

    def check_successor(self, bundle: Bundle) -> None:
        """Raises BrokerError config.invalid, when the bundle is not newer than the tenant's present one."""
        old = self._found.get(bundle.tenant)
        if old is not None and bundle.version <= old.version and bundle.digest != old.digest:
            detail = f"bundle {bundle.tenant} has version {bundle.version}, in force is {old.version}: raise it"
            raise BrokerError(BrokerCode.CONFIG_INVALID, detail, shown=detail)

    def replace(self, bundle: Bundle) -> None:
        self._found[bundle.tenant] = bundle

    @property
    def all(self) -> tuple[Bundle, ...]:
        return tuple(self._found[tenant] for tenant in sorted(self._found))
