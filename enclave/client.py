"""The broker's REST interface as calls: what to send, how an answer is read, when to try again.

Decides retries, and nothing about trust: answers are checked by `session`, `release` and `mailbox`. A call is a
generator that yields requests and pauses; `AsyncClient` carries it out over httpx2.

Tried again, with growing pauses until the deadline: no connection, a broken one, 429, and 503 (`collateral.pending`
among them), as long as repeating changes nothing. An attestation is not repeated here, since its nonce was used up: the
caller starts over. A stale DPoP nonce is replaced once per call, by the one that came with the refusal (RFC 9449 §8).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final
from urllib.parse import urlsplit

import httpx2

from broker.wire.blob import BlobRef
from broker.wire.bodies import AttestationRequest, AttestationResponse, PeerInfo, Problem
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.channel import ChannelSend
from broker.wire.envelope import Envelope, batch_to_bytes
from broker.wire.errors import WireError
from broker.wire.fields import parse_object
from broker.wire.keys import KeysRequest, KeysResponse, Place
from broker.wire.labels import HeldLabels
from broker.wire.leases import AckRequest, AckResponse
from broker.wire.mailbox import (
    MailboxInfo,
    MailboxKey,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
)
from broker.wire.peers import PeerCollateral
from broker.wire.release import ReleaseRequest, ReleaseResponse
from broker.wire.relying import TokenRequest, TokenResponse
from broker.wire.revocations import Revocations, RevocationsRequest
from broker.wire.state import SaveRequest, StateRequest, StateResponse
from broker.wire.svid import SvidRequest, SvidResponse, TrustBundle
from broker.wire.tools import ToolNames, ToolsAllowed
from broker.wire.topic import TopicInfo, TopicPage, TopicRead
from enclave.clock import BrokerTime
from enclave.errors import BrokerRefused, Code, TransportFailed
from enclave.keys import AgentKeys

log: Final = logging.getLogger("cloister.agent")

MAX_ANSWER: Final = 32 << 20
TIMEOUT_S: Final = 10.0
DEADLINE_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
TOLD_AFTER: Final = 3  # answers in vain
JSON: Final = "application/json"
PROTOBUF: Final = "application/x-protobuf"
NONCE_HEADER: Final = "dpop-nonce"
_BUSY: Final = frozenset({429, 503})
T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    timeout_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    seconds: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`failure` is set, and the rest empty, when no answer came."""

    status: int = 0
    headers: dict[str, str]
    body: bytes = b""
    failure: TransportFailed | None = None


Call = Generator[Request | Pause, Answer | None, T]


