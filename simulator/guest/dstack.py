"""dstack's guest agent over a simulated trust domain: quotes, keys, certificates, events, what it says of itself.

Decides what each method answers, as plain dictionaries; HTTP is `dstack_http`'s business, keys are `dstack_keys`'.
Info, quote and event log always come from one state: what EmitEvent extends is in the register and in the log of the
next quote. Every failure is an `AgentError` with a text for the caller, as dstack's own agent answers.

Both APIs are here: the application's (`GetQuote`, …) and the older one under `Tappd.` (`TdxQuote`, …). Where versions
of dstack differ, this one does what releases up to 0.5.11 do; `emit_events` and `stripped` choose the newer ways.

Source: dstack `guest-agent/rpc/proto/agent_rpc.proto`, `guest-agent/src/rpc_service.rs`, `cc-eventlog`,
`dstack-attest`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from simulator.ccel import extend
from simulator.guest import secp256k1
from simulator.guest.dstack_keys import (
    APP_INFO,
    ATTESTATION,
    ED25519,
    AppKeys,
    TlsRequest,
    UnknownAlgorithm,
    message_digest,
    p256,
    private_pem,
)
from simulator.guest.keccak import keccak
from simulator.guest.msgpack import pack

if TYPE_CHECKING:
    from simulator.domain import SimulatedTd
    from simulator.machine import Machine

VERSION: Final = "0.5.11"
RUNTIME_EVENT: Final = 0x08000001
REPORT_DATA_LEN: Final = 64
MAX_EVENTS: Final = 4096
_REGISTER: Final = 3
_HASHLIB: Final = ("sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512")
_KECCAK: Final = {"keccak256": 32, "keccak384": 48, "keccak512": 64}
Request = Mapping[str, Any]
Answer = dict[str, Any]


class AgentError(Exception):
    """What the caller did wrong; becomes `{"error": …}` with status 400."""


@final
class GuestAgent:
    """The agent of one trust domain. Threads may share it."""

    def __init__(
        self,
        machine: Machine,
        td: SimulatedTd,
        *,
        app_compose: str | None = None,
        booted: bool = False,
        emit_events: bool = True,
        stripped: bool = False,
    ) -> None:
        """`booted` extends RTMR3 with what dstack's images measure at boot; without it RTMR3 is the program's alone."""
        self._machine = machine
        self._td = td
        self._emit_events = emit_events
        self._stripped = stripped
        self._events: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self.app_compose = app_compose or _default_compose(td.label)
        self.compose_hash = hashlib.sha256(self.app_compose.encode()).digest()
        self.app_id = self.compose_hash[:20]
        salt = machine.seed.derive(f"dstack/instance/{td.label}", 20)
        self.instance_id = hashlib.sha256(salt + self.app_id).digest()[:20]
        self.keys = AppKeys(machine.seed, self.app_id)
        self._methods: dict[str, Callable[[Request], Answer]] = {
            "GetQuote": self._get_quote,
            "Attest": self._attest,
            "GetKey": self._get_key,
            "GetTlsKey": self._get_tls_key,
            "Info": self._info,
            "Sign": self._sign,
            "Verify": self._verify,
            "Version": lambda _: {"version": VERSION, "rev": "cloister-sim"},
            "GpuInfo": lambda _: {"attestation": ""},
            "EmitEvent": self._emit_event,
            "DeriveKey": self._derive_key,
            "DeriveK256Key": self._derive_k256_key,
            "TdxQuote": self._tdx_quote,
            "RawQuote": self._get_quote,
        }
        if booted:
            self._boot()

    def call(self, method: str, request: Request) -> Answer:
        """One method, without the prefix of its service. Raises AgentError."""
        chosen = self._methods.get(method)
        if chosen is None:
            raise AgentError(f"Method not found: {method}")
        try:
            return chosen(request)
        except (UnknownAlgorithm, ValueError) as error:
            raise AgentError(str(error)) from None

    def event_log(self) -> list[Answer]:
        """The boot's events and the run-time ones; `imr` counts registers from zero."""
        boot = [
            {
                "imr": record.register,
                "event_type": record.event_type,
                "digest": record.digest.hex(),
                "event": "",
                "event_payload": "" if self._stripped else record.data.hex(),
            }
            for record in self._td.configuration.image.boot
        ]
        return boot + [
            {
                "imr": _REGISTER,
                "event_type": RUNTIME_EVENT,
                "digest": "" if self._stripped else _event_digest(name, payload).hex(),
                "event": name,
                "event_payload": payload.hex(),
            }
            for name, payload in self._events
        ]

    def _boot(self) -> None:
        provider = json.dumps(self._key_provider()).encode()
        for name, payload in (
            ("system-preparing", b""),
            ("app-id", self.app_id),
            ("compose-hash", self.compose_hash),
            ("instance-id", self.instance_id),
            ("boot-mr-done", b""),
            ("os-image-hash", self._os_image_hash()),
            ("key-provider", provider),
            ("storage-fs", b"zfs"),
            ("system-ready", b""),
        ):
            self._extend(name, payload)

    def _extend(self, name: str, payload: bytes) -> None:
        with self._lock:
            if len(self._events) == MAX_EVENTS:
                raise AgentError("the event log is full")
            self._td.extend_unlogged(_REGISTER, _event_digest(name, payload))
            self._events.append((name, payload))

    def _quoted(self, report_data: bytes) -> tuple[bytes, list[Answer]]:
        """A quote and the log that leads to its registers: nothing is extended between the two."""
        with self._lock:
            return self._td.quote(report_data), self.event_log()

    def _get_quote(self, request: Request) -> Answer:
        report_data = _report_data(request)
        quote, log = self._quoted(report_data)
        return {
            "quote": quote.hex(),
            "event_log": json.dumps(log),
            "report_data": report_data.hex(),
            "vm_config": self._vm_config(),
            "attestation": "",
        }

    def _tdx_quote(self, request: Request) -> Answer:
        algorithm, prefix = _text(request, "hash_algorithm") or "sha512", _text(request, "prefix")
        content = _bytes(request, "report_data")
        if algorithm == "raw":
            if len(content) != REPORT_DATA_LEN:
                raise AgentError(f"raw report data has {REPORT_DATA_LEN} bytes, not {len(content)}")
            report_data = content
        else:
            report_data = _hashed(algorithm, (prefix or "app-data").encode() + b":" + content)
        quote, log = self._quoted(report_data)
        names = {"hash_algorithm": algorithm, "prefix": "" if algorithm == "raw" else prefix or "app-data"}
        return {"quote": quote.hex(), "event_log": json.dumps(log), **names}

    def _attest(self, request: Request) -> Answer:
        return {"attestation": self._attestation(_report_data(request)).hex()}

    def _attestation(self, report_data: bytes) -> bytes:
        """dstack's versioned attestation, version 1: MessagePack of named maps."""
        quote, log = self._quoted(report_data)
        runtime = [{"event": name, "payload": payload} for name, payload in self._events]
        stack = {"report_data": report_data, "runtime_events": runtime, "config": self._vm_config()}
        platform = {"kind": "tdx", "data": {"quote": quote, "event_log": log}}
        return pack({"version": 1, "platform": platform, "stack": {"kind": "dstack", "data": stack}})

    def _get_key(self, request: Request) -> Answer:
        path, purpose, algorithm = (_text(request, name) for name in ("path", "purpose", "algorithm"))
        chain = self.keys.chain(path, purpose, algorithm)
        return {"key": self.keys.secret(path).hex(), "signature_chain": [link.hex() for link in chain]}

    def _derive_k256_key(self, request: Request) -> Answer:
        found = self._get_key({**request, "algorithm": "secp256k1"})
        return {"k256_key": found["key"], "k256_signature_chain": found["signature_chain"]}

    def _get_tls_key(self, request: Request) -> Answer:
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certified(key, request)

    def _derive_key(self, request: Request) -> Answer:
        """The old API: the same key for the same path, unless a random one is asked for."""
        path = _text(request, "path")
        key = ec.generate_private_key(ec.SECP256R1()) if _flag(request, "random_seed") else p256(self.keys.secret(path))
        return self._certified(key, request)

    def _certified(self, key: ec.EllipticCurvePrivateKey, request: Request) -> Answer:
        names = request.get("alt_names") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AgentError("alt_names is not a list of text")
        extensions = {}
        if _flag(request, "usage_ra_tls"):
            subject = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            extensions[ATTESTATION] = self._attestation(hashlib.sha512(b"ratls-cert:" + subject).digest())
        if _flag(request, "with_app_info"):
            extensions[APP_INFO] = pack({"app_id": self.app_id, "compose_hash": self.compose_hash})
        wanted = TlsRequest(
            subject=_text(request, "subject"),
            alt_names=tuple(names),
            server_auth=_flag(request, "usage_server_auth"),
            client_auth=_flag(request, "usage_client_auth"),
            not_before=_moment(request, "not_before"),
            not_after=_moment(request, "not_after"),
            extensions=extensions,
        )
        return {"key": private_pem(key), "certificate_chain": self.keys.certify(key, wanted, self._machine.clock.now())}

    def _sign(self, request: Request) -> Answer:
        signature, chain, public = self.keys.sign(_text(request, "algorithm"), _bytes(request, "data"))
        return {
            "signature": signature.hex(),
            "signature_chain": [link.hex() for link in chain],
            "public_key": public.hex(),
        }

    def _verify(self, request: Request) -> Answer:
        algorithm = _text(request, "algorithm")
        data, signature, public = (_bytes(request, name) for name in ("data", "signature", "public_key"))
        if algorithm != ED25519:
            return {"valid": secp256k1.verify(public, message_digest(algorithm, data), signature)}
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
        except (InvalidSignature, ValueError):
            return {"valid": False}
        return {"valid": True}

    def _emit_event(self, request: Request) -> Answer:
        if not self._emit_events:
            raise AgentError("Method not found: EmitEvent")
        name, payload = _text(request, "event"), _bytes(request, "payload")
        if not name:
            raise AgentError("Event name cannot be empty")
        self._extend(name, payload)
        return {}

    def _info(self, _: Request) -> Answer:
        with self._lock:
            log, rtmrs = self.event_log(), [register.hex() for register in self._td.rtmrs]
        device_id = hashlib.sha256(b"").hexdigest()  # what an agent shows before anybody has verified its PPID
        tcb_info = {
            "mrtd": self._td.mr_td.hex(),
            **{f"rtmr{index}": value for index, value in enumerate(rtmrs)},
            "mr_aggregated": self._aggregated().hex(),
            "os_image_hash": self._os_image_hash().hex(),
            "compose_hash": self.compose_hash.hex(),
            "device_id": device_id,
            "event_log": log,
            "app_compose": self.app_compose,
        }
        return {
            "app_id": self.app_id.hex(),
            "instance_id": self.instance_id.hex(),
            "app_cert": self.keys.ca.public_bytes(Encoding.PEM).decode(),
            "tcb_info": json.dumps(tcb_info),
            "app_name": json.loads(self.app_compose).get("name", ""),
            "device_id": device_id,
            "mr_aggregated": self._aggregated().hex(),
            "os_image_hash": self._os_image_hash().hex(),
            "key_provider_info": json.dumps(self._key_provider()),
            "compose_hash": self.compose_hash.hex(),
            "vm_config": self._vm_config(),
            "cloud_vendor": "cloister-sim",
            "cloud_product": "SIMULATED: no hardware protects this",
        }

    def _aggregated(self) -> bytes:
        """SHA-256 over MRTD, RTMR0 to RTMR2, the replayed run-time log, and the launch ids unless all are zero."""
        replayed = bytes(48)
        for name, payload in self._events:
            replayed = extend(replayed, _event_digest(name, payload))
        chosen = self._td.configuration
        ids = chosen.mr_config_id + chosen.mr_owner + chosen.mr_owner_config
        return hashlib.sha256(
            self._td.mr_td + b"".join(self._td.rtmrs[:3]) + replayed + (ids if any(ids) else b"")
        ).digest()

    def _os_image_hash(self) -> bytes:
        return hashlib.sha256(b"cloister-sim/image/" + self._td.configuration.image.name.encode()).digest()

    def _key_provider(self) -> dict[str, str]:
        return {"name": "cloister-sim", "id": secp256k1.compressed(self.keys.kms_root).hex()}

    @staticmethod
    def _vm_config() -> str:
        return json.dumps({"spec_version": 1, "simulated": True})


