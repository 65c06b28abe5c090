"""What can go wrong inside the trust domain, as stable codes, and the exceptions that carry them.

Decides the names and the sentence that goes with each. A refusal by the broker keeps the broker's own code
(`BrokerRefused`), and evidence that is wrong keeps that of `attestation.errors`, a malformed answer that of
`broker.wire.errors`; the codes here are for what an agent finds out by itself.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from attestation.errors import CloisterError as CloisterError

REASON: Final = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){1,3}")


class Code(StrEnum):
    """Public and stable: add, never rename or reuse. Each has a row in `MEANING`."""

    AGENT_GROUP = "agent.group_unusable"
    AGENT_HANDLER = "agent.handler_invalid"
    AGENT_HANDLER_OVER = "agent.handler_over"
    AGENT_HOOK = "agent.hook_failed"
    AGENT_NAME = "agent.name_invalid"
    AGENT_NOT_IDEMPOTENT = "agent.not_idempotent"
    AGENT_NOT_RUNNING = "agent.not_running"
    AGENT_NO_REPLY = "agent.no_reply"
    AGENT_PATH = "agent.path_unusable"
    AGENT_RUNNING = "agent.running"
    AGENT_TOOL = "agent.tool_invalid"
    AGENT_UNCONFIGURED = "agent.unconfigured"
    CHANNEL_BODY = "channel.body_unreadable"
    CHANNEL_CHAIN = "channel.chain_broken"
    CHANNEL_DEAD = "channel.dead"
    CHANNEL_OPENING = "channel.opening_mismatch"
    CHANNEL_OUTSTANDING = "channel.outstanding"
    CHANNEL_REORDERED = "channel.reordered"
    CHANNEL_UNOPENED = "channel.not_opened"
    CLIENT_ANSWER = "client.answer_malformed"
    CLIENT_TIMEOUT = "client.timeout"
    CLIENT_UNREACHABLE = "client.unreachable"
    ENVELOPE_ACCEPTANCE = "envelope.acceptance_invalid"
    ENVELOPE_BEFORE_BOOT = "envelope.before_boot"
    ENVELOPE_BODY = "envelope.body_unreadable"
    ENVELOPE_EPOCH = "envelope.epoch_unknown"
    ENVELOPE_EXPIRED = "envelope.expired"
    ENVELOPE_FORGOTTEN = "envelope.number_forgotten"
    ENVELOPE_FUTURE = "envelope.sent_in_future"
    ENVELOPE_INCARNATION = "envelope.incarnation_mismatch"
    ENVELOPE_IN_PROGRESS = "envelope.in_progress"
    ENVELOPE_PAYLOAD = "envelope.payload_missing"
    ENVELOPE_REPLAYED = "envelope.replayed"
    ENVELOPE_SENDER = "envelope.sender_mismatch"
    ENVELOPE_SENDERS = "envelope.too_many_senders"
    ENVELOPE_TENANT = "envelope.tenant_mismatch"
    ENVELOPE_TOO_LARGE = "envelope.too_large"
    ENVELOPE_WRONG_MAILBOX = "envelope.wrong_mailbox"
    EPOCH_OWNER = "epoch.owner_mismatch"
    KEYS_DEAD = "keys.dead"
    LAUNCH_DOMAIN_FAILED = "launch.domain_failed"
    LAUNCH_DOMAIN_FORBIDDEN = "launch.domain_forbidden"
    LAUNCH_DOMAIN_GONE = "launch.domain_gone"
    LAUNCH_EMPTY = "launch.nothing_to_run"
    LAUNCH_NO_SIMULATOR = "launch.simulator_missing"
    LAUNCH_NO_TDX = "launch.no_tdx"
    LAUNCH_PACKAGE = "launch.package_missing"
    LAUNCH_RELOAD = "launch.reload_refused"
    LAUNCH_SAME_USER = "launch.same_user"
    LAUNCH_TOO_LARGE = "launch.too_large"
    LAUNCH_UNSAFE_FILE = "launch.unsafe_file"
    MESSAGE_DEADLINE = "message.deadline"
    MESSAGE_HANDLER = "message.handler_failed"
    MESSAGE_NO_ANSWER = "message.no_answer"
    MESSAGE_PEER_FAILED = "message.peer_failed"
    MESSAGE_REJECTED = "message.rejected"
    MESSAGE_SCHEMA = "message.schema_mismatch"
    MESSAGE_STREAM = "message.stream_mismatch"
    MESSAGE_TYPE = "message.type_unknown"
    PEER_FALLEN = "peer.fallen"
    PEER_PROOF = "peer.proof_refused"
    PEER_PROOF_MISMATCH = "peer.proof_mismatch"
    PEER_REFUSED = "peer.not_accepted"
    RELEASE_EXPIRED = "release.permit_expired"
    RELEASE_RECEIPT = "release.receipt_mismatch"
    SESSION_ADMISSION = "session.admission_mismatch"
    SESSION_CHALLENGE = "session.challenge_malformed"
    SESSION_EXPIRED = "session.challenge_expired"
    SESSION_QUOTE = "session.quote_mismatch"
    SESSION_STEP = "session.wrong_step"
    SESSION_UNATTESTED = "session.broker_not_attested"
    STANDING_UNKNOWN = "standing.unknown"
    STATE_MISSING = "state.missing"
    STATE_ROLLED_BACK = "state.rolled_back"
    STATE_UNREADABLE = "state.unreadable"
    STATE_UNWRITABLE = "state.unwritable"
    TDX_BUSY = "tdx.busy"
    TDX_CLASH = "tdx.clash"
    TDX_FAILED = "tdx.failed"
    TDX_FORBIDDEN = "tdx.forbidden"
    TDX_LOG = "tdx.log_unusable"
    TDX_MISSING = "tdx.missing"
    TDX_PERMISSION = "tdx.permission_denied"
    TDX_PROVIDER = "tdx.provider_mismatch"
    TDX_QUOTE = "tdx.quote_mismatch"
    TDX_REGISTER = "tdx.register_invalid"
    TDX_TOO_LARGE = "tdx.quote_too_large"
    TOOL_ARGUMENTS = "tool.arguments_invalid"
    TOOL_DENIED = "tool.denied"
    TOOL_DESCRIPTION = "tool.description_malformed"
    TOOL_DRIFT = "tool.drift"
    TOOL_HOOK = "tool.hook_failed"
    TOOL_KEY = "tool.key_required"
    TOOL_KEY_REUSED = "tool.key_reused"
    TOOL_RESULT = "tool.result_invalid"
    TOOL_SECRET = "tool.secret_undeclared"
    TOOL_UNKNOWN = "tool.unknown"
    TOOL_UNPINNED = "tool.not_pinned"
    TOOL_UNSURE = "tool.outcome_unknown"
    TOPIC_MISSED = "topic.missed"
    TRUST_MALFORMED = "trust.malformed"
    TRUST_UNREADABLE = "trust.unreadable"


class EnclaveError(CloisterError):
    """`code` is for machines, `detail` says what was found, `remedy` what would help. None ever holds a secret."""

    code: Code

    def __init__(self, code: Code, detail: str, remedy: str = "") -> None:
        self.code = code
        self.detail = detail
        self.remedy = remedy or MEANING[code][1]
        super().__init__(f"{code}: {detail}\n  what to do: {self.remedy}")


class KeyUnusable(EnclaveError):
    """The private key died: with a fork, or because it was destroyed. Make new keys and attest again."""


class TrustFileError(EnclaveError):
    """The file that says who may be believed is missing or wrong. Nothing can start without it."""


class TdxError(EnclaveError):
    """The kernel's interface to the trust domain is missing, or did not do what was asked."""