@final
class BrokerCalls:
    """One agent's calls to one broker. `token` is asked at every request, because admissions are renewed meanwhile."""

    def __init__(
        self,
        base_url: str,
        keys: AgentKeys,
        clock: BrokerTime,
        token: Callable[[], str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._keys = keys
        self._clock = clock
        self._token = token
        self._monotonic = monotonic
        self._nonce: str | None = None

    def challenge(self, request: ChallengeRequest) -> Call[ChallengeResponse]:
        found = yield from self._json("POST", "/v1/challenges", request.to_dict(), signed=False)
        return ChallengeResponse.from_dict(found)

    def attest(self, request: AttestationRequest) -> Call[AttestationResponse]:
        found = yield from self._json("POST", "/v1/attestations", request.to_dict(), signed=False, repeat=False)
        return AttestationResponse.from_dict(found)

    def release(self, name: str, request: ReleaseRequest) -> Call[ReleaseResponse]:
        found = yield from self._json("POST", f"/v1/secrets/{name}:release", request.to_dict())
        return ReleaseResponse.from_dict(found)

    def svid(self, request: SvidRequest) -> Call[SvidResponse]:
        found = yield from self._json("POST", "/v1/svids", request.to_dict())
        return SvidResponse.from_dict(found)

    def trust_bundle(self) -> Call[TrustBundle]:
        return TrustBundle.from_dict((yield from self._json("GET", "/v1/svids/bundle", None, signed=False)))

    def token(self, request: TokenRequest) -> Call[TokenResponse]:
        return TokenResponse.from_dict((yield from self._json("POST", "/v1/tokens", request.to_dict())))

    def publish(self, key: MailboxKey) -> Call[None]:
        yield from self._json("PUT", f"/v1/mailboxes/{key.mailbox}", key.to_dict())

    def grpc_target(self) -> Call[str]:
        """Where the broker has its mail stream, on the host of its public address; empty for nowhere."""
        found = yield from self._json("GET", "/.well-known/openid-configuration", None, signed=False, repeat=False)
        port = found.get("cloister_grpc_port")
        host = urlsplit(self.base_url).hostname or ""
        if type(port) is not int or not 0 < port < 65536 or not host:
            return ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def leave(self, name: str) -> Call[None]:
        """This agent reads the mailbox no more; another may open it at once."""
        yield from self._json("POST", f"/v1/mailboxes/{name}:close", None, repeat=False)

    def mailbox(self, name: str) -> Call[MailboxInfo]:
        return MailboxInfo.from_dict((yield from self._json("GET", f"/v1/mailboxes/{name}", None)))

    def tools(self, name: str, tools: tuple[str, ...]) -> Call[ToolsAllowed]:
        """Which of these tools of that mailbox's owner this agent may call, and as what they are approved."""
        asked = ToolNames(tools=tools).to_dict()
        return ToolsAllowed.from_dict((yield from self._json("POST", f"/v1/mailboxes/{name}:tools", asked)))

    def labels(self) -> Call[HeldLabels]:
        return HeldLabels.from_dict((yield from self._json("GET", "/v1/labels", None)))

    def keys(self, of: Place, name: str, request: KeysRequest) -> Call[KeysResponse]:
        path = f"/v1/{'topics' if of is Place.TOPIC else 'mailboxes'}/{name}:keys"
        return KeysResponse.from_dict((yield from self._json("POST", path, request.to_dict())))

    def peer_collateral(self, subject: str) -> Call[PeerCollateral]:
        return PeerCollateral.from_dict((yield from self._json("GET", f"/v1/agents/{subject}:collateral", None)))

    def topic(self, name: str) -> Call[TopicInfo]:
        return TopicInfo.from_dict((yield from self._json("GET", f"/v1/topics/{name}", None)))

    def publish_to(self, name: str, envelopes: Iterable[Envelope]) -> Call[SendResponse]:
        body = batch_to_bytes(envelopes)
        return SendResponse.from_dict((yield from self._call("POST", f"/v1/topics/{name}:publish", body, PROTOBUF)))

    def read_topic(self, name: str, request: TopicRead) -> Call[TopicPage]:
        timeout_s = TIMEOUT_S + request.wait_s
        path = f"/v1/topics/{name}:receive"
        return TopicPage.from_dict((yield from self._json("POST", path, request.to_dict(), timeout_s=timeout_s)))

    def leave_topic(self, name: str) -> Call[None]:
        yield from self._json("POST", f"/v1/topics/{name}:leave", None)

    def revocations(self, request: RevocationsRequest) -> Call[Revocations]:
        return Revocations.from_dict((yield from self._json("POST", "/v1/revocations", request.to_dict())))

    def state(self, name: str, request: StateRequest) -> Call[StateResponse]:
        return StateResponse.from_dict(
            (yield from self._json("POST", f"/v1/mailboxes/{name}:state", request.to_dict()))
        )

    def save_state(self, name: str, request: SaveRequest) -> Call[StateResponse]:
        return StateResponse.from_dict(
            (yield from self._json("POST", f"/v1/mailboxes/{name}:checkpoint", request.to_dict()))
        )

    def keep_blob(self, name: str, raw: bytes) -> Call[BlobRef]:
        return BlobRef.from_dict((yield from self._call("PUT", f"/v1/blobs/{name}", raw, PROTOBUF)))

    def fetch_blob(self, name: str) -> Call[bytes]:
        return (yield from self._exchange("GET", f"/v1/blobs/{name}", b"", JSON)).body

    def drop_blob(self, name: str) -> Call[None]:
        yield from self._json("DELETE", f"/v1/blobs/{name}", None)

    def peer(self, subject: str) -> Call[PeerInfo]:
        return PeerInfo.from_dict((yield from self._json("GET", f"/v1/agents/{subject}", None)))

    def send(self, name: str, envelopes: Iterable[Envelope]) -> Call[SendResponse]:
        """A resend of the same bytes is recognised by the broker, so it may be repeated."""
        body = batch_to_bytes(envelopes)
        return SendResponse.from_dict((yield from self._call("POST", f"/v1/mailboxes/{name}:send", body, PROTOBUF)))

    def send_on_channel(self, name: str, sent: ChannelSend, *, topic: bool = False) -> Call[SendResponse]:
        """Asked once: whoever has batches sends them again, and what was taken in is recognised."""
        path = f"/v1/topics/{name}:publish" if topic else f"/v1/mailboxes/{name}:send"
        return SendResponse.from_dict((yield from self._call("POST", path, sent.to_bytes(), PROTOBUF, repeat=False)))

    def receive(self, name: str, request: ReceiveRequest, *, repeat: bool = True) -> Call[ReceiveResponse]:
        path, timeout_s = f"/v1/mailboxes/{name}:receive", TIMEOUT_S + request.wait_s
        found = yield from self._json("POST", path, request.to_dict(), timeout_s=timeout_s, repeat=repeat)
        return ReceiveResponse.from_dict(found)

    def ack(self, name: str, request: AckRequest) -> Call[AckResponse]:
        return AckResponse.from_dict((yield from self._json("POST", f"/v1/mailboxes/{name}:ack", request.to_dict())))

    def _json(
        self, method: str, path: str, members: dict[str, Any] | None, **how: Any
    ) -> Generator[Request | Pause, Answer | None, dict[str, Any]]:
        body = b"" if members is None else json.dumps(members, separators=(",", ":")).encode()
        return (yield from self._call(method, path, body, JSON, **how))

    def _call(
        self, method: str, path: str, body: bytes, kind: str, **how: Any
    ) -> Generator[Request | Pause, Answer | None, dict[str, Any]]:
        answer = yield from self._exchange(method, path, body, kind, **how)
        return {} if not answer.body else parse_object(answer.body, max_len=MAX_ANSWER)

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        kind: str,
        *,
        signed: bool = True,
        repeat: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> Generator[Request | Pause, Answer | None, Answer]:
        """Raises BrokerRefused; TransportFailed client.*; WireError for an answer that is not what it must be."""
        give_up, pause, renewed = self._monotonic() + DEADLINE_S + timeout_s, FIRST_PAUSE_S, False
        for tries in count(1):
            used = self._nonce
            answer = yield self._request(method, path, body, kind, signed=signed, timeout_s=timeout_s)
            assert answer is not None
            fresh = answer.headers.get(NONCE_HEADER)
            self._nonce = fresh or self._nonce
            if answer.failure is None and 200 <= answer.status < 300:
                return answer
            if signed and answer.status == 401 and fresh not in (None, used) and not renewed:
                renewed = True
                continue
            again = answer.failure is not None or answer.status in _BUSY
            wait = max(_retry_after(answer), pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret
            if not (repeat and again) or self._monotonic() + wait > give_up:
                raise _refusal(answer)
            if tries == TOLD_AFTER:  # it may be long until somebody hears of it otherwise
                refusal = _refusal(answer)
                rest_s = round(give_up - self._monotonic())
                log.warning("%s: %s; asking again for up to %d s", refusal.code, refusal.detail, rest_s)
            yield Pause(seconds=wait)
            pause = min(2 * pause, MAX_PAUSE_S)
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, body: bytes, kind: str, *, signed: bool, timeout_s: float) -> Request:
        url = self.base_url + path
        headers = {"accept": f"{JSON}, application/problem+json"}
        if body:
            headers["content-type"] = kind
        if signed:
            token = self._token()
            headers["authorization"] = f"DPoP {token}"
            headers["dpop"] = self._keys.dpop(
                method=method, url=url, body=body, at_s=int(self._clock.now_s()), nonce=self._nonce, token=token
            )
        return Request(method=method, url=url, headers=headers, body=body, timeout_s=timeout_s)


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), MAX_PAUSE_S) if text.isdecimal() else 0.0


