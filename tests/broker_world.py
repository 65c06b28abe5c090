"""A broker, a simulated machine and agents for the broker's tests. Nothing here stands in for a part of the project.

The broker is the real one, in process; agents are keys and trust domains that speak its language by hand, so that a
test can change any single thing that they say.
"""

import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import AttestationError
from attestation.evidence import MLKEM768_X25519, Binding, Evidence, Role, proof_message, sign_proof
from attestation.quote import Quote
from attestation.sealing import SealingKey, seal_to
from broker.config import Admin, Settings
from broker.errors import BrokerError
from broker.rootkey.root import RootKey
from broker.service import Broker, build
from broker.sessions import Session
from broker.wire import dpop
from broker.wire.bodies import AttestationRequest, AttestationResponse, PutSecretRequest
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.envelope import Envelope, Header, info
from broker.wire.errors import WireError
from broker.wire.jose import spki, thumbprint
from broker.wire.mailbox import MailboxInfo, MailboxKey, ReceiveRequest, ReceiveResponse, SendResponse
from broker.wire.release import ReleasePermit, ReleaseRequest, ReleaseResponse
from broker.wire.tags import sealing_thumbprint
from policies import engine
from policies.errors import Refused
from simulator.domain import SimulatedTd
from simulator.machine import Machine

URL = "http://broker.test"
TRUST_FILE = bytes(32)
FILES = {
    "bundle.toml": """
tenant = "acme"
version = 1
platforms = "any"
platforms_until = "2099-01-01"

[tcb]
accept = ["UpToDate"]

[freshness]
max_age_s = 600
""",
    "reference-values.toml": """
[[workload]]
name = "anything"

[[workload.value]]
source = "tests accept every image"
mr_td = "any"
until = "2099-01-01"
""",
    "policy.cedar": """
@id("admit")
permit (principal, action == Action::"Admit", resource == Tenant::"acme")
when { principal.simulated };

@id("release")
permit (principal, action == Action::"ReleaseSecret", resource in Path::"acme/open")
when { principal.simulated };

@id("never-top")
forbid (principal, action == Action::"ReleaseSecret", resource)
when { resource.labels.contains("top") };

@id("mail")
permit (principal, action in [Action::"Send", Action::"Receive"], resource in Path::"acme/mail")
when { principal.simulated };
""",
}


