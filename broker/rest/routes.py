"""The table of endpoints: which path is which use-case, behind which door.

Decides the public surface. Each handler is a translation of a few lines; what it calls decides everything else.
"""

import json
from dataclasses import asdict
from typing import Any, Final

from starlette.responses import Response

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.errors import BrokerCode, BrokerError
from broker.ports import AgentRecord, LogRow
from broker.rest import console
from broker.rest.http_api import json_response
from broker.rest.routes_audit import AUDIT_ENDPOINTS
from broker.rest.routes_keys import KEY_ENDPOINTS, send_on_channel
from broker.rest.routes_mail import MAIL_ENDPOINTS
from broker.rest.routes_opening import OPENING_ENDPOINTS
from broker.rest.routes_relying import RELYING_ENDPOINTS
from broker.rest.routes_secrets import SECRET_ENDPOINTS
from broker.rest.routes_svids import SVID_ENDPOINTS
from broker.rights import Act
from broker.wire.bodies import (
    MAX_EVIDENCE_BODY,
    AttestationRequest,
    AttestationResponse,
    PeerInfo,
    PutSecretRequest,
    SecretInfo,
    VerificationRequest,
    VerificationResponse,
)
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.channel import ChannelSend
from broker.wire.envelope import MAX_BATCH_BYTES, batch_from_bytes
from broker.wire.fields import Reader
from broker.wire.jose import b64u
from broker.wire.leases import AckRequest, AckResponse
from broker.wire.log import Receipt
from broker.wire.mailbox import (
    MailboxInfo,
    MailboxKey,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
)
from broker.wire.names import MAX_SUBJECT
from broker.wire.release import MAX_VERSION, ReleaseRequest, ReleaseResponse

PROTOBUF: Final = "application/x-protobuf"
MAX_PAGE: Final = 1000


# ── attestation ────────────────────────────────────────────────────────────────────────────────────────────────────


async def challenge(call: Call) -> Answer:
    """A nonce, and the broker's proof of being itself."""
    wanted = call.read(ChallengeRequest.from_dict)
    return call.broker.admission.challenge(wanted, await call.broker.attestor.proof())


async def attest(call: Call) -> Answer:
    """Evidence in, admission token out."""
    return await call.broker.admission.attest(
        call.read(AttestationRequest.from_dict), source_ip=call.source_ip, correlation_id=call.correlation_id
    )


async def verify(call: Call) -> Answer:
    """Verify a quote for a relying service."""
    return await call.broker.verification.verify(
        call.read(VerificationRequest.from_dict), correlation_id=call.correlation_id
    )


# ── secrets ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def release(call: Call) -> Answer:
    """A secret, sealed to the agent that asks."""
    wanted = call.read(ReleaseRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.releases.release(
            session, call.name, wanted, source_ip=call.source_ip, correlation_id=call.correlation_id
        ),
    )


async def put_secret(call: Call) -> Answer:
    """Store a secret's next version."""
    return await call.broker.administration.put_secret(
        call.administrator, call.name, call.read(PutSecretRequest.from_dict), correlation_id=call.correlation_id
    )


async def rotate_secret(call: Call) -> Answer:
    """A new version of a secret that exists; without a value the broker draws one."""
    return await call.broker.administration.put_secret(
        call.administrator,
        call.name,
        call.read(PutSecretRequest.from_dict),
        rotate=True,
        correlation_id=call.correlation_id,
    )


async def destroy_secret(call: Call) -> Answer:
    """Wipe one version of a secret, or all."""
    read = Reader(call.read(lambda value: value), "destroy")
    version = read.number_or_none("version", low=1, high=MAX_VERSION)
    read.end()
    wiped = await call.broker.administration.destroy_secret(
        call.administrator, call.name, version, correlation_id=call.correlation_id
    )
    return {"destroyed": wiped}


async def list_secrets(call: Call) -> Answer:
    """Names, versions and labels of secrets; never a value."""
    found = call.broker.administration.secrets(
        tenant=call.administrator.scope(Act.SECRET_LIST, call.text("tenant")),
        after=call.text("after") or "",
        limit=call.number("limit", 100),
    )
    return {"secrets": [info.to_dict() for info in found]}


# ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def agent(call: Call) -> Answer:
    """To an agent its peer's verdict as a token, to an administrator the agent's record."""
    subject = call.name
    if call.admin is not None:
        found = call.broker.administration.agent(subject)
        call.admin.require(Act.AGENT_LIST, found.tenant)
        return record_dict(found)
    at = call.broker.clock()
    asking = await call.broker.sessions.of_token(call.token, at)
    peer = await call.broker.sessions.peer(subject, at, of=asking)
    return PeerInfo(subject=peer.subject, token=call.broker.sessions.peer_token(peer, at))


async def list_agents(call: Call) -> Answer:
    """Agents and their states."""
    found = call.broker.administration.agents(
        tenant=call.administrator.scope(Act.AGENT_LIST, call.text("tenant")),
        after=call.text("after") or "",
        limit=call.number("limit", 100),
    )
    return {"agents": [record_dict(record) for record in found]}


async def revoke_agent(call: Call) -> Answer:
    """End an agent's rights for good."""
    read = Reader(call.read(lambda value: value), "revoke")
    why = read.text_or_none("why", max_len=256) or ""
    read.end()
    if len(call.name) > MAX_SUBJECT:
        raise BrokerError(BrokerCode.AGENT_UNKNOWN, "no such subject")
    await call.broker.administration.revoke(call.administrator, call.name, why)
    return {"revoked": call.name}


def record_dict(record: AgentRecord) -> dict[str, Any]:
    """An agent's record for administrators."""
    members = asdict(record)
    members["evidence"] = record.evidence.hex()
    members["codes"] = list(record.codes)
    members["state"] = str(record.state)
    members["facts"] = json.loads(record.facts)
    return members


# ── mail ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def open_mailbox(call: Call) -> Answer:
    """Open a mailbox under a signed key."""
    key = call.read(MailboxKey.from_dict)
    await call.broker.acting(
        call.token,
        lambda session: call.broker.mailboxes.open(session, call.name, key, correlation_id=call.correlation_id),
    )
    return None


async def find_mailbox(call: Call) -> Answer:
    """A mailbox's key and its owner's verdict."""
    return await call.broker.acting(call.token, lambda session: call.broker.mailboxes.info(session, call.name))


async def send(call: Call) -> Answer:
    """Queue a batch of envelopes, or one of a channel."""
    if ChannelSend.looks(call.body):
        return await send_on_channel(call)
    envelopes = batch_from_bytes(call.body)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.router.send(session, call.name, envelopes, correlation_id=call.correlation_id),
    )


async def receive(call: Call) -> Answer:
    """Lease the oldest mail."""
    wanted = call.read(ReceiveRequest.from_dict)
    return await call.broker.acting(
        call.token,
        lambda session: call.broker.mailboxes.receive(session, call.name, wanted, correlation_id=call.correlation_id),
    )


async def acknowledge(call: Call) -> Answer:
    """Say what is done, and give back what is not."""
    done = call.read(AckRequest.from_dict)
    return await call.broker.acting(
        call.token, lambda session: call.broker.mailboxes.acknowledge(session, call.name, done)
    )


# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def checkpoint(call: Call) -> Answer:
    """The log's signed head."""
    return Response(call.broker.audit.head().note, media_type="text/plain; charset=utf-8")


async def tile(call: Call) -> Answer:
    """C2SP tlog-tiles: tile/<L>/<N>[.p/<W>], N in groups of three digits, all but the last behind an x."""
    level, index, width = parse_tile(str(call.path["tile"]))
    found = call.broker.audit.tile(level, index)
    if width * 32 > len(found):
        raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, "tile is narrower than that")
    return Response(found[: width * 32], media_type="application/octet-stream")


def parse_tile(path: str) -> tuple[int, int, int]:
    """Level, index and width of a tile's path. Raises BrokerError log.entry_unknown."""
    name, partial, width = path.partition(".p/")
    level, *groups = name.split("/")
    plain = [group.removeprefix("x") for group in groups]
    spelled = [*(f"x{group}" for group in plain[:-1]), *plain[-1:]]
    good = (
        level.isdecimal()
        and len(level) <= 2
        and 0 < len(groups) <= 5
        and groups == spelled
        and all(len(group) == 3 and group.isdecimal() for group in plain)
        and (not partial or (width.isdecimal() and 0 < int(width[:4]) < 256))
    )
    if not good:
        raise BrokerError(BrokerCode.LOG_ENTRY_UNKNOWN, f"no tile {path[:60]!a}")
    return int(level), int("".join(plain)), int(width) if partial else 256


