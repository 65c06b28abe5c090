"""Policies as data: what is trusted and who may do what, decided with a reason. Pure: no clock, network or SQL.

The names below are the public library; each is imported from its module when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from policies.bundle import Bundle as Bundle
    from policies.bundle import load_bundle as load_bundle
    from policies.codes import BundleCode as BundleCode
    from policies.codes import PolicyCode as PolicyCode
    from policies.engine import appraise_verdict as appraise_verdict
    from policies.engine import decide as decide
    from policies.engine import judge as judge
    from policies.errors import BundleError as BundleError
    from policies.errors import Reason as Reason
    from policies.errors import Refused as Refused
    from policies.model import Administer as Administer
    from policies.model import Admit as Admit
    from policies.model import CallTool as CallTool
    from policies.model import Context as Context
    from policies.model import Declassify as Declassify
    from policies.model import Facts as Facts
    from policies.model import IssueToken as IssueToken
    from policies.model import Receive as Receive
    from policies.model import ReleaseSecret as ReleaseSecret
    from policies.model import Send as Send
    from policies.permit import Permit as Permit
    from policies.permit import permit_digest as permit_digest
    from policies.signing import Signers as Signers

_HOME: Final = {
    "Administer": "model",
    "Admit": "model",
    "Bundle": "bundle",
    "BundleCode": "codes",
    "BundleError": "errors",
    "CallTool": "model",
    "Declassify": "model",
    "Context": "model",
    "Facts": "model",
    "IssueToken": "model",
    "Permit": "permit",
    "PolicyCode": "codes",
    "Reason": "errors",
    "Receive": "model",
    "Refused": "errors",
    "ReleaseSecret": "model",
    "Send": "model",
    "Signers": "signing",
    "appraise_verdict": "engine",
    "decide": "engine",
    "judge": "engine",
    "load_bundle": "bundle",
    "permit_digest": "permit",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'policies' has no attribute {name!r}")
    value = getattr(import_module(f"policies.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
