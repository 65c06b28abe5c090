"""Intel's Provisioning Certification Service, as far as verifiers need it, over HTTP.

Decides URLs, headers and status codes (those of the PCS, and the few extra ones that a PCCS has), and plays the
troubles it is told to have. What the documents say is decided by `collateral` and `recovery`.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from simulator import collateral
from simulator.catalogue import FMSPCS, EvaluationSet
from simulator.errors import SimulatorCode, SimulatorError
from simulator.machine import Machine
from simulator.recovery import Ledger

_V4: Final = re.compile(r"/(sgx|tdx)/certification/v4/(.+)")
_V3: Final = re.compile(r"/(sgx|tdx)/certification/v[123]/")
_FMSPC: Final = re.compile(r"[0-9a-fA-F]{12}")
_PLATFORMS: Final = ("all", "client", "E3", "E5")
_JSON, _PEM, _CRL, _TEXT = "application/json", "application/x-pem-file", "application/pkix-crl", "text/plain"
_IDENTITY_CHAIN: Final = "SGX-Enclave-Identity-Issuer-Chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """How the service is unwell. The default is well."""

    delay_s: float = 0.0
    """Every answer waits so long."""
    rate_limit: int | None = None
    """Requests per second; more are answered 429 with Retry-After."""
    status: int | None = None
    """Every answer has this status, 500 or 503 for example, and no document."""
    stale_s: int = 0
    """Documents are those of so many seconds ago."""
    mixed: bool = False
    """TCB info of the newest evaluation set, identities of the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer. Chains are percent-encoded PEM in a header of their own."""

    status: int = 200
    body: bytes = b""
    kind: str = _JSON
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Service:
    """Answers requests out of a machine; knows nothing of sockets."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.trouble = Trouble()
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()

    def answer(self, target: str) -> Answer:
        """The answer to GET `target` (path and query)."""
        trouble = self.trouble
        if trouble.delay_s:
            time.sleep(trouble.delay_s)
        try:
            if trouble.rate_limit is not None and not self._admits(trouble.rate_limit):
                return Answer(status=429, headers={"Retry-After": "1", **_error(429, "too many requests")})
            if trouble.status is not None:
                raise Refusal(trouble.status, "told to fail")
            return self._route(target)
        except Refusal as refusal:
            return Answer(status=refusal.status, headers=_error(refusal.status, refusal.message))
        except SimulatorError as error:
            status = 410 if error.code is SimulatorCode.COLLATERAL_RETIRED else 404
            if error.code not in (SimulatorCode.COLLATERAL_RETIRED, SimulatorCode.COLLATERAL_UNKNOWN):
                status = 503
            return Answer(status=status, headers=_error(status, error.detail))

    def _admits(self, limit: int) -> bool:
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0] <= now - 1:
                self._recent.popleft()
            if len(self._recent) >= limit:
                return False
            self._recent.append(now)
            return True

    def _route(self, target: str) -> Answer:
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = unquote(url.path)
        if path == "/IntelSGXRootCA.der":
            return Answer(body=self._root_crl(), kind=_CRL)
        if _V3.match(path):
            raise Refusal(410, "this version of the API has ended; use v4")
        match = _V4.fullmatch(path)
        if match is None:
            raise Refusal(404, "no such resource")
        tee, resource = match.groups()
        if resource == "tcb":
            return self._tcb(tee, query)
        if resource == "tcbevaluationdatanumbers":
            return self._numbers(tee)
        if (tee, resource) in _IDENTITIES:
            return self._identity(_IDENTITIES[tee, resource], query)
        if tee == "sgx":
            return self._sgx_only(resource, query)
        raise Refusal(404, "no such resource")

    def _sgx_only(self, resource: str, query: dict[str, str]) -> Answer:
        match resource:
            case "pckcrl":
                return self._pck_crl(query)
            case "rootcacrl":  # a PCCS's, which answers hexadecimal text
                return Answer(body=self._root_crl().hex().encode(), kind=_TEXT)
            case "crl":
                if not query.get("uri", "").endswith("IntelSGXRootCA.der"):
                    raise Refusal(404, "no such CRL")
                return Answer(body=self._root_crl(), kind=_CRL)
            case "fmspcs":
                return _fmspcs(query)
        raise Refusal(404, "no such resource")

    def _ledger(self) -> Ledger:
        return self.machine.ledger(self.machine.clock.time() - self.trouble.stale_s)

    def _set(self, ledger: Ledger, query: dict[str, str], *, identity: bool) -> EvaluationSet:
        """The set that `update` or `tcbEvaluationDataNumber` asks for."""
        update, number = query.get("update"), query.get("tcbEvaluationDataNumber")
        if update is not None and number is not None:
            raise Refusal(400, "update and tcbEvaluationDataNumber exclude each other")
        if number is not None:
            if not number.isdecimal() or len(number) > 9:
                raise Refusal(400, "tcbEvaluationDataNumber is not a number")
            return ledger.numbered(int(number))
        if update not in (None, "early", "standard"):
            raise Refusal(400, "update is early or standard")
        if self.trouble.mixed:
            newest = ledger.current("early")
            return ledger.numbered(newest.number - 1) if identity else newest
        return ledger.current(update or "standard")

    def _tcb(self, tee: str, query: dict[str, str]) -> Answer:
        fmspc = query.get("fmspc", "")
        if not _FMSPC.fullmatch(fmspc):
            raise Refusal(400, "fmspc has 12 hexadecimal digits")
        ledger = self._ledger()
        document = collateral.tcb_info(ledger, self._set(ledger, query, identity=False), tee, fmspc.upper())
        return self._signed("tcbInfo", document, "TCB-Info-Issuer-Chain")

    def _identity(self, name: str, query: dict[str, str]) -> Answer:
        ledger = self._ledger()
        document = collateral.enclave_identity(ledger, self._set(ledger, query, identity=True), name)
        return self._signed("enclaveIdentity", document, _IDENTITY_CHAIN)

    def _numbers(self, tee: str) -> Answer:
        document = collateral.evaluation_numbers(self._ledger(), tee)
        return self._signed("tcbEvaluationDataNumbers", document, "TCB-Evaluation-Data-Numbers-Issuer-Chain")

    def _signed(self, member: str, document: collateral.Document, chain_header: str) -> Answer:
        """The exact signed bytes, so that a client that slices them can verify them."""
        pki = self.machine.pki
        text, signature = collateral.signed_text(document, pki.tcb_signing.key)
        body = f'{{"{member}":{text},"signature":"{signature.hex()}"}}'
        return Answer(body=body.encode(), headers={chain_header: quote(pki.tcb_chain, safe="")})

    def _pck_crl(self, query: dict[str, str]) -> Answer:
        ca, encoding = query.get("ca"), query.get("encoding", "pem")
        if ca not in ("platform", "processor") or encoding not in ("pem", "der"):
            raise Refusal(400, "ca is platform or processor, encoding pem or der")
        pki = self.machine.pki
        der = collateral.pck_crl(self._ledger(), pki, ca)
        chain = {"SGX-PCK-CRL-Issuer-Chain": quote(pki.ca(ca).pem + pki.root.pem, safe="")}
        if encoding == "der":
            return Answer(body=der, kind=_CRL, headers=chain)
        return Answer(body=x509.load_der_x509_crl(der).public_bytes(Encoding.PEM), kind=_PEM, headers=chain)

    def _root_crl(self) -> bytes:
        return collateral.root_crl(self._ledger(), self.machine.pki)


