"""What the broker refuses, as stable codes, and the exception that carries one.

Decides the names and what they mean to the person who reads them. HTTP statuses stand in status.py; codes of evidence,
policy and wire formats stand with those who raise them (`attestation.errors`, `policies.codes`, `broker.wire.errors`).
"""

from enum import StrEnum
from typing import Final


class BrokerCode(StrEnum):
    """`family.what`. Public and stable: add, never rename or reuse."""

    ADMIN_KEY_UNKNOWN = "admin.key_unknown"
    ADMIN_PROOF_MISSING = "admin.proof_missing"
    ADMIN_ROLE = "admin.role"
    ADMIN_SECOND = "admin.second_person"
    ADMIN_TENANT = "admin.tenant"
    AGENT_EXPIRED = "agent.expired"
    AGENT_QUARANTINED = "agent.quarantined"
    AGENT_RETIRED = "agent.retired"
    AGENT_REVOKED = "agent.revoked"
    AGENT_UNKNOWN = "agent.unknown"
    ATTESTATION_ROLE = "attestation.role"
    ATTESTATION_TENANT = "attestation.tenant_unknown"
    ATTESTATION_WRONG_BROKER = "attestation.wrong_broker"
    BROKER_EVIDENCE = "broker.evidence_pending"
    BLOB_DIGEST = "blob.digest_mismatch"
    BLOB_UNKNOWN = "blob.unknown"
    AUDIENCE_RESERVED = "audience.reserved"
    BROKER_BUSY = "broker.busy"
    BROKER_DEADLINE = "broker.deadline"
    BROKER_INTERNAL = "broker.internal"
    BROKER_STOPPING = "broker.stopping"
    CHALLENGE_EXPIRED = "challenge.expired"
    CHALLENGE_FORGED = "challenge.forged"
    CHALLENGE_USED = "challenge.used"
    CHECKPOINT_CONFLICT = "checkpoint.conflict"
    CHECKPOINT_ROLLED_BACK = "checkpoint.rolled_back"
    CHANNEL_FORKED = "channel.forked"
    CHANNEL_GAP = "channel.gap"
    CHANNEL_OWNER = "channel.not_owner"
    CHANNEL_UNKNOWN = "channel.unknown"
    CLOCK_BEHIND = "clock.behind"
    COLLATERAL_PENDING = "collateral.pending"
    CONFIG_INVALID = "config.invalid"
    DECISION_UNAVAILABLE = "decision.unavailable"
    DPOP_BODY = "dpop.body_mismatch"
    DPOP_KEY = "dpop.key_mismatch"
    DPOP_METHOD = "dpop.method_mismatch"
    DPOP_MISSING = "dpop.missing"
    DPOP_NONCE = "dpop.nonce_required"
    DPOP_REPLAYED = "dpop.replayed"
    DPOP_TOKEN = "dpop.token_mismatch"
    DPOP_URL = "dpop.url_mismatch"
    GENERATION_MOVED = "generation.moved"
    KBS_INIT_DATA = "kbs.init_data_mismatch"
    KBS_KEY = "kbs.key_unsupported"
    KBS_SESSION = "kbs.session_unknown"
    KBS_TEE = "kbs.tee_unsupported"
    KBS_TOKEN = "kbs.token_invalid"
    KBS_TOKEN_EXPIRED = "kbs.token_expired"
    KBS_TOKEN_MISSING = "kbs.token_missing"
    KBS_VERSION = "kbs.version_unsupported"
    KEY_WORKLOAD = "key.workload_unmatched"
    LEASE_LOST = "lease.lost"
    LIMIT_AGENT = "limit.agent"
    LIMIT_SOURCE = "limit.source"
    LIMIT_TENANT = "limit.tenant"
    LOG_ENTRY_UNKNOWN = "log.entry_unknown"
    LOG_TAMPERED = "log.tampered"
    MAILBOX_FULL = "mailbox.full"
    MAILBOX_CHECKPOINT = "mailbox.checkpoint_stale"
    MAILBOX_KEY_NOT_KEPT = "mailbox.key_not_kept"
    MAILBOX_KEY_STALE = "mailbox.key_stale"
    MAILBOX_KIND = "mailbox.kind_mismatch"
    MAILBOX_NAME = "mailbox.name_invalid"
    MAILBOX_NOT_OWNER = "mailbox.not_owner"
    MAILBOX_OWNER_GONE = "mailbox.owner_gone"
    MAILBOX_TAKEN = "mailbox.taken"
    MAILBOX_TOO_MANY = "mailbox.too_many"
    MAILBOX_UNKNOWN = "mailbox.unknown"
    MESSAGE_EXPIRED = "message.expired"
    MESSAGE_ID_REUSED = "message.id_reused"
    MESSAGE_LABELS = "message.labels_lowered"
    MESSAGE_LADEN = "message.labels_too_many"
    MESSAGE_MAILBOX = "message.mailbox_mismatch"
    MESSAGE_SENDER = "message.sender_mismatch"
    POLICY_REFUSED = "policy.refused"
    RELEASE_QUERY = "release.query_invalid"
    ROOT_FILE = "root.file_invalid"
    ROOT_PASSPHRASE = "root.passphrase_wrong"
    ROOT_SEALED = "root.sealed"
    ROOT_SHARE = "root.share_wrong"
    ROOT_TPM = "root.tpm_refused"
    ROOT_TPM_UNAVAILABLE = "root.tpm_unavailable"
    ROOT_WRONG = "root.wrong_key"
    ROUTE_METHOD = "route.method_not_allowed"
    ROUTE_UNKNOWN = "route.unknown"
    SECRET_DESTROYED = "secret.destroyed"
    SECRET_LEASE = "secret.lease_ended"
    SECRET_NAME = "secret.name_invalid"
    SECRET_UNKNOWN = "secret.unknown"
    SVID_AUTHORITY = "svid.authority_unknown"
    SVID_TOO_MANY = "svid.too_many"
    SESSION_TOKEN_MISSING = "session.token_missing"
    STORE_DAMAGED = "store.damaged"
    STORE_IN_USE = "store.in_use"
    STORE_ROW_FORGED = "store.row_forged"
    STORE_ROWS = "store.rows_changed"
    STORE_UNAVAILABLE = "store.unavailable"
    STORE_VERSION = "store.version_unknown"
    STREAM_SUPERSEDED = "stream.superseded"
    TOPIC_NOT_READER = "topic.not_reader"
    VERIFICATION_POLICY = "verification.policy_invalid"


