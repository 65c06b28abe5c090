"""One simulated processor package: its identity, its TCB, its quoting enclaves and the keys behind them.

Decides how a `PlatformSpec`, which is data and kept in the machine's folder, becomes certificates and quotes. Two specs
with the same `identity` are the same platform twice: same PPID, same keys, as after an attacker has extracted them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Final, Self

from simulator import quoting, tdreport
from simulator.errors import SimulatorCode, SimulatorError
from simulator.pki import Hierarchy, Identity, issue, profile
from simulator.quoting import Certified, EnclaveFacts, ExtendedFacts, QuoteHeader, QuotingEnclave
from simulator.seed import Seed, sha256, sha384
from simulator.sgx_extension import SgxExtension

PPID_MARK: Final = b"SIM\0"
"""The first bytes of every PPID and platform instance id."""
AUTH_DATA: Final = bytes(range(32))
"""What Intel's quoting enclaves hash beside the attestation key."""

_TDQE_SIGNER: Final = bytes.fromhex("DC9E2A7C6F948F17474E34A7FC43ED030F7C1563F1BABDDF6340C82E0E54A8C5")
_QE_SIGNER: Final = bytes.fromhex("8C4F5775D796503E96137F77C68A829A0056AC8DED70140B081B094490C57BFF")
_QE_ATTRIBUTES: Final = bytes.fromhex("1500000000000000e700000000000000")
_REPORT_CPU_SVN: Final = bytes.fromhex("0606131503ff00030000000000000000")
"""What reports carry. Real ones differ from the CPUSVN of the PCK certificate too."""
_ENCLAVE_ATTRIBUTES: Final = bytes.fromhex("0500000000000000e700000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSpec:
    """All that is to be known of a platform, seed aside."""

    identity: str
    """Names its keys and ids. Two platforms with one identity are clones."""
    fmspc: str
    """12 upper-case hex digits"""
    ca: str = "platform"
    """Which PCK CA certifies it: platform or processor"""
    microcode: int = 8
    """SVN of the early, SGX late and TDX late microcode; picks the platform's TCB level, see `catalogue`"""
    pcesvn: int = 13
    module_version: int = 1
    module_svn: int = 11
    qe_svn: int = 4
    """ISVSVN of the TD quoting enclave"""
    sgx_qe_svn: int = 8
    sgx_type: int = 1
    dynamic_platform: bool = True
    cached_keys: bool = False
    smt_enabled: bool = True

    @property
    def components(self) -> bytes:
        """The sixteen SGX TCB components, in their certificate and in TCB info."""
        return components(self.microcode)

    @property
    def svn(self) -> bytes:
        """TEE_TCB_SVN of the module that is loaded now: minor, version, late microcode, 13 zeros."""
        return bytes((self.module_svn, self.module_version, self.microcode)) + bytes(13)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises TypeError, ValueError when a member is missing, unknown or of another type."""
        known = {field.name: field.type for field in fields(cls)}
        for name, value in values.items():
            if name not in known or type(value).__name__ != known[name]:
                raise ValueError(f"platform member {name!r}")
        return cls(**values)


def components(microcode: int) -> bytes:
    """Early microcode, SGX late microcode, TXT SINIT, three BIOS values, one unlabelled, SEAMLDR ACM, eight zeros."""
    return bytes((microcode, microcode, 2, 2, 4, 1, 0, 5)) + bytes(8)


class Platform:
    """A platform that can report and quote."""

    def __init__(self, seed: Seed, pki: Hierarchy, spec: PlatformSpec) -> None:
        self._seed = seed
        self._pki = pki
        self.spec = spec
        self._mac_key = seed.derive(f"{self._label}/mac", 32)

    @property
    def _label(self) -> str:
        return f"platform/{self.spec.identity}"

    @cached_property
    def ppid(self) -> bytes:
        return PPID_MARK + self._seed.derive(f"{self._label}/ppid", 12)

    @cached_property
    def instance_id(self) -> bytes | None:
        """PIID; the Processor CA certifies none."""
        return PPID_MARK + self._seed.derive(f"{self._label}/piid", 12) if self.spec.ca == "platform" else None

    @property
    def fmspc(self) -> bytes:
        return bytes.fromhex(self.spec.fmspc)

    @cached_property
    def pck(self) -> Identity:
        """The PCK certificate for the TCB that the platform has now: another TCB, another certificate and key."""
        return issue(
            self._seed,
            f"{self._label}/pck/{self.spec.ca}/{self.spec.microcode}/{self.spec.pcesvn}",
            profile("pck", ca=self.spec.ca),
            self._pki.ca(self.spec.ca),
            extra=[self.extension().encode()],
        )

    def extension(self) -> SgxExtension:
        """What the PCK certificate says of the platform."""
        spec = self.spec
        multi_package = spec.ca == "platform"
        return SgxExtension(
            ppid=self.ppid,
            components=spec.components,
            pcesvn=spec.pcesvn,
            pceid=bytes(2),
            fmspc=self.fmspc,
            sgx_type=spec.sgx_type,
            instance_id=self.instance_id,
            configuration=(spec.dynamic_platform, spec.cached_keys, spec.smt_enabled) if multi_package else None,
        )

    @cached_property
    def pck_chain(self) -> bytes:
        """Leaf, CA and root in PEM, then one NUL: certification data of type 5."""
        return self.pck.pem + self._pki.ca(self.spec.ca).pem + self._pki.root.pem + b"\0"

    @cached_property
    def tdqe(self) -> QuotingEnclave:
        """The TD quoting enclave with its attestation key."""
        return self._quoting_enclave("tdqe", _TDQE_SIGNER, 2, self.spec.qe_svn)

    @cached_property
    def qe(self) -> QuotingEnclave:
        """The SGX quoting enclave."""
        return self._quoting_enclave("qe", _QE_SIGNER, 1, self.spec.sgx_qe_svn)

    def _quoting_enclave(self, name: str, signer: bytes, prod_id: int, svn: int) -> QuotingEnclave:
        key = self._seed.key(f"{self._label}/{name}/{svn}")
        facts = self.enclave_facts(name, signer, prod_id, svn)
        certified = quoting.certify(key, self.pck.key, facts, self.pck_chain, AUTH_DATA)
        return QuotingEnclave(key, certified, self._seed.derive(f"{self._label}/{name}/id", 16) + bytes(4))

    def attestation_key(self, name: str = "tdqe") -> Any:
        """The private attestation key of `tdqe` or `qe`: for faults, which sign what no quoting enclave would."""
        svn = self.spec.qe_svn if name == "tdqe" else self.spec.sgx_qe_svn
        return self._seed.key(f"{self._label}/{name}/{svn}")

    @staticmethod
    def enclave_facts(name: str, signer: bytes = _TDQE_SIGNER, prod_id: int = 2, svn: int = 4) -> EnclaveFacts:
        """The identity of a quoting enclave, REPORTDATA still empty."""
        return EnclaveFacts(
            cpu_svn=_REPORT_CPU_SVN,
            attributes=_QE_ATTRIBUTES,
            mr_enclave=sha256(f"cloister-sim/{name}/{svn}".encode()),
            mr_signer=signer,
            isv_prod_id=prod_id,
            isv_svn=svn,
            report_data=bytes(64),
        )

    def mr_seam(self) -> bytes:
        """SHA-384 of the TDX module that is loaded now."""
        return sha384(f"cloister-sim/tdx-module/{self.spec.module_version}.{self.spec.module_svn}".encode())

    def td_report(
        self, *, version: int, svn: bytes, mr_seam: bytes, td: tdreport.TdInfo, report_data: bytes, tell_current: bool
    ) -> bytes:
        """TDG.MR.REPORT for a domain launched under module `svn`: 1024 bytes that this platform alone can check."""
        current = self.spec.svn if tell_current else None
        return tdreport.build(
            version=version,
            cpu_svn=_REPORT_CPU_SVN,
            tcb=tdreport.TcbInfo(svn=svn, mr_seam=mr_seam, svn_2=current),
            td=td,
            report_data=report_data,
            mac_key=self._mac_key,
        )

    def check_report(self, raw: bytes) -> tdreport.TdReport:
        """Raises SimulatorError report.refused: not a TDREPORT, or not one of this platform."""
        return tdreport.check(raw, self._mac_key)

    def quote_report(
        self,
        raw: bytes,
        *,
        version: int | None = None,
        body: int | None = None,
        extended: ExtendedFacts | None = None,
    ) -> bytes:
        """What the TD quoting enclave answers to a TDREPORT: a quote in the version that Intel's would choose.

        `version` and `body` choose another; version 4 has body 2 only.
        Raises SimulatorError report.refused, td.invalid.
        """
        report = self.check_report(raw)
        version, body = _choose(quoting.emitted(report), version, body)
        facts = extended or ExtendedFacts(
            initial_cpu_svn=report.cpu_svn, initial_svn=report.svn, initial_fmspc=self.fmspc + bytes(6)
        )
        header = QuoteHeader(version=version, tee=quoting.TDX, user_data=self.tdqe.user_data)
        return self.tdqe.quote(quoting.to_sign(header, quoting.td_body(report, body, facts), body), version)

    def sgx_quote(
        self,
        report_data: bytes,
        *,
        enclave: str = "enclave",
        version: int = 3,
        attributes: bytes = _ENCLAVE_ATTRIBUTES,
    ) -> bytes:
        """A quote for a simulated SGX enclave of that name, version 3 or 5. `report_data` has 64 bytes."""
        if version not in (3, 5) or len(report_data) != 64:
            raise SimulatorError(SimulatorCode.TD_INVALID, "an SGX quote has version 3 or 5 and 64 bytes of REPORTDATA")
        body = EnclaveFacts(
            cpu_svn=_REPORT_CPU_SVN,
            attributes=attributes,
            mr_enclave=sha256(f"cloister-sim/enclave/{enclave}".encode()),
            mr_signer=sha256(b"cloister-sim/enclave-signer"),
            isv_prod_id=1,
            isv_svn=1,
            report_data=report_data,
        )
        svns = (self.spec.sgx_qe_svn, self.spec.pcesvn) if version == 3 else (0, 0)
        header = QuoteHeader(
            version=version, tee=quoting.SGX, user_data=self.qe.user_data, qe_svn=svns[0], pce_svn=svns[1]
        )
        return self.qe.quote(quoting.to_sign(header, body.encode(), quoting.ENCLAVE_BODY), version)

    @property
    def certified(self) -> Certified:
        return self.tdqe.certified


def _choose(natural: tuple[int, int], version: int | None, body: int | None) -> tuple[int, int]:
    """The wanted version and body, the natural ones where nothing is wanted."""
    if version is None:
        version = natural[0] if body in (None, natural[1]) else 5
    if body is None:
        body = natural[1] if version == natural[0] else {4: quoting.TD_BODY_10, 5: quoting.TD_BODY_15}.get(version, 0)
    if version not in (4, 5) or body not in (2, 3, 4) or (version == 4 and body != quoting.TD_BODY_10):
        detail = f"no version {version} quote with body {body}: version 4 has body 2, version 5 has 2, 3 and 4"
        raise SimulatorError(SimulatorCode.TD_INVALID, detail)
    return version, body
