"""The words of the rule language: the shipped schema, the attributes in it, and the values that some of them can have.

Decides what counts as a typing mistake in a rule. The schema file is the authority; the tables here are read from it or
name closed sets that Cedar's types cannot express.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

import cedarpy

from attestation.tcb import TcbStatus

SCHEMA_FILE: Final = "schema.cedarschema"
SCHEMA_TEXT: Final = (Path(__file__).parent / SCHEMA_FILE).read_text("utf-8")

_ENTITY: Final = re.compile(r"entity (\w+)[^={;]*=\s*\{(.*?)\};", re.S)
_ATTRIBUTE: Final = re.compile(r"(\w+)\??:")


def _plain(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(_ATTRIBUTE.findall(body)) for name, body in _ENTITY.findall(_plain(SCHEMA_TEXT))
}
CONTEXT: Final = (
    "now",
    "age_s",
    "standing",
    "via",
    "platform_addresses",
    "source_ip",
    "message_type",
    "operation",
    "audience",
)

TCB_STATES: Final = tuple(status.value for status in TcbStatus)
ACCEPTABLE_STATES: Final = tuple(state for state in TCB_STATES if state != "Revoked")
ALLOWANCES: Final = ("sept_ve_disable_clear", "migratable", "service_td", "nested_vm", "unknown_attributes")
SUITES: Final = ("mlkem768-x25519", "x25519")
ROLES: Final = ("agent", "broker", "peer")

# path → the only values it can have
DOMAINS: Final[dict[str, tuple[str, ...]]] = {
    "principal.tcb_status": ACCEPTABLE_STATES,
    "principal.platform_tcb_status": ACCEPTABLE_STATES,
    "principal.module_tcb_status": (*ACCEPTABLE_STATES, ""),
    "principal.qe_tcb_status": ACCEPTABLE_STATES,
    "principal.role": (*ROLES, ""),
    "principal.compared": ("binding", "bytes"),
    "principal.suite": (*SUITES, ""),
    "principal.allowances": ALLOWANCES,
    "context.standing": ("current", "grace"),
    "context.via": ("cloister", "kbs"),
}

# path → how many lower-case hex digits its values have
HEX: Final[dict[str, int]] = {
    **{f"principal.{name}": 96 for name in ("mr_td", "mr_seam", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "launches")},
    **{f"principal.{name}": 96 for name in ("mr_config_id", "mr_owner", "mr_owner_config", "mr_service_td")},
    **{f"principal.{name}": 16 for name in ("td_attributes", "xfam")},
    **{f"principal.{name}": 32 for name in ("ppid", "piid")},
    **{f"principal.{name}": 64 for name in ("root_sha256", "trust_file_digest")},
    "principal.fmspc": 12,
}


@lru_cache(maxsize=1)
def schema() -> cedarpy.Schema:
    """The parsed schema. One for the process: it is immutable and the same for every bundle."""
    return cedarpy.Schema.from_str(SCHEMA_TEXT)


def same_schema(text: str) -> bool:
    """Whether a bundle's schema says what the shipped one says; comments and spacing do not count."""
    return _plain(text).split() == _plain(SCHEMA_TEXT).split()
