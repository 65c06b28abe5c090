"""The stage on which a fault is played: a copy of a machine, and tools that make one thing wrong at a time.

Decides how quotes and collateral are taken apart and signed again. A scene works on a fork, so a fault that revokes a
platform or patches it leaves the machine as it was. Which faults there are is decided in `faults_*`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from cryptography import x509

from simulator import quoting
from simulator.collateral import Documents
from simulator.domain import SimulatedTd
from simulator.exhibit import Exhibit
from simulator.machine import Machine
from simulator.pki import Identity, Profile, RevocationList, issue, profile
from simulator.platform import AUTH_DATA, Platform
from simulator.quoting import Certified, EnclaveFacts
from simulator.seed import SigningKey, sign

DAY_S: Final = 86_400
_SIZES: Final = {quoting.ENCLAVE_BODY: 384, quoting.TD_BODY_10: 584, quoting.TD_BODY_15: 648, quoting.TD_BODY_15EX: 885}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A quote taken apart, to be changed with `dataclasses.replace` and signed again."""

    signed: bytes
    """Header, descriptor (version 5) and body"""
    certified: Certified
    key: SigningKey

    @property
    def version(self) -> int:
        return int.from_bytes(self.signed[:2], "little")

    @property
    def body_at(self) -> int:
        return 54 if self.version == 5 else 48

    def header(self, offset: int, value: bytes) -> Parts:
        """Overwrite header bytes."""
        return replace(self, signed=self.signed[:offset] + value + self.signed[offset + len(value) :])

    def body(self, offset: int, value: bytes) -> Parts:
        """Overwrite body bytes; offsets are those of the TD report."""
        return self.header(self.body_at + offset, value)

    def build(self, *, version: int | None = None) -> bytes:
        """Sign what stands here. `version` lays the rest out as that version does, whatever the header says."""
        tail = self.certified.encode(version or self.version)
        return self.signed + struct.pack("<I", 64 + len(tail)) + sign(self.key, self.signed) + tail