def _default_compose(name: str) -> str:
    return json.dumps({"manifest_version": 2, "name": name, "runner": "docker-compose", "docker_compose_file": ""})


def _event_digest(name: str, payload: bytes) -> bytes:
    """SHA-384 over the type as u32, name and payload, with colons between."""
    return hashlib.sha384(b":".join((RUNTIME_EVENT.to_bytes(4, "little"), name.encode(), payload))).digest()


def _hashed(algorithm: str, content: bytes) -> bytes:
    """The digest in 64 bytes, zeros after it."""
    if algorithm in _KECCAK:
        return keccak(content, _KECCAK[algorithm]).ljust(REPORT_DATA_LEN, b"\0")
    if algorithm not in _HASHLIB:
        raise AgentError(f"Unsupported hash algorithm: {algorithm}")
    return hashlib.new(algorithm.replace("-", "_"), content).digest().ljust(REPORT_DATA_LEN, b"\0")


def _report_data(request: Request) -> bytes:
    """Verbatim, zeros after it."""
    given = _bytes(request, "report_data")
    if len(given) > REPORT_DATA_LEN:
        raise AgentError("Report data is too long")
    return given.ljust(REPORT_DATA_LEN, b"\0")


def _bytes(request: Request, name: str) -> bytes:
    """Hex in either case, with or without 0x; missing is empty."""
    text = _text(request, name)
    try:
        return bytes.fromhex(text[2:] if text[:2] in ("0x", "0X") else text)
    except ValueError:
        raise AgentError(f"{name} is not hex") from None


def _text(request: Request, name: str) -> str:
    value = request.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AgentError(f"{name} is not text")
    return value


def _flag(request: Request, name: str) -> bool:
    """Queries carry text."""
    return request.get(name) in (True, "true", "1")


def _moment(request: Request, name: str) -> datetime | None:
    value = request.get(name)
    if value is None:
        return None
    try:
        return datetime.fromtimestamp(int(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise AgentError(f"{name} is not a time in seconds") from None