class BrokerError(Exception):
    """`code` is for machines and goes to the caller; `detail` goes to the operator's log. Neither ever holds a secret.

    `codes` are every reason's codes when there are several; `retry_after_s` is set when trying again makes sense;
    `shown` is a text that the caller, too, may read: an administrator about the policy that he has just loaded.
    """

    def __init__(
        self,
        code: BrokerCode,
        detail: str,
        *,
        codes: tuple[str, ...] = (),
        retry_after_s: int | None = None,
        shown: str = "",
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.codes, self.retry_after_s = code, detail, codes, retry_after_s
        self.shown = shown


MEANING: Final[dict[BrokerCode, tuple[str, str]]] = {
    BrokerCode.ADMIN_KEY_UNKNOWN: (
        "The proof is by a key that is no administrator's.",
        "Use the key file that `broker init` wrote, or add the key's thumbprint to the configuration.",
    ),
    BrokerCode.ADMIN_PROOF_MISSING: (
        "An administrative request came without a Cloister-Admin proof.",
        "Use `cloister` with --key-file, or send the proof that the documentation describes.",
    ),
    BrokerCode.ADMIN_ROLE: (
        "The administrator's role does not include this act.",
        "Ask somebody whose role does: auditors look, operators do the daily work, security does everything.",
    ),
    BrokerCode.ADMIN_SECOND: (
        "The act needs two administrators. The request is noted; nothing was done yet.",
        "A second administrator, under another key, sends exactly the same request within the hour.",
    ),
    BrokerCode.ADMIN_TENANT: (
        "The administrator's rights do not reach this tenant, or not the whole broker.",
        "Ask an administrator of that tenant, or one whose rights are not limited to tenants.",
    ),
    BrokerCode.AGENT_EXPIRED: (
        "The agent's admission has ended and it has not attested again.",
        "Wait until it is back; an agent renews its admission by itself while it runs.",
    ),
    BrokerCode.AGENT_QUARANTINED: (
        "The agent was admitted and no longer passes the policy.",
        "`cloister agent show` lists the reasons; when they are mended the agent is let in again by attesting.",
    ),
    BrokerCode.AGENT_RETIRED: (
        "Nothing was heard of this agent for so long that its identity key has ended.",
        "Start the agent anew: it makes new keys and attests again. `agents.days` says how long is too long.",
    ),
    BrokerCode.AGENT_REVOKED: (
        "An administrator revoked this agent's identity key.",
        "Start the agent anew: it makes new keys and attests again.",
    ),
    BrokerCode.AGENT_UNKNOWN: (
        "No agent of that name was admitted here.",
        "Check the subject; the agent has to attest first.",
    ),
    BrokerCode.ATTESTATION_ROLE: (
        "The evidence was made in another role than an agent's.",
        "Make the binding with the role `agent`: evidence of brokers and peers admits nobody.",
    ),
    BrokerCode.ATTESTATION_TENANT: (
        "No policy bundle is loaded for that tenant.",
        "Check the tenant's name, or load a bundle for it.",
    ),
    BrokerCode.ATTESTATION_WRONG_BROKER: (
        "The evidence was made for another broker.",
        "Attest to the broker whose challenge you answered; evidence cannot be passed on.",
    ),
    BrokerCode.BROKER_EVIDENCE: (
        "The broker runs in a trust domain and cannot prove it at the moment.",
        "Ask again shortly; the operator's log says whether the quote or its collateral is missing.",
    ),
    BrokerCode.BLOB_DIGEST: (
        "The address names another digest than that of the bytes that were sent.",
        "Put the SHA-256 of the body, in lower-case hex, into the address.",
    ),
    BrokerCode.BLOB_UNKNOWN: (
        "There is no such blob beside a mailbox of yours, or it has expired.",
        "Fetch a blob while you own the mailbox whose message speaks of it, before it expires.",
    ),
    BrokerCode.AUDIENCE_RESERVED: (
        "A token was asked for with the broker's own address as its audience.",
        "Name the service that will read the token; the admission token opens the broker's doors.",
    ),
    BrokerCode.BROKER_BUSY: (
        "More evidence is waiting to be verified than the broker takes in.",
        "Try again after the time that Retry-After says.",
    ),
    BrokerCode.BROKER_DEADLINE: (
        "The request was not done within the broker's time for it. It may have had its effect.",
        "Try again; what must not happen twice is recognised by its nonce or message id.",
    ),
    BrokerCode.BROKER_INTERNAL: (
        "The broker failed in a way that nobody foresaw, and refused.",
        "Give the correlation id to the operator: the log has the rest.",
    ),
    BrokerCode.BROKER_STOPPING: ("The broker is stopping.", "Try again in a moment."),
    BrokerCode.CHALLENGE_EXPIRED: (
        "The nonce is older than 60 seconds.",
        "Ask for a new challenge and quote at once.",
    ),
    BrokerCode.CHALLENGE_FORGED: (
        "The nonce was not made by this broker for this purpose and caller.",
        "Use the nonce that this broker gave for the client nonce you send.",
    ),
    BrokerCode.CHALLENGE_USED: (
        "The nonce was used before.",
        "Ask for a new challenge: each admits one attempt.",
    ),
    BrokerCode.CHECKPOINT_CONFLICT: (
        "The checkpoint that was confirmed is not the newest one of this broker.",
        "Ask for the status again and compare anew: `cloister broker confirm` does both.",
    ),
    BrokerCode.CHECKPOINT_ROLLED_BACK: (
        "Somebody remembers a newer or a different log than this broker's: its disk was set back, or replaced.",
        "Do not confirm. Find the newest copy of the database; receipts and the witness say how new it must be.",
    ),
    BrokerCode.CHANNEL_FORKED: (
        "A batch has numbers that the channel used before, for other messages, or does not continue its history.",
        "Open another channel. If nobody made two copies of the agent, find out who has its keys.",
    ),
    BrokerCode.CHANNEL_GAP: (
        "Batches of this channel are missing before this one.",
        "Send what was not taken in, from the first on; streams do this by themselves.",
    ),
    BrokerCode.CHANNEL_OWNER: (
        "The channel was opened by another agent, or to another mailbox.",
        "Send on channels that you opened, to the mailbox that you opened them to.",
    ),
    BrokerCode.CHANNEL_UNKNOWN: (
        "No channel of that name is open here.",
        "Send the opening along with the first batches; if the channel has ended, open another.",
    ),
    BrokerCode.CLOCK_BEHIND: (
        "The broker's clock is behind a time that its own log has recorded.",
        "Set the broker's clock right; until then it judges nothing.",
    ),
    BrokerCode.COLLATERAL_PENDING: (
        "Nothing is known yet about this platform; its collateral is being fetched.",
        "Try again with a new challenge after the time that Retry-After says.",
    ),
    BrokerCode.CONFIG_INVALID: ("A setting is wrong.", "The message names the setting and what it must be."),
    BrokerCode.DECISION_UNAVAILABLE: (
        "The entry records no decision on evidence, or the archive no longer has its parts.",
        "Name an admission, a release or a refusal that is younger than the archive's retention.",
    ),
    BrokerCode.DPOP_BODY: ("The proof is about another body.", "Hash the body's bytes exactly as they are sent."),
    BrokerCode.DPOP_KEY: (
        "The proof is by another key than the one the token is bound to.",
        "Sign with the identity key under which the agent attested: a token alone is worth nothing.",
    ),
    BrokerCode.DPOP_METHOD: ("The proof is for another method.", "Put the request's method into htm."),
    BrokerCode.DPOP_MISSING: (
        "The request has no DPoP proof, or more than one.",
        "Send `Authorization: DPoP <token>` and one `DPoP: <proof>`.",
    ),
    BrokerCode.DPOP_NONCE: (
        "The proof has no server nonce, or one that has ended.",
        "Repeat the request with the nonce from the answer's DPoP-Nonce header.",
    ),
    BrokerCode.DPOP_REPLAYED: ("The proof was used before.", "Build a new proof for every request."),
    BrokerCode.DPOP_TOKEN: ("The proof is about another token.", "Hash the token that you send into ath."),
    BrokerCode.DPOP_URL: (
        "The proof is for another address.",
        "Put the broker's public URL of the endpoint into htu, without query.",
    ),
    BrokerCode.GENERATION_MOVED: (
        "Policy, collateral or a revocation changed while the request was under way.",
        "Try again: the request is judged anew.",
    ),
    BrokerCode.KBS_INIT_DATA: (
        "The init data are not those that the guest was launched with.",
        "Send the very document whose digest stands in MRCONFIGID, byte for byte.",
    ),
    BrokerCode.KBS_KEY: (
        "The guest's key is of a kind that nothing is encrypted to here.",
        "Use P-256 or P-521 with ECDH-ES+A256KW, or RSA of at least 2048 bits with RSA-OAEP-256.",
    ),
    BrokerCode.KBS_SESSION: (
        "The request has no KBS session cookie, or more than one.",
        "Begin with /kbs/v0/auth and send its cookie back.",
    ),
    BrokerCode.KBS_TEE: ("This KBS verifies TDX alone.", "Attest from a TDX trust domain, as `tdx`."),
    BrokerCode.KBS_TOKEN: (
        "The bearer token is none that this KBS signed.",
        "Attest here first; tokens of the broker's other doors open nothing here.",
    ),
    BrokerCode.KBS_TOKEN_EXPIRED: ("The KBS token has ended.", "Attest again."),
    BrokerCode.KBS_TOKEN_MISSING: (
        "The request has neither an attested KBS session nor a bearer token.",
        "Attest first, then send the cookie or `Authorization: Bearer <token>`.",
    ),
    BrokerCode.KBS_VERSION: (
        "KBS Client Protocol Version Mismatch: version 0.4.0 is spoken here.",
        "Use guest components that speak version 0.4.0 of the protocol.",
    ),
    BrokerCode.KEY_WORKLOAD: (
        "The agent is not the workload whose key it asks for.",
        "Ask for the key of a workload that its measurements match, or of the measurements themselves.",
    ),
    BrokerCode.LEASE_LOST: (
        "The lease on the message has ended, or was never given.",
        "Receive again; handle messages within the lease, or ask for a longer one.",
    ),
    BrokerCode.LIMIT_AGENT: (
        "The agent asks more often than one may.",
        "Wait for the seconds in retry-after; the limits are limits.agent_per_s and limits.agent_burst.",
    ),
    BrokerCode.LIMIT_SOURCE: (
        "Too many requests came from this address.",
        "Try again after the time that Retry-After says; the operator sets limits.source_per_s.",
    ),
    BrokerCode.LIMIT_TENANT: (
        "The agents of this tenant ask more than the tenant may.",
        "Try again after the time that Retry-After says; the operator sets limits.tenant_per_s.",
    ),
    BrokerCode.LOG_ENTRY_UNKNOWN: ("The log has no such entry or tile.", "Compare with the checkpoint's size."),
    BrokerCode.LOG_TAMPERED: (
        "The stored log does not have the hashes that its signed checkpoint promises.",
        "Keep the database as it is and find out who changed it; restore a copy that verifies.",
    ),
    BrokerCode.MAILBOX_FULL: (
        "The mailbox holds as many messages or bytes as it may.",
        "Try again after the time that Retry-After says; the receiver is slow.",
    ),
    BrokerCode.MAILBOX_CHECKPOINT: (
        "The checkpoint does not follow on the newest one.",
        "Ask for the mailbox's state: another process has read here, or an older state was restored.",
    ),
    BrokerCode.MAILBOX_KEY_NOT_KEPT: (
        "A durable mailbox can only be opened under a key that the broker keeps for it.",
        "Ask for the mailbox's keys, and sign the newest within its time and without an incarnation.",
    ),
    BrokerCode.MAILBOX_KEY_STALE: (
        "The message is sealed to a key or incarnation that the mailbox no longer has.",
        "Fetch the mailbox again, check the new key, and seal anew.",
    ),
    BrokerCode.MAILBOX_KIND: (
        "The mailbox is durable, and stays so.",
        "Declare it durable, or take another name for an ephemeral one.",
    ),
    BrokerCode.MAILBOX_NAME: (
        "The name is not tenant/path/name, or differs between address and body.",
        "Use 2 to 8 segments of A-Z a-z 0-9 _ . -, none starting with a dot.",
    ),
    BrokerCode.MAILBOX_NOT_OWNER: (
        "The mailbox is open under another agent.",
        "Open the mailbox first; if another agent took it over, that stands in the audit log.",
    ),
    BrokerCode.MAILBOX_OWNER_GONE: (
        "The mailbox's owner was revoked, and nobody has opened it since.",
        "Wait for a successor to open it, or send elsewhere: this mail would never be read.",
    ),
    BrokerCode.MAILBOX_TAKEN: (
        "The mailbox belongs to another agent, who is there.",
        "Try again after the time that Retry-After says, close it there first, or permit takeover in the bundle.",
    ),
    BrokerCode.MAILBOX_TOO_MANY: (
        "The agent, or its tenant, has as many mailboxes or names with kept keys as it may.",
        "Use fewer. The limits are mail.mailboxes, mail.tenant_mailboxes and mail.tenant_keys.",
    ),
    BrokerCode.MAILBOX_UNKNOWN: (
        "Nobody has opened a mailbox of that name.",
        "Check the name; the receiver opens its mailbox when it starts.",
    ),
    BrokerCode.MESSAGE_EXPIRED: ("The message has expired, or lives too long.", "Send it with a later end."),
    BrokerCode.MESSAGE_ID_REUSED: (
        "Another message of this sender has the same id.",
        "Give every message its own id; a resend has the very same bytes.",
    ),
    BrokerCode.MESSAGE_LABELS: (
        "The message lacks labels of what its sender has been given.",
        "Send it with every label that GET /v1/labels names; the policy can permit Declassify where one may go.",
    ),
    BrokerCode.MESSAGE_LADEN: (
        "Its labels would have held the receiver to more of them than mail may.",
        "Send with fewer labels; list those that there are as `labels` in the bundle's `[mail]`.",
    ),
    BrokerCode.MESSAGE_MAILBOX: (
        "The header names another mailbox than the address.",
        "Send each envelope to the mailbox that its header names.",
    ),
    BrokerCode.MESSAGE_SENDER: (
        "The header names another sender than the agent that sends.",
        "Name the subject, tenant and key thumbprint of your own token.",
    ),
    BrokerCode.POLICY_REFUSED: (
        "The policy does not permit this.",
        "The codes with it name each objection; the operator's log says what was expected and what would pass.",
    ),
    BrokerCode.RELEASE_QUERY: (
        "The question about releases names several of workload, measurement and platform.",
        "Name one of the three; secret, subject and tenant go with each.",
    ),
    BrokerCode.ROOT_FILE: (
        "The root key file is missing, malformed, or readable by others.",
        "Name the right file; `chmod 600` it.",
    ),
    BrokerCode.ROOT_PASSPHRASE: ("The passphrase does not open the root key.", "Try again with the right one."),
    BrokerCode.ROOT_SEALED: (
        "The broker is sealed: it does not have its root key yet, or nobody has confirmed its newest checkpoint.",
        "`cloister broker unseal` and `cloister broker confirm` open it; GET /v1/unseal says what is missing.",
    ),
    BrokerCode.ROOT_SHARE: (
        "The share is malformed, sealed to another holder, or not the one that was given out.",
        "The operator's log names the share; its holder has to bring the file that `broker init` wrote for him.",
    ),
    BrokerCode.ROOT_TPM: (
        "The TPM does not open the root key: the machine was started in another state, or it is another TPM.",
        "Undo the change to firmware or boot loader, or migrate the root key with `cloister broker rewrap` beforehand.",
    ),
    BrokerCode.ROOT_TPM_UNAVAILABLE: (
        "There is no TPM to ask, or the bindings to it are missing.",
        "Install the extra `tpm` (libtss2-dev and gcc are needed) and check root.tcti.",
    ),
    BrokerCode.ROOT_WRONG: (
        "The database was written under another root key.",
        "Give the broker the root key that belongs to this database.",
    ),
    BrokerCode.ROUTE_METHOD: ("The endpoint does not have this method.", "See /openapi.json."),
    BrokerCode.ROUTE_UNKNOWN: ("There is no such endpoint.", "See /openapi.json."),
    BrokerCode.SECRET_DESTROYED: ("That version of the secret was destroyed.", "Ask for a newer version."),
    BrokerCode.SECRET_LEASE: (
        "The agent's lease on that version of the secret has ended.",
        "Ask for the newest version: a lease's end brings a rotation, by itself or by the operator.",
    ),
    BrokerCode.SECRET_NAME: (
        "The name is not tenant/path/name.",
        "Use 2 to 8 segments of A-Z a-z 0-9 _ . -, none starting with a dot.",
    ),
    BrokerCode.SECRET_UNKNOWN: ("There is no such secret or version.", "Check the name: `cloister secret list`."),
    BrokerCode.SESSION_TOKEN_MISSING: (
        "The request has no admission token.",
        "Attest first, then send `Authorization: DPoP <token>`.",
    ),
    BrokerCode.STORE_DAMAGED: (
        "The database is damaged: its pages do not hang together, or a row cannot have been written so.",
        "Keep the file, look at the disk, and restore a copy that verifies: `cloister audit verify` says which does.",
    ),
    BrokerCode.STORE_IN_USE: (
        "Another broker is running on this database.",
        "Stop it first: one process writes, so that the log has one order.",
    ),
    BrokerCode.STORE_ROW_FORGED: (
        "A row that decides about security was changed outside the broker.",
        "Keep the database as it is and find out who changed it; restore a copy that verifies.",
    ),
    BrokerCode.STORE_ROWS: (
        "Rows that decide about security (revocations, policies, marks) are not those of the newest checkpoint.",
        "Keep the database as it is and find out who changed it; restore a copy that verifies.",
    ),
    BrokerCode.STORE_UNAVAILABLE: (
        "The database could not be written, so nothing was done.",
        "Look at the disk and the broker's log; then try again.",
    ),
    BrokerCode.STORE_VERSION: (
        "The database was written by a newer version of the broker.",
        "Run that version, or restore a copy from before the update.",
    ),
    BrokerCode.STREAM_SUPERSEDED: (
        "The mailbox's owner opened another stream, which empties the mailbox from now on.",
        "Keep one stream for each mailbox.",
    ),
    BrokerCode.TOPIC_NOT_READER: (
        "The agent is no reader of the topic, or was one and has fallen since.",
        "Ask for the topic's keys first: that makes it a reader, from then on.",
    ),
    BrokerCode.VERIFICATION_POLICY: (
        "The caller's policy names a TCB state or allowance that does not exist.",
        "Use Intel's spelling of TCB states and the allowances of the documentation.",
    ),
    BrokerCode.SVID_AUTHORITY: (
        "No certificate authority by that name is published.",
        "GET /v1/spiffe/bundle has the authorities whose certificates may be alive.",
    ),
    BrokerCode.SVID_TOO_MANY: (
        "The agent has as many certificates in force as one agent may have.",
        "Use those that there are until they end, minutes from now; one for each TLS key is enough.",
    ),
}