async def consistency(call: Call) -> Answer:
    """Proof that an older log begins the newer: ?old=…&size=…"""
    proof = call.broker.audit.consistency(call.number("old", 0), call.number("size", 0))
    return {"proof": [b64u(sibling) for sibling in proof]}


async def log_entries(call: Call) -> Answer:
    """Entries of the log: ?start=…&limit=…&kind=…&subject=… A page is full, or `next` says from where to go on."""
    everything = not call.administrator.tenants
    found, following = await call.broker.audit.search(
        lambda row: everything or _his(call, json.loads(row.entry)),
        start=call.number("start", 0),
        limit=min(call.number("limit", 100), MAX_PAGE),
        kind=call.text("kind"),
        subject=call.text("subject"),
    )
    told = {"entries": [row_dict(row) for row in found]}
    return told if following is None else told | {"next": following}


async def log_receipt(call: Call) -> Answer:
    """An entry of the log with its proof."""
    receipt = call.broker.audit.prove(int(call.path["index"]))
    if not _his(call, json.loads(receipt.entry)):
        raise BrokerError(BrokerCode.ADMIN_TENANT, "an entry about another tenant")
    return receipt


def _his(call: Call, entry: dict[str, Any]) -> bool:
    """Whether the administrator who asks may read that entry."""
    return call.administrator.sees(entry.get("tenant", ""), entry.get("subject", ""))


def row_dict(row: LogRow) -> dict[str, Any]:
    """The entry for reading, and its exact bytes for hashing."""
    return {"index": row.index, "entry": json.loads(row.entry), "raw": b64u(row.entry)}


# ── operation ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def status(call: Call) -> Answer:
    """Numbers for the operator."""
    upkeep = call.broker.upkeep
    return {
        **call.broker.administration.overview(),
        "attested": call.broker.attestor.summary,
        "platforms_elsewhere": upkeep.elsewhere(),
        "early_warnings": upkeep.warnings(),
    }


async def reload_policies(call: Call) -> Answer:
    """Read the policy bundles anew."""
    found = await call.broker.administration.reload_policies(call.administrator, correlation_id=call.correlation_id)
    return {"policies": found}


async def refresh_collateral(call: Call) -> Answer:
    """Ask the collateral source now."""
    await call.broker.administration.agree(
        call.administrator, Act.COLLATERAL_REFRESH, correlation_id=call.correlation_id
    )
    return {"changed": await call.broker.administration.refresh_collateral()}


async def proposals(call: Call) -> Answer:
    """First requests for acts that need a second administrator."""
    call.administrator.require_everywhere(Act.STATUS_READ)
    return {"proposals": call.broker.administration.proposals()}


async def jwks(call: Call) -> Answer:
    """Keys of admission tokens."""
    return _cacheable(call.broker.identity.jwks(call.broker.clock()))


async def results_jwks(call: Call) -> Answer:
    """Keys of verification results."""
    return _cacheable(call.broker.identity.jwks(call.broker.clock(), results=True))


async def configuration(call: Call) -> Answer:
    """Discovery for admission tokens."""
    return _cacheable({**call.broker.identity.configuration(), "cloister_grpc_port": call.broker.ports.grpc})


async def results_configuration(call: Call) -> Answer:
    """Discovery for verification results."""
    return _cacheable(call.broker.identity.configuration(results=True))


def _cacheable(members: dict[str, Any]) -> Response:
    response = json_response(members)
    response.headers["cache-control"] = "public, max-age=300"
    return response


async def healthz(call: Call) -> Answer:
    """The process answers."""
    return {"ok": True}


async def readyz(call: Call) -> Answer:
    """It can decide: the clock is right, the store writes, its own evidence is at hand. Raises what is wrong."""
    call.broker.clock()
    if call.broker.bell.stopping:
        raise BrokerError(BrokerCode.BROKER_STOPPING, "stopping")
    await call.broker.attestor.proof()
    await call.broker.readiness.writes(call.broker.store)
    return {"ok": True, "generation": call.broker.generation.current}


