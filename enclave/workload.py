"""SPIFFE's Workload API inside the trust domain: a Unix socket where unmodified clients get the agent's identity.

    agent = Agent("worker", spiffe_socket="/run/agent/spiffe.sock")
                                      # clients: SPIFFE_ENDPOINT_SOCKET=unix:///run/agent/spiffe.sock

Decides what clients are told: the certificate with its key, the bundle with its CRLs, again whenever one of them
changes; JWT-SVIDs for one audience each, if policy says so; and nothing once the broker no longer takes this agent.
Whoever can open the socket is the agent: its folder and mode say who that is, its own user alone unless a group is
named. Requests without the header that SPIFFE
demands are refused, so that a web page cannot be made to ask.

Source: SPIFFE Workload API and SPIFFE Workload Endpoint.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, final

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.errors import AttestationError
from broker.wire.errors import WireError
from broker.wire.jose import es256_valid, jwk, split_compact
from broker.wire.svid import TrustBundle, split_id
from enclave.errors import BrokerRefused, EnclaveError, TransportFailed
from enclave.svid import Svid, SvidKeeper
from enclave.workload_messages import MESSAGES, SERVICE

log: Final = logging.getLogger("cloister.workload")
HEADER: Final = ("workload.spiffe.io", "true")
MAX_REQUEST: Final = 64 * 1024
MAX_TOKEN: Final = 32 * 1024
MAX_STREAMS: Final = 256
GRACE_S: Final = 1.0
_SKEW_S: Final = 5
Context = grpc.aio.ServicerContext[Any, Any]


@final
class WorkloadApi:
    """A context manager: inside it serves, afterwards the socket is gone."""

    def __init__(self, keeper: SvidKeeper, path: Path, *, group: int | None = None) -> None:
        """Members of `group` may use it too."""
        self._keeper = keeper
        self._path = path
        self._group = group
        self._server: grpc.aio.Server | None = None

    async def open(self) -> Self:
        """Raises BrokerRefused, TransportFailed, WireError svid.* when there is no certificate; OSError."""
        await self._keeper.current()
        await self._keeper.bundle()
        self._keeper.start()
        options = [("grpc.max_receive_message_length", MAX_REQUEST), ("grpc.max_concurrent_streams", MAX_STREAMS)]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        before = os.umask(0o177)  # the socket is made by the library, and may be nobody else's for a moment either
        try:
            if server.add_insecure_port(f"unix:{self._path}") == 0:
                raise OSError(f"{self._path} cannot be a socket")
            await server.start()
        finally:
            os.umask(before)
        self._server = server
        if self._group is not None:
            await self._open_to(self._group)
        return self

    async def _open_to(self, group: int) -> None:
        """Raises OSError; then the socket is gone."""
        try:
            os.chown(self._path, -1, group)
            os.chmod(self._path, 0o660)
        except OSError:
            await self.close()
            raise

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE_S)
        self._path.unlink(missing_ok=True)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        streams: dict[str, Callable[[Svid, TrustBundle], Any]] = {
            "FetchX509SVID": _x509_svid,
            "FetchX509Bundles": _x509_bundles,
            "FetchJWTBundles": self._jwt_bundles,
        }
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_stream_rpc_method_handler(self._stream(make), _read(name), response_serializer=_serialize)
            for name, make in streams.items()
        }
        for name, answer in (("FetchJWTSVID", self._jwt_svid), ("ValidateJWTSVID", self._validate)):
            found[name] = grpc.unary_unary_rpc_method_handler(answer, _read(name), response_serializer=_serialize)
        return found

    def _stream(self, make: Callable[[Svid, TrustBundle], Any]) -> Callable[[Any, Context], AsyncIterator[Any]]:
        """What `make` says, now and after every change of it."""

        async def answer(_: Any, context: Context) -> AsyncIterator[Any]:
            await _demand_header(context)
            told = b""
            while True:
                change = self._keeper.change
                message = make(*await self._present(context))
                raw = message.SerializeToString(deterministic=True)
                if raw != told:
                    told = raw
                    yield message
                await change.wait()

        return answer

    async def _present(self, context: Context) -> tuple[Svid, TrustBundle]:
        if self._keeper.refused is not None:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, self._keeper.refused.code)
        try:
            return await self._keeper.current(), await self._keeper.bundle()
        except (EnclaveError, AttestationError, WireError) as error:
            await _refuse(context, error)

    async def _jwt_svid(self, request: Any, context: Context) -> Any:
        await _demand_header(context)
        svid, _ = await self._present(context)
        if len(request.audience) != 1 or not request.audience[0]:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a token has exactly one audience")
        if request.spiffe_id not in ("", svid.spiffe_id):
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, "that is not this agent's SPIFFE ID")
        try:
            token = await self._keeper.jwt_svid(request.audience[0])
        except (EnclaveError, AttestationError, WireError) as error:
            await _refuse(context, error)
        return MESSAGES["JWTSVIDResponse"](svids=[MESSAGES["JWTSVID"](spiffe_id=svid.spiffe_id, svid=token)])

    async def _validate(self, request: Any, context: Context) -> Any:
        await _demand_header(context)
        _, bundle = await self._present(context)
        try:
            claims = self._claims(request.svid, request.audience, bundle.trust_domain)
        except ValueError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a JWT-SVID for that audience: {error}")
        answer = MESSAGES["ValidateJWTSVIDResponse"](spiffe_id=claims["sub"])
        answer.claims.update(claims)
        return answer

    def _claims(self, token: str, audience: str, trust_domain: str) -> dict[str, Any]:
        """Raises ValueError."""
        header, claims, signed, signature = split_compact(token, max_len=MAX_TOKEN)
        key = self._keeper.host.admission.broker.token_keys.get(str(header.get("kid")))
        if key is None or header.get("typ") not in ("JWT", "JOSE", None) or not es256_valid(key, signature, signed):
            raise ValueError("no key of this trust domain signed it")
        named = claims.get("aud")
        audiences = named if isinstance(named, list) else [named]
        end = claims.get("exp")
        if not audience or audience not in audiences or type(end) is not int:
            raise ValueError("another audience, or no end")
        if self._keeper.host.time.now_s() >= end + _SKEW_S:
            raise ValueError("it has ended")
        if split_id(str(claims.get("sub")))[0] != trust_domain:
            raise ValueError("another trust domain")
        return claims

    def _jwt_bundles(self, _: Svid, bundle: TrustBundle) -> Any:
        keys = self._keeper.host.admission.broker.token_keys
        found = {"keys": [{**jwk(key), "kid": kid, "use": "jwt-svid", "alg": "ES256"} for kid, key in keys.items()]}
        return MESSAGES["JWTBundlesResponse"](bundles={_id(bundle): json.dumps(found).encode()})


def _x509_svid(svid: Svid, bundle: TrustBundle) -> Any:
    key = svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    told = MESSAGES["X509SVID"](
        spiffe_id=svid.spiffe_id,
        x509_svid=svid.certificate,
        x509_svid_key=key,
        bundle=b"".join(bundle.authorities),
    )
    return MESSAGES["X509SVIDResponse"](svids=[told], crl=bundle.crls)


def _x509_bundles(_: Svid, bundle: TrustBundle) -> Any:
    return MESSAGES["X509BundlesResponse"](bundles={_id(bundle): b"".join(bundle.authorities)}, crl=bundle.crls)


def _id(bundle: TrustBundle) -> str:
    return f"spiffe://{bundle.trust_domain}"


def _read(method: str) -> Callable[[bytes], Any]:
    """The request message of a method: FetchX509SVID takes an X509SVIDRequest."""
    parse: Callable[[bytes], Any] = MESSAGES[f"{method.removeprefix('Fetch')}Request"].FromString
    return parse


def _serialize(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


async def _demand_header(context: Context) -> None:
    if HEADER not in [(name, value) for name, value in context.invocation_metadata() or ()]:
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the request lacks the header workload.spiffe.io: true")


async def _refuse(context: Context, error: EnclaveError | AttestationError | WireError) -> NoReturn:
    """What clients try again is UNAVAILABLE, what they must not is PERMISSION_DENIED."""
    refused = isinstance(error, BrokerRefused) and error.status < 500
    later = isinstance(error, TransportFailed) or (isinstance(error, BrokerRefused) and not refused)
    log.warning("workload API: %s", error.code)
    status = grpc.StatusCode.UNAVAILABLE if later else grpc.StatusCode.PERMISSION_DENIED
    await _abort(context, status, str(error.code))


async def _abort(context: Context, status: grpc.StatusCode, detail: str) -> NoReturn:
    await context.abort(status, detail)
    raise AssertionError("abort has raised")