class LaunchFailed(EnclaveError):
    """The code could not be copied, measured or started. Nothing ran."""


class SessionError(EnclaveError):
    """The broker's half of the protocol was not what it must be. Send it nothing more; start over."""


class TransportFailed(EnclaveError):
    """The broker could not be reached or did not speak its language. Try again later."""


class EnvelopeRefused(EnclaveError):
    """A message or a mailbox key that cannot be proved. Drop it and tell the operator."""


class ChannelDead(EnclaveError):
    """The channel's key may not seal anything more. Open another channel; what was sealed may still be sent."""


class StateLost(EnclaveError):
    """What a durable mailbox had received before this start is not known any more."""


class MessageError(EnclaveError):
    """The plaintext is not of the type that it claims, or no handler takes that type."""


class ToolRefused(EnclaveError):
    """A tool was not called, or what it answered cannot be taken. The codes say whether anything of it ran."""


class AgentError(EnclaveError):
    """The agent is set up or used in a way that cannot work."""


class Reject(CloisterError):
    """Raise it in a handler: this message can never be handled. No further attempt; who asked is told `reason`."""

    def __init__(self, reason: str = str(Code.MESSAGE_REJECTED)) -> None:
        if not REASON.fullmatch(reason):
            raise ValueError(f"{reason!r} is not a code like `order.unknown`, which is all that the other side is told")
        self.code = reason
        self.detail = "the handler rejects the message"
        super().__init__(reason)