async def metrics(call: Call) -> Answer:
    """Counters for Prometheus."""
    return Response(call.broker.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def console_page(call: Call) -> Answer:
    """A page for the operator."""
    return console.respond(call.broker)


_OPEN, _AGENT, _ADMIN, _EITHER = Door.OPEN, Door.AGENT, Door.ADMIN, Door.EITHER
_BIG: Final = MAX_EVIDENCE_BODY
_SECRET, _MAILBOX, _WHO = "/v1/secrets/{name:path}", "/v1/mailboxes/{name:path}", "/v1/agents/{name:path}"

# Order matters: a path with a verb behind the name comes before the one without.
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *KEY_ENDPOINTS,
    *MAIL_ENDPOINTS,
    *SVID_ENDPOINTS,
    *OPENING_ENDPOINTS,
    *SECRET_ENDPOINTS,
    *AUDIT_ENDPOINTS,
    *RELYING_ENDPOINTS,
    row("POST /v1/challenges", challenge, _OPEN, ChallengeRequest, ChallengeResponse),
    # What comes back with it: the challenge, and the attestation itself.
    row("POST /v1/attestations", attest, _OPEN, AttestationRequest, AttestationResponse, most=_BIG, redeems=2),
    row("POST /v1/verifications", verify, _OPEN, VerificationRequest, VerificationResponse, most=_BIG),
    row(f"POST {_SECRET}:release", release, _AGENT, ReleaseRequest, ReleaseResponse),
    row(
        f"POST {_SECRET}:rotate",
        rotate_secret,
        _ADMIN,
        PutSecretRequest,
        SecretInfo,
        changes=True,
        act=Act.SECRET_ROTATE,
    ),
    row(f"POST {_SECRET}:destroy", destroy_secret, _ADMIN, changes=True, act=Act.SECRET_DESTROY),
    row(f"PUT {_SECRET}", put_secret, _ADMIN, PutSecretRequest, SecretInfo, changes=True, act=Act.SECRET_PUT),
    row("GET /v1/secrets", list_secrets, _ADMIN, act=Act.SECRET_LIST, query="tenant after limit:int"),
    row(f"POST {_WHO}:revoke", revoke_agent, _ADMIN, changes=True, act=Act.AGENT_REVOKE),
    row(f"GET {_WHO}", agent, _EITHER, None, PeerInfo, act=Act.AGENT_LIST),
    row("GET /v1/agents", list_agents, _ADMIN, act=Act.AGENT_LIST, query="tenant after limit:int"),
    row(f"POST {_MAILBOX}:send", send, _AGENT, None, SendResponse, most=MAX_BATCH_BYTES, content=PROTOBUF),
    row(f"POST {_MAILBOX}:receive", receive, _AGENT, ReceiveRequest, ReceiveResponse),
    row(f"POST {_MAILBOX}:ack", acknowledge, _AGENT, AckRequest, AckResponse),
    row(f"PUT {_MAILBOX}", open_mailbox, _AGENT, MailboxKey),
    row(f"GET {_MAILBOX}", find_mailbox, _AGENT, None, MailboxInfo),
    row("GET /v1/log/checkpoint", checkpoint, _OPEN, content="text/plain"),
    row("GET /v1/log/tile/{tile:path}", tile, _OPEN, content="application/octet-stream"),
    row("GET /v1/log/consistency", consistency, _OPEN, query="old:int size:int"),
    row("GET /v1/log/entries", log_entries, _ADMIN, act=Act.LOG_READ, query="start:int limit:int kind subject"),
    row("GET /v1/log/entries/{index:int}", log_receipt, _ADMIN, None, Receipt, act=Act.LOG_READ),
    row("GET /v1/status", status, _ADMIN),
    row("GET /v1/proposals", proposals, _ADMIN),
    row("POST /v1/policies:reload", reload_policies, _ADMIN, changes=True, act=Act.POLICY_RELOAD),
    row("POST /v1/collateral:refresh", refresh_collateral, _ADMIN, changes=True, act=Act.COLLATERAL_REFRESH),
    row("GET /.well-known/jwks.json", jwks, _OPEN),
    row("GET /.well-known/openid-configuration", configuration, _OPEN),
    row("GET /results/.well-known/jwks.json", results_jwks, _OPEN),
    row("GET /results/.well-known/openid-configuration", results_configuration, _OPEN),
    row("GET /healthz", healthz, _OPEN),
    row("GET /readyz", readyz, _OPEN),
    row("GET /metrics", metrics, _OPEN, content="text/plain"),
    row("GET /console", console_page, _OPEN, content="text/html"),
)