_IDENTITIES: Final = {
    ("sgx", "qe/identity"): "QE",
    ("tdx", "qe/identity"): "TD_QE",
    ("sgx", "qve/identity"): "QVE",
}


class PcsServer:
    """The service on a socket of its own, in threads of this process. Use as a context manager."""

    def __init__(self, machine: Machine, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.service = Service(machine)
        service = self.service

        class Handler(_Handler):
            answering = service

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="pcs")

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end: what stands before `/tdx/certification/v4/…`."""
        host, port = self._server.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    @property
    def trouble(self) -> Trouble:
        return self.service.trouble

    @trouble.setter
    def trouble(self, trouble: Trouble) -> None:
        self.service.trouble = trouble

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving. Requests under way are not waited for."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cloister-sim"
    sys_version = ""
    timeout = 30
    disable_nagle_algorithm = True
    answering: Service

    def do_GET(self) -> None:
        self._send(self.answering.answer(self.path))

    def do_POST(self) -> None:
        self.close_connection = True  # the body is not read
        self._send(Answer(status=404, headers=_error(404, "platforms are not registered here")))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Request-ID", uuid.uuid4().hex)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the service runs inside other programs."""


def _fmspcs(query: dict[str, str]) -> Answer:
    platform = query.get("platform", "all")
    if platform not in _PLATFORMS:
        raise Refusal(400, f"platform is one of {', '.join(_PLATFORMS)}")
    listed = [{"fmspc": fmspc, "platform": kind} for fmspc, (kind, _) in FMSPCS.items() if platform in ("all", kind)]
    return Answer(body=json.dumps(listed, separators=(",", ":")).encode())


def _error(status: int, message: str) -> dict[str, str]:
    return {"Error-Code": str(status), "Error-Message": message}
