"""The API that authors of agents use.

    agent = Agent("researcher")

    @agent.on_message(Question)
    async def answer(ctx, question): ...          # ctx.secrets, ctx.peer, ctx.verdict, ctx.labels, ctx.reply

    agent.run()

What a handler returns is sent as the reply; one that yields answers with a stream. What others call by its name is a
tool: `toolbox`. How often, how long and how harmless to repeat a handling is, is declared beside the type (`declared`),
and carried out by `handling`; what is done at the beginning and at the end, by `hooks`. Attesting, renewing,
reconnecting and receiving happen by themselves: `runtime`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, final, overload

import httpx2

from attestation.errors import CloisterError
from attestation.ports import TrustDomain
from attestation.tcb import TcbStates
from attestation.verdict import Verdict
from broker.wire.relying import TokenKind, TokenRequest, TokenResponse
from enclave import hooks, main
from enclave.calling import Offer
from enclave.context import Context
from enclave.declared import Declared, Handler, Key, Retry, declare
from enclave.durable import Durable
from enclave.errors import AgentError, Code
from enclave.handling import MAX_PAUSE_S, Handling
from enclave.life import Asked, Life, end_all, joined, quietly, serve_spiffe, until, usable
from enclave.mailbox import DEFAULT_TTL_S, Judge, everyone
from enclave.messages import Shaped
from enclave.peers import ASKED, ProofAsked, ProofGiven, Prover, prove_peer
from enclave.release import Secret
from enclave.replies import Waits
from enclave.runtime import Runtime
from enclave.subscribing import subscribe
from enclave.svid import SvidKeeper
from enclave.toolbox import Toolbox, two_handlers
from enclave.trustfile import TrustFile

log: Final = logging.getLogger("cloister.agent")
H = TypeVar("H", bound=Handler)
TOPICS: Final = "mail/topics"


@final
class Agent(Toolbox):
    """One agent. `peers` says, from its verdict, whether a sender or a mailbox's owner is one to talk to."""

    def __init__(
        self,
        name: str,
        *,
        peers: Judge = everyone,
        durable: Durable | None = None,
        spiffe_socket: str | Path | None = None,
        spiffe_group: str | None = None,
    ) -> None:
        """`durable` keeps the mailbox, and what comes for it, over restarts. Its key is released again to an attested
        agent, so whoever holds the broker's root could read it; handlers must be declared idempotent.
        `spiffe_socket` is where SPIFFE's Workload API is served to programs in the same trust domain: of the agent's
        own user, and of that group where one is named.
        Raises AgentError agent.name_invalid.
        """
        super().__init__(durable=durable is not None)
        self.name = name
        self._address(name, "any")
        main.made.add(name)
        self._judge = peers
        self._durable = durable
        self._topics: dict[str, dict[str, Declared]] = {}
        self._own(ASKED, self._prove)
        self._on_start: list[hooks.Hook] = []
        self._on_stop: list[hooks.Hook] = []
        self._spiffe_socket = Path(spiffe_socket) if spiffe_socket is not None else None
        self._spiffe_group = spiffe_group
        self._life: Life | None = None
        self._prover: Prover | None = None

    # --- what authors call ---

    def on_message(
        self,
        kind: type,
        *,
        retry: Retry | None = None,
        deadline_s: float | None = None,
        idempotent: bool | Key = False,
    ) -> Callable[[H], H]:
        """Handle messages of a dataclass or pydantic model. One handler for each type.

        retry       how often a failed handling is tried again; five times in all unless told, a stream once
        deadline_s  an attempt that takes longer is broken off and counts as failed
        idempotent  a repetition does no harm; or `lambda message: key`: a repeated key is answered from memory
        """

        message_type = self.message_type(kind)

        def register(handler: H) -> H:
            if message_type.name in self._handlers:
                two_handlers(message_type.name)
            self._handlers[message_type.name] = declare(
                message_type,
                handler,
                retry=retry,
                deadline_s=deadline_s,
                idempotent=idempotent,
                durable=self._durable is not None,
            )
            return handler

        return register

    def on_topic(
        self, topic: str, kind: type, *, retry: Retry | None = None, deadline_s: float | None = None
    ) -> Callable[[H], H]:
        """Handle what is published to a topic from now on, one message after another. Nobody waits for an answer."""
        self._address(topic, "any")
        message_type = self.message_type(kind)

        def register(handler: H) -> H:
            table = self._topics.setdefault(topic, {})
            if message_type.name in table:
                two_handlers(f"{message_type.name} of {topic}")
            declared = declare(
                message_type, handler, retry=retry, deadline_s=deadline_s, idempotent=False, durable=False
            )
            if declared.streams:
                detail = f"{declared.name} yields, and nobody on {topic} takes it"
                raise AgentError(Code.AGENT_HANDLER, detail, "Publish or send what you have to say; leave `yield` out.")
            table[message_type.name] = declared
            return handler

        return register

    @overload
    def on_start(self, handler: H) -> H: ...
    @overload
    def on_start(self, *, deadline_s: float) -> Callable[[H], H]: ...
    def on_start(self, handler: Handler | None = None, *, deadline_s: float | None = None) -> Any:
        """Run `handler(ctx)` once, after the first admission; if it raises, the agent ends.

        With `deadline_s` it is awaited before any message is handled, and may take no longer. Without, it runs beside
        the handlers for as long as it likes, and is cancelled when the agent stops.
        """
        return hooks.register(self._on_start, handler, deadline_s)

    @overload
    def on_stop(self, handler: H) -> H: ...
    @overload
    def on_stop(self, *, deadline_s: float) -> Callable[[H], H]: ...
    def on_stop(self, handler: Handler | None = None, *, deadline_s: float = hooks.STOP_S) -> Any:
        """Run `handler(ctx)` once when the agent stops: after the last message was handled, while it is still admitted
        and its mailbox open, so that it may send, ask and get secrets. What raises or takes longer is told, and
        passed over; `stop` then raises, and `run` exits with 1."""
        return hooks.register(self._on_stop, handler, deadline_s)

    def run(self) -> None:
        """Run until SIGTERM, SIGINT or `end`, in the trust domain that `cloister run` prepared. Failures exit the
        process."""
        main.run_agent(self)

    def end(self) -> None:
        """From a handler or `on_start`, in any thread: let `run` stop the agent in order and return."""
        life = self._living()
        life.loop.call_soon_threadsafe(life.asked.set)

    async def start(
        self,
        *,
        domain: TrustDomain,
        trust: TrustFile,
        broker_url: str,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Verdict:
        """Attest, publish the mailbox, begin to receive. Raises BrokerRefused when the broker does not admit it;
        AgentError agent.path_unusable, agent.running."""
        if self._life is not None:
            raise AgentError(Code.AGENT_RUNNING, f"{self.name} runs already")
        usable(self._spiffe_socket)
        group = joined(self._spiffe_group)
        usable(self._durable.state_file if self._durable else None)
        runtime = Runtime(
            domain=domain,
            trust=trust,
            broker_url=broker_url,
            mailbox=self._address(self.name, trust.tenant),
            judge=self._judge,
            durable=self._durable,
            transport=transport,
        )
        main.started.add(self.name)
        self._life = life = Life(runtime=runtime, loop=asyncio.get_running_loop())
        try:
            admission = await runtime.attest()
            await runtime.publish()
            await runtime.connect()
            if self._spiffe_socket is not None:
                life.workload = await serve_spiffe(runtime, self._spiffe_socket, group)
        except BaseException:
            await self.stop()
            raise
        self._say_tools()
        life.handling = Handling(runtime, self, self._handlers, life.waiting, life.ready)
        life.receiving = [asyncio.create_task(life.handling.receive()), asyncio.create_task(life.handling.keep())]
        forever = (self._renew(runtime), runtime.until_revoked(), until(life.asked))
        life.tasks = [asyncio.create_task(work) for work in forever]
        for topic, table in self._topics.items():
            reader = runtime.topic(self._address(topic, trust.tenant, TOPICS))
            life.tasks.append(asyncio.create_task(subscribe(reader, self, table, life.ready)))
        life.tasks.append(asyncio.create_task(hooks.begin(self._on_start, self, life.ready)))
        life.tasks += [
            asyncio.create_task(hooks.beside(hook, self, life.ready))
            for hook in self._on_start
            if hook.deadline_s is None
        ]
        return admission.verdict

    async def stop(self) -> None:
        """Take nothing new, let running handlers finish for a while, call `on_stop`, then drop everything and destroy
        the keys. Raises AgentError agent.hook_failed, after all of that, when something in `on_stop` failed."""
        life = self._life
        if life is None:
            return
        if life.over is not None:  # somebody else stops it
            await life.over.wait()
            return
        life.over = asyncio.Event()
        try:
            failed = await self._close(life)
        finally:
            self._life = None
            life.over.set()
        if failed:
            raise AgentError(Code.AGENT_HOOK, f"on_stop: {', '.join(failed)}")

    async def _close(self, life: Life) -> list[str]:
        """Which functions of `on_stop` failed."""
        failed: list[str] = []
        await end_all(life.tasks)
        if life.handling is not None:
            await life.handling.close()
            failed = await hooks.end(self._on_stop, self)
        if life.workload is not None:
            await life.workload.close()
        await end_all([*life.receiving, *life.beside])
        await life.runtime.close()
        return failed

    async def wait(self) -> None:
        """Return when the agent was stopped or wants to `end`; raise what ended it otherwise."""
        life = self._life
        if life is None:
            return
        done, _ = await asyncio.wait([*life.tasks, *life.receiving], return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if not task.cancelled():
                with suppress(Asked):
                    task.result()

    async def tools_of(self, peer: str) -> list[Offer]:
        """The tools that another agent serves: `ctx.tools_of`, outside any message."""
        return await self.context().tools_of(peer)

    def context(self) -> Context:
        """A context of its own, outside any message: for programs that drive an agent themselves."""
        return Context(self)

    @property
    def running(self) -> Runtime:
        """Raises AgentError agent.not_running."""
        return self._living().runtime

    @property
    def svids(self) -> SvidKeeper:
        """This agent's X.509-SVIDs: what `enclave.direct` takes. Raises AgentError agent.not_running."""
        return self.running.svids

    # --- what contexts call ---

    @property
    def verdict(self) -> Verdict:
        return self.running.admission.verdict

    async def secret(self, name: str, version: int | None) -> Secret:
        return await self.running.secret(name, version)

    async def deliver(
        self,
        to: str,
        message: object,
        *,
        labels: frozenset[str],
        without: frozenset[str] = frozenset(),
        in_reply_to: bytes = b"",
        item: int | None = None,
        waits: Waits | None = None,
        ttl_s: float = DEFAULT_TTL_S,
    ) -> bytes:
        """Send; with `waits`, whatever comes back goes there until `forget`."""
        life = self._living()
        message_type = message.kind if isinstance(message, Shaped) else self.message_type(type(message))
        message = message.message if isinstance(message, Shaped) else message

        def expect(msg_id: bytes, peer: str) -> None:
            if waits is not None:
                life.waiting.expect(msg_id, peer, waits)

        return await life.runtime.send(
            self._address(to, life.runtime.trust.tenant),
            kind=message_type.name,
            plaintext=message_type.encode(message, item=item),
            labels=labels,
            without=without,
            in_reply_to=in_reply_to,
            reply_to=life.runtime.inbox.name if waits is not None else "",
            ttl_s=ttl_s,
            announce=expect,
        )

    async def publish(
        self, topic: str, message: object, *, labels: frozenset[str], without: frozenset[str], ttl_s: float
    ) -> None:
        runtime, message_type = self.running, self.message_type(type(message))
        await runtime.publish_to(
            self._address(topic, runtime.trust.tenant, TOPICS),
            kind=message_type.name,
            plaintext=message_type.encode(message),
            labels=labels,
            without=without,
            ttl_s=ttl_s,
        )

    async def token(self, audience: str, kind: TokenKind) -> TokenResponse:
        return await self.running.call(lambda calls: calls.token(TokenRequest(audience=audience, kind=kind)))

    def proof(self, token: str, *, method: str, url: str, body: bytes, nonce: str | None) -> str:
        keys, at_s = self.running.keys, int(self.running.time.now_s())
        return keys.dpop(method=method, url=url, body=body, at_s=at_s, nonce=nonce, token=token)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it by the way, as long as the agent runs; what fails is nobody's loss."""
        life = self._life
        if life is None or life.over is not None:
            work.close()
            return
        task = asyncio.create_task(quietly(work))
        life.beside.add(task)
        task.add_done_callback(life.beside.discard)

    def forget(self, waits: Waits) -> None:
        if self._life is not None:
            self._life.waiting.forget(waits)

    async def prove(self, to: str, *, judge: Judge, accept: TcbStates, timeout_s: float) -> Verdict:
        runtime = self.running
        mailbox = self._address(to, runtime.trust.tenant)

        async def ask(asked: ProofAsked) -> ProofGiven:
            return await Context(self).ask(mailbox, asked, ProofGiven, timeout_s=timeout_s)

        return await prove_peer(runtime, mailbox, ask, judge=judge, accept=accept)

    async def _prove(self, ctx: Context, asked: ProofAsked) -> ProofGiven:
        """The framework's own answer to a peer that does not want to take the broker's word."""
        runtime = self.running
        if self._prover is None or self._prover.keys is not runtime.keys:
            self._prover = Prover(runtime.domain, runtime.keys, runtime.trust, runtime.time)
        assert ctx.peer is not None
        return await self._prover.prove(asked, ctx.peer)

    # --- what runs by itself ---

    async def _renew(self, runtime: Runtime) -> None:
        """Attest before the admission ends; when the broker refuses, keep asking, less and less often."""
        pause, failed = 1.0, False
        while True:
            await asyncio.sleep(pause if failed or not runtime.admitted else runtime.renewal_due_s())
            try:
                await runtime.attest(instead_of=runtime.admission if runtime.admitted else None)
                await runtime.publish()
                pause, failed = 1.0, False
            except CloisterError as error:
                log.error("not admitted again: %s", error)
                pause, failed = min(2 * pause, MAX_PAUSE_S), True

    def _living(self) -> Life:
        if self._life is None:
            raise AgentError(Code.AGENT_NOT_RUNNING, f"{self.name} was not started")
        return self._life