class Scene:
    """One verification to be spoilt: a machine's fork, one platform, one moment, one expected REPORT_DATA."""

    def __init__(
        self,
        machine: Machine,
        *,
        report_data: bytes,
        at: datetime | float | None = None,
        platform: int = 0,
        version: int | None = None,
        body: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.machine = machine.fork(at)
        self.at = int(self.machine.clock.time())
        self.machine.clock.set(self.at)
        self.report_data = report_data
        self.index = platform
        self.version = version
        self.body = body
        self._options = options or {}

    @property
    def platform(self) -> Platform:
        return self.machine.platform(self.index)

    @cached_property
    def stranger(self) -> Machine:
        """A machine whose root nobody here trusts."""
        seed = self.machine.seed.derive("fault/stranger", 32)
        return Machine.create(seed=seed, platforms=[self.platform.spec]).fork(self.at)

    def key(self, label: str) -> SigningKey:
        """A key of the attacker's own."""
        return self.machine.seed.key(f"fault/{label}")

    def day(self, offset: int) -> datetime:
        """The moment of judgement, so many days later."""
        return datetime.fromtimestamp(self.at + offset * DAY_S, UTC)

    # --- quotes ---

    def td(self, **options: Any) -> SimulatedTd:
        """A domain as asked for by the caller, except for `options`."""
        chosen: dict[str, Any] = {"platform": self.index, "label": "fault", **self._options, **options}
        return self.machine.launch(**chosen)

    def quote(self, td: SimulatedTd | None = None, report_data: bytes | None = None) -> bytes:
        """A good quote in the wanted version."""
        return (td or self.td()).quote(report_data or self.report_data, version=self.version, body=self.body)

    def parts(self, quote: bytes | None = None, *, enclave: bool = False) -> Parts:
        """A good quote (or this one of this platform) taken apart."""
        quote = quote or self.quote()
        version = int.from_bytes(quote[:2], "little")
        body_type = int.from_bytes(quote[48:50], "little") if version == 5 else 2 if version == 4 else 1
        size = (54 if version == 5 else 48) + _SIZES[body_type]
        name = "qe" if enclave else "tdqe"
        certified = (self.platform.qe if enclave else self.platform.tdqe).certified
        return Parts(signed=quote[:size], certified=certified, key=self.platform.attestation_key(name))

    def recertified(
        self,
        *,
        key: SigningKey | None = None,
        pck: SigningKey | None = None,
        chain: bytes | None = None,
        **facts: Any,
    ) -> Parts:
        """A good quote whose quoting enclave is another: other facts, key, PCK key or chain, all properly signed."""
        platform = self.platform
        enclave = EnclaveFacts(**asdict(platform.enclave_facts("tdqe", svn=platform.spec.qe_svn)) | facts)
        parts = self.parts()
        attestation = key or parts.key
        certified = quoting.certify(
            attestation, pck or platform.pck.key, enclave, chain or platform.pck_chain, AUTH_DATA
        )
        return replace(parts, key=attestation, certified=certified)

    def with_leaf(self, leaf: Identity, ca: Identity | None = None) -> Parts:
        """A good quote under another PCK certificate, and another CA if there is one."""
        issuer = ca or self.machine.pki.ca(self.platform.spec.ca)
        return self.recertified(pck=leaf.key, chain=leaf.pem + issuer.pem + self.machine.pki.root.pem + b"\0")

    def leaf(
        self,
        shape: Profile | None = None,
        *,
        issuer: Identity | None = None,
        extension: x509.ExtensionType | None = None,
        bare: bool = False,
    ) -> Identity:
        """A PCK certificate for this platform of another shape, or by another issuer, or without SGX extension."""
        extra = [] if bare else [extension or self.platform.extension().encode()]
        ca = self.machine.pki.ca(self.platform.spec.ca)
        return issue(self.machine.seed, "fault/pck", shape or profile("pck"), issuer or ca, extra=extra)

    # --- collateral ---

    def documents(self, tee: str = "tdx", **wanted: Any) -> Documents:
        """What the PCS serves for this platform at this moment."""
        spec = self.platform.spec
        return self.machine.documents(tee, **{"fmspc": spec.fmspc, "ca": spec.ca} | wanted)

    def tcb_info(self, edit: Callable[[dict[str, Any]], Any], documents: Documents | None = None) -> Documents:
        """TCB info with `edit` applied, signed again by the TCB signer."""
        documents = documents or self.documents()
        text, signature = self._edited(documents.tcb_info, edit)
        return replace(documents, tcb_info=text, tcb_info_signature=signature)

    def qe_identity(self, edit: Callable[[dict[str, Any]], Any], documents: Documents | None = None) -> Documents:
        """QE identity with `edit` applied, signed again by the TCB signer."""
        documents = documents or self.documents()
        text, signature = self._edited(documents.qe_identity, edit)
        return replace(documents, qe_identity=text, qe_identity_signature=signature)

    def _edited(self, text: str, edit: Callable[[dict[str, Any]], Any]) -> tuple[str, bytes]:
        document = json.loads(text)
        edit(document)
        return self.signed(json.dumps(document, separators=(",", ":")))

    def signed(self, text: str) -> tuple[str, bytes]:
        return text, sign(self.machine.pki.tcb_signing.key, text.encode())

    def signed_by(self, signer: Identity, chain: bytes | None = None) -> Documents:
        """Both texts signed by `signer`, with its chain (or `chain`) in place of the TCB signer's."""
        documents = self.documents()
        pem = (chain or signer.pem + self.machine.pki.root.pem).decode()
        return replace(
            documents,
            tcb_info_signature=sign(signer.key, documents.tcb_info.encode()),
            qe_identity_signature=sign(signer.key, documents.qe_identity.encode()),
            tcb_info_issuer_chain=pem,
            qe_identity_issuer_chain=pem,
        )

    def signer(self, shape: Profile | None = None, *, issuer: Identity | None = None) -> Identity:
        """A TCB signing certificate of another shape, or by another issuer."""
        root = self.machine.pki.root
        return issue(self.machine.seed, "fault/tcb-signing", shape or profile("tcb-signing"), issuer or root)

    def crl(self, *, begins: int = -1, ends: int = 29) -> RevocationList:
        """An empty list in force from day `begins` to day `ends`, counted from now."""
        return RevocationList(number=1, this_update=self.day(begins), next_update=self.day(ends), revoked={})

    # --- the result ---

    def exhibit(
        self,
        quote: bytes | Parts | None = None,
        collateral: Documents | str | None = None,
        event_log: bytes | None = None,
        **other: Any,
    ) -> Exhibit:
        """What is judged: the parts given, and good ones for the rest."""
        td = self.td() if quote is None or event_log is None else None
        quote = self.quote(td) if quote is None else quote
        collateral = self.documents() if collateral is None else collateral
        return Exhibit(
            quote=quote.build() if isinstance(quote, Parts) else quote,
            collateral=collateral if isinstance(collateral, str) else collateral.to_json(),
            event_log=td.event_log() if event_log is None and td else event_log or b"",
            report_data=self.report_data,
            at=self.at,
            root_pem=self.machine.root_pem,
            **other,
        )