def _refusal(answer: Answer) -> BrokerRefused | TransportFailed:
    if answer.failure is not None:
        return answer.failure
    try:
        problem = Problem.from_dict(parse_object(answer.body, max_len=MAX_ANSWER))
    except WireError:
        return TransportFailed(Code.CLIENT_ANSWER, f"HTTP {answer.status} without a problem that explains it")
    return BrokerRefused(
        status=answer.status,
        code=problem.code,
        detail=problem.detail or problem.title,
        remedy=problem.remedy,
        correlation_id=problem.correlation_id,
        reasons=problem.codes,
    )


def _options(timeout_s: float) -> dict[str, Any]:
    # No proxies or certificates from the environment, which the host may have written; and no redirects, ever.
    return {"timeout": httpx2.Timeout(timeout_s), "trust_env": False, "follow_redirects": False}


def _failure(error: httpx2.TransportError, request: Request) -> Answer:
    timed_out = isinstance(error, httpx2.TimeoutException)
    code = Code.CLIENT_TIMEOUT if timed_out else Code.CLIENT_UNREACHABLE
    return Answer(headers={}, failure=TransportFailed(code, f"{request.url}: {type(error).__name__}"))


def _answer(response: httpx2.Response) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(status=response.status_code, headers=headers, body=response.content)


@final
class AsyncClient:
    """Carries out calls on an event loop. A context manager; may be shared by tasks of one loop."""

    def __init__(self, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._http = httpx2.AsyncClient(transport=transport, **_options(TIMEOUT_S))

    async def do(self, call: Call[T]) -> T:
        """The call's result. Raises what the call raises."""
        received: Answer | None = None
        while True:
            try:
                wanted = call.send(received)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(wanted, Pause):
                await asyncio.sleep(wanted.seconds)
                received = None
            else:
                received = await self._exchange(wanted)

    async def _exchange(self, request: Request) -> Answer:
        try:
            response = await self._http.request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.body,
                timeout=request.timeout_s,
            )
        except httpx2.TransportError as error:
            return _failure(error, request)
        return _answer(response)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()