def _shown(text: str) -> str:
    """What a broker says stands on one line of a log or terminal, and moves no cursor."""
    return text if text.isprintable() else ascii(text)


class BrokerRefused(CloisterError):
    """The broker said no. `code` is its own, as in its problem+json (RFC 9457); `reasons` are the codes behind it."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str,
        remedy: str = "",
        correlation_id: str = "",
        reasons: tuple[str, ...] = (),
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.remedy = remedy
        self.correlation_id = correlation_id
        self.reasons = reasons
        lines = [f"{_shown(code)} (HTTP {status}): {_shown(detail)}"]
        if reasons:
            lines.append(f"  because: {', '.join(map(_shown, reasons))}")
        if remedy:
            lines.append(f"  what to do: {_shown(remedy)}")
        if correlation_id:
            lines.append(f"  the operator finds every reason under correlation id {_shown(correlation_id)}")
        super().__init__("\n".join(lines))


# code → (what happened, what to do)
MEANING: Final[dict[Code, tuple[str, str]]] = {
    Code.AGENT_GROUP: (
        "The agent can't open its socket to that group: there is none such, it is root's, or the agent is no member.",
        "Make the group in the image, and start the agent with `cloister run --group NAME`.",
    ),
    Code.AGENT_HANDLER: (
        "A handler or a message type is not one that can work.",
        "Decorate `def handler(ctx, message)` with `@agent.on_message(Type)`; Type is a dataclass or pydantic model.",
    ),
    Code.AGENT_HANDLER_OVER: (
        "A handler that runs in a thread went on after its deadline, or after the agent was stopped.",
        "Give the handler a longer `deadline_s`, or let it end earlier; what it still wanted to send was not sent.",
    ),
    Code.AGENT_HOOK: (
        "A function of `on_start` or `on_stop` failed, or took longer than it declares.",
        "Read the lines before: they say what failed, and where. More time is `deadline_s` at the decorator.",
    ),
    Code.AGENT_NAME: (
        "The name of an agent, a mailbox or a topic is not one that there can be.",
        "Use 1 to 64 of A-Z a-z 0-9 _ . -, not a dot first; or a full name, `tenant/path/name`.",
    ),
    Code.AGENT_NOT_IDEMPOTENT: (
        "A durable mailbox delivers a message again after a crash, and this handler does not say that it may.",
        "Declare it: `@agent.on_message(Type, idempotent=True)`, or `idempotent=lambda message: message.key`.",
    ),
    Code.AGENT_NOT_RUNNING: (
        "The agent has not been admitted yet, or was stopped.",
        "Use secrets and messages inside a handler, `on_start`, or after `await agent.start(...)`.",
    ),
    Code.AGENT_NO_REPLY: (
        "There is nobody to reply to.",
        "Reply inside a handler, to messages that were sent with `ctx.ask`.",
    ),
    Code.AGENT_PATH: (
        "A file or socket that the agent declares cannot be where it says.",
        "Name an absolute path in a folder that the agent's user may write to; its own one is a copy that goes.",
    ),
    Code.AGENT_RUNNING: (
        "The agent was started twice.",
        "Make one Agent for each start.",
    ),
    Code.AGENT_TOOL: (
        "A function cannot be served as a tool as it is declared.",
        "Write `@agent.tool` over `async def name(ctx, arguments: A) -> R` with a docstring; A and R as for messages.",
    ),
    Code.AGENT_UNCONFIGURED: (
        "The agent does not know its trust domain, broker or trust file.",
        "Start it with `cloister run AGENT.py` (add `--simulated` on a machine without TDX).",
    ),
    Code.CHANNEL_BODY: (
        "A message on a channel does not decrypt, though its sender signed it.",
        "Restart the sender: it seals with another key than its opening carried.",
    ),
    Code.CHANNEL_CHAIN: (
        "A batch does not continue the messages that came before it on its channel.",
        "Do not trust the router, or the sender: somebody shows two histories of one channel.",
    ),
    Code.CHANNEL_DEAD: (
        "The channel's key has ended: with an hour, the mailbox's key, the sender's admission, or a fork.",
        "Open another channel; this happens by itself when messages are sent through a stream.",
    ),
    Code.CHANNEL_OPENING: (
        "A channel's opening contradicts its own header, or there are too many channels.",
        "Drop it; if it keeps coming, revoke the sender.",
    ),
    Code.CHANNEL_OUTSTANDING: (
        "More messages of one channel were delivered than are being handled at once.",
        "Settle what was delivered first; a broker that ignores credits is not ours.",
    ),
    Code.CHANNEL_REORDERED: (
        "A batch came after messages that follow it on its channel.",
        "The router changed the order: the messages are refused, and the sender must send them anew.",
    ),
    Code.CHANNEL_UNOPENED: (
        "A batch came on a channel whose opening never did.",
        "Receive again: the broker sends a channel's opening before its batches.",
    ),
    Code.CLIENT_ANSWER: (
        "The broker's answer is not what its interface promises.",
        "Check that the address is that of a Cloister broker of the same version, and not of a proxy's login page.",
    ),
    Code.CLIENT_TIMEOUT: ("The broker did not answer in time.", "Try again; check the broker's load and the network."),
    Code.CLIENT_UNREACHABLE: (
        "No connection to the broker.",
        "Check the address and that the broker runs; `cloister lab` starts one on this machine.",
    ),
    Code.ENVELOPE_ACCEPTANCE: (
        "The broker did not sign that it took this envelope in, for this mailbox, at that time.",
        "Nothing to do if it happens once; if it stays so, somebody stands between you and the broker.",
    ),
    Code.ENVELOPE_BEFORE_BOOT: (
        "The message was sent before this start, and what was received before it is lost.",
        "It lies among the dead letters: if it was not handled, start the agent anew and redrive it.",
    ),
    Code.ENVELOPE_BODY: (
        "The body does not open with the mailbox key: altered, or sealed to another key or header.",
        "Nothing to repair here: ask the sender to send again.",
    ),
    Code.ENVELOPE_EPOCH: (
        "The envelope names a mailbox key that this agent does not hold.",
        "The sender must fetch the current mailbox key and send again; ephemeral mail ends with its owner.",
    ),
    Code.ENVELOPE_EXPIRED: ("The message is past its expiry.", "Send it again, or with a longer life."),
    Code.ENVELOPE_FORGOTTEN: (
        "The message's number is so far back that nobody remembers whether it was handled.",
        "Find out from its sender whether it was; if not, let it be sent again as a new message.",
    ),
    Code.ENVELOPE_FUTURE: (
        "The message says it was sent later than now.",
        "Let the sender attest again: it takes its time from the broker's challenge.",
    ),
    Code.ENVELOPE_INCARNATION: (
        "The message was sealed for an earlier start of this agent.",
        "The sender must fetch the current mailbox key; what was sent before a restart does not come back.",
    ),
    Code.ENVELOPE_IN_PROGRESS: (
        "The same message is being handled right now.",
        "Leave it in the mailbox; it is acknowledged when its handler ends.",
    ),
    Code.ENVELOPE_PAYLOAD: (
        "The large payload that the message speaks of is not at the broker any more.",
        "Send the message again; give it a longer life if it waits long.",
    ),
    Code.ENVELOPE_REPLAYED: (
        "This message was accepted before.",
        "Drop it. A repeated delivery of a message that was handled is harmless.",
    ),
    Code.ENVELOPE_SENDER: (
        "The header's sender is not the one whose admission came with it.",
        "Drop it: somebody put another name on it.",
    ),
    Code.ENVELOPE_SENDERS: (
        "The mailbox has heard of so many senders that no further one can be remembered.",
        "Send it again in some days, or spread the senders over several mailboxes; ask who begins under so many keys.",
    ),
    Code.ENVELOPE_TENANT: (
        "Sender and mailbox are of different tenants.",
        "Nothing crosses tenants; give both agents admission in one tenant.",
    ),
    Code.ENVELOPE_TOO_LARGE: ("The message is larger than 16 MiB.", "Send it in parts, for example as a stream."),
    Code.ENVELOPE_WRONG_MAILBOX: (
        "The envelope is for another mailbox.",
        "Drop it: it was moved here by whoever routes the mail.",
    ),
    Code.EPOCH_OWNER: (
        "The mailbox key statement is for another mailbox, tenant or owner than asked for.",
        "Do not send: whoever answered offers a key of its own.",
    ),
    Code.KEYS_DEAD: (
        "The private keys no longer exist in this process.",
        "Make a new agent after a fork or a stop; keys never travel into another process.",
    ),
    Code.LAUNCH_DOMAIN_FAILED: (
        "The trust domain could not make a quote or show its event log.",
        "Read the detail: it is what the platform answered. Then start the agent again.",
    ),
    Code.LAUNCH_DOMAIN_FORBIDDEN: (
        "The running agent asked for what only its launcher may do.",
        "Extend registers in the launcher, before the agent runs; the agent may ask for quotes and the event log.",
    ),
    Code.LAUNCH_DOMAIN_GONE: (
        "The launcher that holds the trust domain has ended.",
        "Start the agent again with `cloister run`.",
    ),
    Code.LAUNCH_EMPTY: (
        "There is no code to run at that path.",
        "Name a .py file, or a folder that has an __main__.py.",
    ),
    Code.LAUNCH_NO_SIMULATOR: (
        "The simulator is not installed.",
        'Install it: pip install "cloister[simulator]".',
    ),
    Code.LAUNCH_NO_TDX: (
        "This machine is not a TDX trust domain.",
        "Add --simulated to run on the software simulator, or start this inside a TD with Linux 6.16 or newer.",
    ),
    Code.LAUNCH_PACKAGE: (
        "A package that the agent needs is not installed, or one of its files is missing.",
        "Install what the agent's dependencies name, in the Python that runs `cloister`.",
    ),
    Code.LAUNCH_RELOAD: (
        "A register of a real trust domain cannot be taken back, so nothing is launched in it again and again.",
        "Add --simulated to work with --reload; on TDX restart the trust domain for each launch.",
    ),
    Code.LAUNCH_SAME_USER: (
        "The agent would run as a user that can reach reports and registers, and could record launches of its own.",
        "Start as root, with a Python that every user may read; or say --same-user if the image has no other user.",
    ),
    Code.LAUNCH_TOO_LARGE: (
        "The code and its packages are larger than a launch may be.",
        "Keep data out of the agent's folder; fetch it at run time.",
    ),
    Code.LAUNCH_UNSAFE_FILE: (
        "A file can't be measured: a symbolic link, a device, or it changed while it was copied.",
        "Keep only plain files in the agent's folder.",
    ),
    Code.MESSAGE_DEADLINE: (
        "The handler did not end within the deadline that it declares.",
        "Raise `deadline_s`, or look into what the handler waits for.",
    ),
    Code.MESSAGE_HANDLER: (
        "The handler of this message failed as often as it may.",
        "Look into the log of the agent that was asked.",
    ),
    Code.MESSAGE_NO_ANSWER: (
        "The peer did not answer in time.",
        "Ask again, or wait longer with `timeout_s`.",
    ),
    Code.MESSAGE_PEER_FAILED: (
        "The peer could not handle the message; the detail is its code.",
        "Look into the peer's log; the message was not retried further.",
    ),
    Code.MESSAGE_REJECTED: (
        "The handler says that this message can never be handled.",
        "Do not send it again as it is; the detail, where there is one, is the handler's reason.",
    ),
    Code.MESSAGE_SCHEMA: (
        "The message does not fit its type.",
        "Give sender and receiver the same definition of the type; the schema's digest travels with the message.",
    ),
    Code.MESSAGE_STREAM: (
        "The answer is a stream where one message was asked for, or a stream lost a part.",
        "Take streams with `async for item in ctx.stream(to, message, Item)`, and single answers with `ctx.ask`.",
    ),
    Code.MESSAGE_TYPE: (
        "No handler takes messages of this type.",
        "Add a handler with `@agent.on_message(Type)`, or send a type that the receiver handles.",
    ),
    Code.PEER_FALLEN: (
        "The peer was quarantined or revoked.",
        "Nothing to do here: the operator's log says why; whoever it was has to attest again.",
    ),
    Code.PEER_PROOF: (
        "The peer does not quote for this asker now.",
        "Ask again in a second, with a nonce of 32 bytes.",
    ),
    Code.PEER_PROOF_MISMATCH: (
        "The peer's quote is for another nonce, asker, tenant or broker, or binds another key than it speaks with.",
        "Do not believe this peer: somebody passed on what another one proved.",
    ),
    Code.PEER_REFUSED: (
        "The agent's own rule does not accept this peer.",
        "Compare the peer's verdict with the rule given as `Agent(peers=...)`.",
    ),
    Code.RELEASE_EXPIRED: (
        "The permit of this release is past its end.",
        "Ask again.",
    ),
    Code.RELEASE_RECEIPT: (
        "The log entry that came with the release is about something else.",
        "Do not use the secret; keep the answer: it is evidence that the broker releases without a log entry.",
    ),
    Code.SESSION_ADMISSION: (
        "The broker's admission is not for this agent's keys, broker or time.",
        "Attest again; if it stays so, something between you and the broker swaps answers.",
    ),
    Code.SESSION_CHALLENGE: (
        "The broker's challenge is not well formed.",
        "Check that the address is that of a Cloister broker of the same version.",
    ),
    Code.SESSION_EXPIRED: (
        "The challenge is too old to be answered.",
        "Ask for a new one; if it keeps happening, quotes take too long on this machine.",
    ),
    Code.SESSION_QUOTE: (
        "The trust domain's quote does not carry the data that was asked for.",
        "Nothing was sent. Check the trust domain's quote provider.",
    ),
    Code.SESSION_STEP: (
        "The session was asked for a step that its state does not allow.",
        "Follow the order ask, challenge, evidence, admit; after an error start over with ask.",
    ),
    Code.SESSION_UNATTESTED: (
        "The trust file names measurements of the broker, and the broker did not prove its trust domain.",
        "Start it with `cloister broker serve --trust-domain`; without [broker.reference] its key alone is trusted.",
    ),
    Code.STANDING_UNKNOWN: (
        "There is no list of fallen agents that is younger than a minute, so nothing is opened.",
        "The mail waits; it is opened when the broker answers again.",
    ),
    Code.STATE_MISSING: (
        "A durable mailbox was read before, and there is no checkpoint of what was received.",
        "Find out who removed it; the agent goes on as its on_state_loss says.",
    ),
    Code.STATE_ROLLED_BACK: (
        "The checkpoint of a durable mailbox is older than one that was kept.",
        "Somebody has put back an older disk; the agent goes on as its on_state_loss says.",
    ),
    Code.STATE_UNREADABLE: (
        "The checkpoint of a durable mailbox does not open.",
        "Find out who changed it; the agent goes on as its on_state_loss says.",
    ),
    Code.STATE_UNWRITABLE: (
        "The state file of a durable mailbox can't be written.",
        "Make its folder writable for the agent, and room on the disk; until then nothing counts as received.",
    ),
    Code.TDX_BUSY: (
        "The host's quote service did not answer in time.",
        "Try again; if it stays so, ask the operator of the host to look at its quote generation service.",
    ),
    Code.TDX_CLASH: (
        "Something else in this trust domain used the same request or register at the same moment.",
        "Try again; find out which other process asks for quotes or extends registers.",
    ),
    Code.TDX_FAILED: (
        "The kernel or the host refused the request.",
        "See `dmesg` in the trust domain and the log of the host's quote generation service.",
    ),
    Code.TDX_FORBIDDEN: (
        "This test run forbids real TDX hardware (`enclave.tdx.ALLOW_REAL_TDX` is false).",
        "Use the fixture `trust_domain`, or set the flag to true for this test.",
    ),
    Code.TDX_LOG: (
        "The log of run-time extensions is not a private file of this user, is full, or is damaged.",
        "Restart the trust domain: a register cannot be explained any more, and nothing but a restart resets it.",
    ),
    Code.TDX_MISSING: (
        "A path that a Linux kernel offers inside a TDX trust domain is not there.",
        "Without TDX add --simulated. In a TD: Linux 6.7 (6.16 for registers), module tdx_guest, configfs mounted.",
    ),
    Code.TDX_PERMISSION: (
        "This user may not ask for quotes or extend registers.",
        "Run the launcher as root; the agent's code runs under a user of its own anyway.",
    ),
    Code.TDX_PROVIDER: (
        "Reports here come from something other than TDX.",
        "Use a TDX trust domain; other kinds of confidential machine are not supported.",
    ),
    Code.TDX_QUOTE: (
        "The quote is not a TDX quote over the data that was asked for.",
        "Nothing was sent. Ask the operator of the host to look at its quote generation service.",
    ),
    Code.TDX_REGISTER: (
        "There is no such register, or the digest has not 48 bytes.",
        "Extend RTMR 0 to 3 with a SHA-384 digest; run-time events belong into RTMR3.",
    ),
    Code.TDX_TOO_LARGE: (
        "The quote is larger than 128 KiB.",
        "Ask the operator of the host to look at its quote generation service.",
    ),
    Code.TOOL_ARGUMENTS: (
        "The arguments do not fit the type that the tool takes. Nothing of it ran.",
        "Correct the place that is named; caller and server need the same definition of the type.",
    ),
    Code.TOOL_DENIED: (
        "A hook denies the call; the detail is its reason. Nothing of the tool ran.",
        "Do not call again as it is: the reason is the hook's own word, to be looked up where the hook was written.",
    ),
    Code.TOOL_DESCRIPTION: (
        "What a server says of its tools is not the one form that a description has.",
        "Take no tool from it; it does not run this framework, or another version of it.",
    ),
    Code.TOOL_DRIFT: (
        "The tool is not the one whose description was pinned: name, text or a schema has changed. Nothing of it ran.",
        "Read what is served now (`await tool.describe()` unpinned); pin its digest only if somebody has approved it.",
    ),
    Code.TOOL_HOOK: (
        "A hook failed, took too long, or answered neither Allow() nor Deny(reason); so the call is denied.",
        "Read the log where the hook runs: it names the hook and what became of it.",
    ),
    Code.TOOL_KEY: (
        "The call has no idempotency key, and the tool wants one, or does harm when a call is repeated without.",
        'Give the call a key that is new for each thing to be done, `key="…"`; or leave `attempts` out.',
    ),
    Code.TOOL_KEY_REUSED: (
        "The idempotency key was used for a call with other arguments. Nothing ran this time.",
        "Use a new key for each thing to be done, and the same one only to repeat a call.",
    ),
    Code.TOOL_RESULT: (
        "The tool ran, and what it returned does not fit the type that it declares.",
        "Correct the tool; what it did was done.",
    ),
    Code.TOOL_SECRET: (
        "A tool asked for a secret that it does not declare.",
        'Declare it, without the tenant: `@agent.tool(needs="tools/corpus")`. Callers who pin the tool then see it.',
    ),
    Code.TOOL_UNKNOWN: (
        "The agent serves no tool of that name.",
        "Ask what it serves: `await ctx.tools_of(agent)`.",
    ),
    Code.TOOL_UNPINNED: (
        "The call says nothing about which description of the tool was approved. Nothing was sent.",
        "Give its digest, `ctx.tool(agent, name, digest=…)`, or pin it in trust file or policy; or say UNPINNED.",
    ),
    Code.TOOL_UNSURE: (
        "A call under this key was begun and never ended; whether it took effect is not known.",
        "Find out from what the tool changes; then call under another key, or leave it.",
    ),
    Code.TOPIC_MISSED: (
        "The topic was full, and messages went that this reader had left lying for more than a minute.",
        "Read faster, or raise `mail.messages` and `mail.octets` of the broker.",
    ),
    Code.TRUST_MALFORMED: (
        "The trust file is not what it must be.",
        "Let `broker init` or `cloister lab` write it; do not edit the digested file by hand.",
    ),
    Code.TRUST_UNREADABLE: ("The trust file can't be read.", "Name it with --trust FILE or CLOISTER_TRUST_FILE."),
}