def write_bundle(folder: Path, *changes: tuple[str, str], version: int = 1) -> Path:
    """The test's policy, with texts replaced wherever they stand."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        for old, new in (("version = 1", f"version = {version}"), *changes):
            text = text.replace(old, new)
        (folder / name).write_text(text)
    shutil.copy(Path(engine.__file__).parent / "schema.cedarschema", folder)
    return folder


async def outcome(awaitable: Awaitable[object]) -> str:
    """ "ok", or the code of the refusal."""
    try:
        await awaitable
    except (AttestationError, BrokerError, WireError) as error:
        return str(error.code)
    except Refused as error:
        return f"refused: {', '.join(error.redacted().codes)}"
    return "ok"


@dataclass
class Agent:
    """One identity in one trust domain."""

    world: "World"
    td: SimulatedTd
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)
    sealing: SealingKey = field(default_factory=SealingKey.generate, repr=False)
    token: str = field(default="", repr=False)
    mail_key: SealingKey = field(default_factory=SealingKey.generate, repr=False)
    incarnation: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    seq: int = 0

    @property
    def jkt(self) -> str:
        return thumbprint(self.key.public_key())

    @property
    def subject(self) -> str:
        return f"agent/acme/{self.jkt}"

    # ── attesting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def binding(self, nonce: bytes, **changes: Any) -> Binding:
        members: dict[str, Any] = {
            "role": Role.AGENT,
            "tenant": "acme",
            "broker_id": self.world.broker.identity.broker_id,
            "nonce": nonce,
            "identity_key": spki(self.key.public_key()),
            "suite": MLKEM768_X25519,
            "sealing_key": self.sealing.public,
            "trust_file_digest": TRUST_FILE,
        }
        return Binding(**(members | changes))

    def evidence(self, binding: Binding, client_nonce: bytes, *, quote: bytes | None = None) -> Evidence:
        quote = quote if quote is not None else self.td.quote(binding.report_data)
        log = self.td.event_log()
        message = proof_message(binding.broker_id, client_nonce, binding.nonce, quote, log)
        return Evidence(quote=quote, event_log=log, binding=binding, proof=sign_proof(self.key, message))

    def challenge(self) -> tuple[bytes, ChallengeResponse]:
        client_nonce = secrets.token_bytes(32)
        return client_nonce, self.world.broker.admission.challenge(ChallengeRequest(client_nonce=client_nonce))

    def request(self, **changes: Any) -> AttestationRequest:
        """A good request; `changes` are members of the binding."""
        client_nonce, answer = self.challenge()
        evidence = self.evidence(self.binding(answer.nonce, **changes), client_nonce)
        return AttestationRequest(evidence=evidence.to_dict(), client_nonce=client_nonce)

    async def attest(self, request: AttestationRequest | None = None) -> AttestationResponse:
        answer = await self.world.broker.admission.attest(request or self.request())
        self.token = answer.token
        return answer

    # ── acting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def acting(self, act: Callable[[Session], Awaitable[Any]]) -> Any:
        return await self.world.broker.acting(self.token, act)

    async def release(self, name: str, version: int | None = None) -> tuple[ReleasePermit, bytes]:
        """Ask, check as an agent does, open."""
        request = ReleaseRequest(nonce=secrets.token_bytes(32), version=version)
        answer: ReleaseResponse = await self.acting(lambda s: self.world.broker.releases.release(s, name, request))
        broker = self.world.broker.identity
        permit = answer.verify(
            broker.key.public_key(),
            broker_id=broker.broker_id,
            jkt=self.jkt,
            sealing_key=sealing_thumbprint(self.sealing.suite, self.sealing.public),
            name=name,
            nonce=request.nonce,
        )
        answer.receipt.verify(broker.log_key)
        return permit, self.sealing.open(answer.sealed, answer.context)

    def mailbox_key(self, name: str, *, epoch: int = 1, **changes: Any) -> MailboxKey:
        now_s = int(self.world.broker.clock().timestamp())
        members: dict[str, Any] = {
            "mailbox": name,
            "owner": self.subject,
            "epoch": epoch,
            "suite": self.mail_key.suite,
            "key": self.mail_key.public,
            "incarnation": self.incarnation,
            "not_before_s": now_s,
            "not_after_s": now_s + 3600,
        }
        return MailboxKey.sign(self.key, **(members | changes))

    async def open(self, name: str, **changes: Any) -> None:
        key = self.mailbox_key(name, **changes)
        await self.acting(lambda s: self.world.broker.mailboxes.open(s, name, key))

    async def find(self, name: str) -> MailboxInfo:
        found: MailboxInfo = await self.acting(lambda s: self.world.broker.mailboxes.info(s, name))
        return found

    def envelope(self, key: MailboxKey, text: bytes = b"hello", *, life_s: int = 600, **changes: Any) -> Envelope:
        self.seq += 1
        now_ms = int(self.world.broker.clock().timestamp() * 1000)
        members: dict[str, Any] = {
            "suite": key.suite,
            "tenant": "acme",
            "msg_id": secrets.token_bytes(16),
            "sender": self.subject,
            "sender_jkt": self.jkt,
            "mailbox": key.mailbox,
            "mailbox_key": key.thumbprint,
            "incarnation": key.incarnation,
            "seq": self.seq,
            "sent_at_ms": now_ms,
            "expires_at_ms": now_ms + life_s * 1000,
            "type": "note",
        }
        raw = Header(**(members | changes)).to_bytes()
        return Envelope.sign(self.key, header=raw, body=seal_to(key.suite, key.key, text, info=info(raw)).blob)

    async def send(self, *envelopes: Envelope, name: str = "acme/mail/b") -> SendResponse:
        sent: SendResponse = await self.acting(lambda s: self.world.broker.router.send(s, name, envelopes))
        return sent

    async def receive(self, name: str = "acme/mail/b", **how: Any) -> ReceiveResponse:
        request = ReceiveRequest(**how)
        got: ReceiveResponse = await self.acting(lambda s: self.world.broker.mailboxes.receive(s, name, request))
        return got

    def read(self, envelope: Envelope) -> bytes:
        return self.mail_key.open(envelope.body, info(envelope.header))

    def headers(
        self, method: str, path: str, body: bytes = b"", *, nonce: str | None, **changes: Any
    ) -> dict[str, str]:
        """What an HTTP request of this agent carries."""
        how: dict[str, Any] = {"method": method, "url": URL + path, "body": body, "nonce": nonce, "token": self.token}
        at_s = int(self.world.broker.clock().timestamp())
        proof = dpop.build(self.key, **(how | {"at_s": at_s} | changes))
        return {"authorization": f"DPoP {self.token}", "dpop": proof}


@dataclass
class World:
    """A machine and the broker that trusts it."""

    machine: Machine
    settings: Settings
    root_key: RootKey = field(repr=False)
    broker: Broker
    admin_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    async def make(cls, folder: Path, *, database: bool = False, prefetch: bool = True, **settings: Any) -> Self:
        machine = Machine.create(seed="broker")
        admin_key = ec.generate_private_key(ec.SECP256R1())
        members: dict[str, Any] = {
            "public_url": URL,
            "bundles": (write_bundle(folder / "bundle"),),
            "admins": (Admin(name="root", jkt=thumbprint(admin_key.public_key())),),
            "database": folder / "broker.db" if database else None,
            "root_key_file": folder / "root.key" if database else None,
        }
        configured = Settings(**(members | settings))
        root_key = RootKey.generate()
        broker = await build(
            configured,
            clock=machine.clock.now,
            collateral=machine.as_source(),
            roots=machine.roots,
            root_key=root_key,
        )
        world = cls(machine=machine, settings=configured, root_key=root_key, broker=broker, admin_key=admin_key)
        if prefetch:
            await world.prefetch()
        return world

    async def prefetch(self, platform: int = 0) -> None:
        quote = self.machine.launch("prefetch", platform=platform).quote(b"p" * 64)
        await self.broker.collateral.prefetch(Quote.parse(quote))

    async def restart(self, **settings: Any) -> None:
        """The same broker in another life."""
        await self.broker.close()
        self.settings = replace(self.settings, **settings)
        self.broker = await build(
            self.settings,
            clock=self.machine.clock.now,
            collateral=self.machine.as_source(),
            roots=self.machine.roots,
            root_key=self.root_key,
        )

    def agent(self, label: str = "agent", **launch: Any) -> Agent:
        return Agent(world=self, td=self.machine.launch(f"{label}-{os.urandom(4).hex()}", **launch))

    async def admitted(self, label: str = "agent", **launch: Any) -> Agent:
        agent = self.agent(label, **launch)
        await agent.attest()
        return agent

    async def put(self, name: str, value: bytes, *labels: str) -> None:
        request = PutSecretRequest(value=value, labels=labels)
        await self.broker.administration.put_secret(self.settings.admins[0], name, request)

    def kinds(self) -> list[str]:
        """What the log says happened, in order."""
        return [row.kind for row in self.broker.audit.page(start=0, limit=1000)]

    def admin_headers(self, method: str, path: str, body: bytes = b"", *, nonce: str | None) -> dict[str, str]:
        at_s = int(self.broker.clock().timestamp())
        proof = dpop.build(self.admin_key, method=method, url=URL + path, body=body, at_s=at_s, nonce=nonce)
        return {"cloister-admin": proof}
