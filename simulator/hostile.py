"""A hostile agent for tests: admitted like any other, and then it tries what its framework would not do.

Decides nothing: it attacks the real broker, and the agents behind it, with well-formed requests under genuine keys, as
a talked-into or a taken-over agent would. Each method is one attempt and returns the code with which it was refused, or
"ok" if it was not. What the policy permits is no attack: use a bundle that forbids what you want to see refused.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from typing import Any, final

from attestation.sealing import seal_to
from broker.wire.envelope import Envelope, Header, info
from broker.wire.leases import AckRequest
from broker.wire.mailbox import ReceiveRequest
from broker.wire.tools import call_type
from enclave.agent import Agent
from enclave.client import BrokerCalls
from enclave.keys import AgentKeys
from enclave.mailbox import DEFAULT_TTL_S, pad
from enclave.messages import MessageType, Shaped
from enclave.runtime import Runtime
from enclave.tools import ToolAnswer, ToolCall
from simulator.agent_fixture import Agents, AgentUnderTest, Peer, code_of
from simulator.domain import SimulatedTd


@final
class HostileAgent(Peer):
    """See the module. It is a `Peer` too: what it asks and sends in the ordinary way is policy's to judge."""

    def __init__(self, agents: Agents, agent: Agent, domain: SimulatedTd) -> None:
        super().__init__(agents, agent, domain)
        self._seq = 0

    @property
    def _runtime(self) -> Runtime:
        return self.agent.running

    def attack(self, victim: AgentUnderTest, *, text: bytes = b"{}") -> Mapping[str, str]:
        """Everything that no policy permits, against one agent: attempt → code. An "ok" among them is a breach."""
        mailbox = victim.agent.running.inbox.name
        return {
            "speak in another's name": self.send_raw(mailbox, text, sender=victim.subject),
            "put another key's thumbprint into the header": self.send_raw(mailbox, text, sender_jkt="A" * 43),
            "seal for an earlier start of the receiver": self.send_raw(mailbox, text, incarnation=os.urandom(32)),
            "deliver to a mailbox that the header does not name": self.misdeliver(mailbox),
            "alter a message after it was signed": self.alter(mailbox),
            "send a message that is over": self.send_raw(mailbox, text, expires_in_ms=-1),
            "read another's mail": self.read_mail(mailbox),
            "settle another's mail": self.settle(mailbox),
            "open another's mailbox": self.take_over(mailbox),
            "use another's token": self.use_token(victim.agent.running.admission.token),
            "reach into another tenant": code_of(lambda: self.secret("elsewhere/some/secret")),
            "call a tool by a name that none has": self.send_raw(mailbox, text, kind=call_type("../tool")),
            **self.call_tools(victim, pin="0" * 64),
        }

    def call_tools(self, victim: AgentUnderTest, *, pin: str = "", arguments: str = "{}") -> Mapping[str, str]:
        """Call whatever an agent serves, with arguments that are none: attempt → code. What policy does not permit is
        refused by the broker; the rest by the server, and an "ok" is a result."""
        return {
            f"call {name}": self.call_tool(victim, name, pin=pin, arguments=arguments) for name in victim.agent.tools
        }

    def call_tool(self, victim: AgentUnderTest, name: str, *, pin: str = "", arguments: str = "{}") -> str:
        """Call a tool with a body of one's own making, under a pin or none."""
        call = Shaped(MessageType(ToolCall, call_type(name)), ToolCall(pin=pin, key="", arguments=arguments))
        mailbox = victim.agent.running.inbox.name
        answers: list[ToolAnswer] = []
        code = code_of(lambda: answers.append(self.ask(mailbox, call, ToolAnswer)))
        return code if code != "ok" else answers[0].code or "ok"

    def send_raw(
        self,
        mailbox: str,
        text: bytes,
        *,
        kind: str = "Note",
        labels: tuple[str, ...] = (),
        expires_in_ms: int = DEFAULT_TTL_S * 1000,
        **changes: Any,
    ) -> str:
        """Send bytes under a header of one's own making; `changes` are members of `Header`. Labels: none unless told,
        whatever was read before."""
        return self._try(self._send(self._envelope(mailbox, text, kind, labels, expires_in_ms, changes), mailbox))

    def misdeliver(self, mailbox: str) -> str:
        """Hand in an envelope for one's own mailbox at another's."""
        own = self._runtime.inbox.name
        return self._try(self._send(self._envelope(own, b"{}", "Note", (), DEFAULT_TTL_S * 1000, {}), mailbox))

    def alter(self, mailbox: str) -> str:
        """Change the body under a signature."""
        good = self._envelope(mailbox, b"{}", "Note", (), DEFAULT_TTL_S * 1000, {})
        body = good.body[:-1] + bytes([good.body[-1] ^ 1])
        return self._try(self._send(Envelope(header=good.header, body=body, signature=good.signature), mailbox))

    def take_over(self, mailbox: str) -> str:
        """Publish a key of one's own for a mailbox that somebody else has open."""
        runtime = self._runtime
        now_s = int(runtime.time.now_s())
        key = runtime.keys.sign_mailbox_key(
            mailbox=mailbox,
            owner=runtime.admission.subject,
            epoch=1,
            suite=runtime.keys.suite,
            key=runtime.keys.sealing_key,
            incarnation=os.urandom(32),
            not_before_s=now_s,
            not_after_s=now_s + 3600,
        )
        return self._try(runtime._client.do(runtime._calls.publish(key)))

    def read_mail(self, mailbox: str) -> str:
        request = ReceiveRequest(max_messages=1, wait_s=0, lease_s=30)
        return self._try(self._runtime._client.do(self._runtime._calls.receive(mailbox, request)))

    def settle(self, mailbox: str) -> str:
        request = AckRequest(ack=("A" * 32,))
        return self._try(self._runtime._client.do(self._runtime._calls.ack(mailbox, request)))

    def use_token(self, token: str) -> str:
        """Ask for one's own mailbox with a stolen token, proving possession of the only key at hand."""
        runtime, own = self._runtime, AgentKeys.generate()
        calls = BrokerCalls(runtime._calls.base_url, own, runtime.time, lambda: token)
        return self._try(runtime._client.do(calls.mailbox(runtime.inbox.name)))

    def _envelope(
        self, mailbox: str, text: bytes, kind: str, labels: tuple[str, ...], expires_in_ms: int, changes: dict[str, Any]
    ) -> Envelope:
        runtime = self._runtime
        key = self._agents.run(runtime._mailbox(mailbox)).key
        self._seq += 1
        now_ms = runtime.time.now_ms()
        sent_at_ms = now_ms if expires_in_ms > 0 else now_ms - 10_000
        members: dict[str, Any] = {
            "suite": key.suite,
            "tenant": runtime.admission.verdict.tenant,
            "msg_id": os.urandom(16),
            "sender": runtime.admission.subject,
            "sender_jkt": runtime.keys.jkt,
            "mailbox": mailbox,
            "mailbox_key": key.thumbprint,
            "incarnation": key.incarnation,
            "seq": self._seq,
            "sent_at_ms": sent_at_ms,
            "expires_at_ms": now_ms + expires_in_ms,
            "type": kind,
            "labels": tuple(sorted(labels)),
        }
        header = Header(**{**members, **changes}).to_bytes()
        body = seal_to(key.suite, key.key, pad(text), info=info(header))
        return runtime.keys.sign_envelope(header=header, body=body.blob)

    async def _send(self, envelope: Envelope, mailbox: str) -> None:
        await self._runtime._send(mailbox, envelope)

    def _try(self, work: Coroutine[Any, Any, object]) -> str:
        return code_of(lambda: self._agents.run(work))
