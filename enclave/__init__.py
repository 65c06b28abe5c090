"""What runs inside a trust domain: the agent's keys, its half of the protocol, and the API that authors of agents use.

    from enclave import Agent
    agent = Agent("researcher")

The names below are imported from their modules when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from attestation.errors import CloisterError as CloisterError
    from enclave.agent import Agent as Agent
    from enclave.context import Context as Context
    from enclave.declared import Retry as Retry
    from enclave.durable import Durable as Durable
    from enclave.errors import BrokerRefused as BrokerRefused
    from enclave.errors import EnclaveError as EnclaveError
    from enclave.errors import Reject as Reject
    from enclave.errors import ToolRefused as ToolRefused
    from enclave.guards import Allow as Allow
    from enclave.guards import Deny as Deny
    from enclave.guards import ToolUse as ToolUse
    from enclave.tools import UNPINNED as UNPINNED
    from enclave.tools import Progress as Progress
    from enclave.tools import ToolDescription as ToolDescription
    from enclave.trustfile import TrustFile as TrustFile

_HOME: Final = {
    "UNPINNED": "tools",
    "Agent": "agent",
    "Allow": "guards",
    "BrokerRefused": "errors",
    "CloisterError": "errors",
    "Context": "context",
    "Deny": "guards",
    "Durable": "durable",
    "EnclaveError": "errors",
    "Progress": "tools",
    "Reject": "errors",
    "Retry": "declared",
    "ToolDescription": "tools",
    "ToolRefused": "errors",
    "ToolUse": "guards",
    "TrustFile": "trustfile",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'enclave' has no attribute {name!r}")
    value = getattr(import_module(f"enclave.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
