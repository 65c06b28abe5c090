from broker.wire import envelope_pb2 as _envelope_pb2
from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NameRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Asked(_message.Message):
    __slots__ = ("path", "query", "body")
    class PathEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class QueryEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    path: _containers.ScalarMap[str, str]
    query: _containers.ScalarMap[str, str]
    body: _struct_pb2.Struct
    def __init__(self, path: _Optional[_Mapping[str, str]] = ..., query: _Optional[_Mapping[str, str]] = ..., body: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _struct_pb2.Struct
    def __init__(self, members: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Octets(_message.Message):
    __slots__ = ("data", "content_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    content_type: str
    def __init__(self, data: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("client_nonce", "known")
    CLIENT_NONCE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    client_nonce: bytes
    known: bytes
    def __init__(self, client_nonce: _Optional[bytes] = ..., known: _Optional[bytes] = ...) -> None: ...

class BrokerEvidence(_message.Message):
    __slots__ = ("quote", "event_log", "suite", "sealing_key", "trust_file_digest", "collateral")
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    EVENT_LOG_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    TRUST_FILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COLLATERAL_FIELD_NUMBER: _ClassVar[int]
    quote: bytes
    event_log: bytes
    suite: str
    sealing_key: bytes
    trust_file_digest: bytes
    collateral: str
    def __init__(self, quote: _Optional[bytes] = ..., event_log: _Optional[bytes] = ..., suite: _Optional[str] = ..., sealing_key: _Optional[bytes] = ..., trust_file_digest: _Optional[bytes] = ..., collateral: _Optional[str] = ...) -> None: ...

class TokenKey(_message.Message):
    __slots__ = ("kid", "spki")
    KID_FIELD_NUMBER: _ClassVar[int]
    SPKI_FIELD_NUMBER: _ClassVar[int]
    kid: str
    spki: bytes
    def __init__(self, kid: _Optional[str] = ..., spki: _Optional[bytes] = ...) -> None: ...

class BrokerKeys(_message.Message):
    __slots__ = ("log_key", "log_name", "issuer", "identity_key", "token_keys", "issued_at_s", "not_after_s", "signature")
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_NAME_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_KEYS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_S_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    log_key: bytes
    log_name: str
    issuer: str
    identity_key: bytes
    token_keys: _containers.RepeatedCompositeFieldContainer[TokenKey]
    issued_at_s: int
    not_after_s: int
    signature: bytes
    def __init__(self, log_key: _Optional[bytes] = ..., log_name: _Optional[str] = ..., issuer: _Optional[str] = ..., identity_key: _Optional[bytes] = ..., token_keys: _Optional[_Iterable[_Union[TokenKey, _Mapping]]] = ..., issued_at_s: _Optional[int] = ..., not_after_s: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ChallengeResponse(_message.Message):
    __slots__ = ("nonce", "broker_id", "at_s", "expires_s", "keys", "signature", "evidence_digest", "evidence")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    broker_id: bytes
    at_s: int
    expires_s: int
    keys: BrokerKeys
    signature: bytes
    evidence_digest: bytes
    evidence: BrokerEvidence
    def __init__(self, nonce: _Optional[bytes] = ..., broker_id: _Optional[bytes] = ..., at_s: _Optional[int] = ..., expires_s: _Optional[int] = ..., keys: _Optional[_Union[BrokerKeys, _Mapping]] = ..., signature: _Optional[bytes] = ..., evidence_digest: _Optional[bytes] = ..., evidence: _Optional[_Union[BrokerEvidence, _Mapping]] = ...) -> None: ...

class Binding(_message.Message):
    __slots__ = ("version", "role", "tenant", "suite", "broker_id", "nonce", "identity_key", "sealing_key", "init_data_digest", "trust_file_digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    INIT_DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRUST_FILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    role: str
    tenant: str
    suite: str
    broker_id: bytes
    nonce: bytes
    identity_key: bytes
    sealing_key: bytes
    init_data_digest: bytes
    trust_file_digest: bytes
    def __init__(self, version: _Optional[int] = ..., role: _Optional[str] = ..., tenant: _Optional[str] = ..., suite: _Optional[str] = ..., broker_id: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., identity_key: _Optional[bytes] = ..., sealing_key: _Optional[bytes] = ..., init_data_digest: _Optional[bytes] = ..., trust_file_digest: _Optional[bytes] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("quote", "event_log", "binding", "proof")
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    EVENT_LOG_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    quote: bytes
    event_log: bytes
    binding: Binding
    proof: bytes
    def __init__(self, quote: _Optional[bytes] = ..., event_log: _Optional[bytes] = ..., binding: _Optional[_Union[Binding, _Mapping]] = ..., proof: _Optional[bytes] = ...) -> None: ...

class AttestationRequest(_message.Message):
    __slots__ = ("evidence", "client_nonce")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NONCE_FIELD_NUMBER: _ClassVar[int]
    evidence: Evidence
    client_nonce: bytes
    def __init__(self, evidence: _Optional[_Union[Evidence, _Mapping]] = ..., client_nonce: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("index", "entry", "proof", "checkpoint")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    index: int
    entry: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: str
    def __init__(self, index: _Optional[int] = ..., entry: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class AttestationResponse(_message.Message):
    __slots__ = ("token", "token_type", "subject", "expires_at_s", "receipt")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TYPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    token: str
    token_type: str
    subject: str
    expires_at_s: int
    receipt: Receipt
    def __init__(self, token: _Optional[str] = ..., token_type: _Optional[str] = ..., subject: _Optional[str] = ..., expires_at_s: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class PeerInfo(_message.Message):
    __slots__ = ("subject", "token")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    subject: str
    token: str
    def __init__(self, subject: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class VerificationRequest(_message.Message):
    __slots__ = ("quote", "event_log", "report_data", "accept", "allow", "audience", "nonce", "policy")
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    EVENT_LOG_FIELD_NUMBER: _ClassVar[int]
    REPORT_DATA_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    quote: bytes
    event_log: bytes
    report_data: bytes
    accept: _containers.RepeatedScalarFieldContainer[str]
    allow: _containers.RepeatedScalarFieldContainer[str]
    audience: str
    nonce: str
    policy: str
    def __init__(self, quote: _Optional[bytes] = ..., event_log: _Optional[bytes] = ..., report_data: _Optional[bytes] = ..., accept: _Optional[_Iterable[str]] = ..., allow: _Optional[_Iterable[str]] = ..., audience: _Optional[str] = ..., nonce: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class VerificationBatch(_message.Message):
    __slots__ = ("verifications",)
    VERIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    verifications: _containers.RepeatedCompositeFieldContainer[VerificationRequest]
    def __init__(self, verifications: _Optional[_Iterable[_Union[VerificationRequest, _Mapping]]] = ...) -> None: ...

class VerificationOutcome(_message.Message):
    __slots__ = ("response", "problem")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    response: VerificationResponse
    problem: _struct_pb2.Struct
    def __init__(self, response: _Optional[_Union[VerificationResponse, _Mapping]] = ..., problem: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class VerificationResults(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[VerificationOutcome]
    def __init__(self, results: _Optional[_Iterable[_Union[VerificationOutcome, _Mapping]]] = ...) -> None: ...

class TokenRequest(_message.Message):
    __slots__ = ("audience", "kind")
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    audience: str
    kind: str
    def __init__(self, audience: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class TokenResponse(_message.Message):
    __slots__ = ("token", "audience", "kind", "expires_at_s", "receipt")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    token: str
    audience: str
    kind: str
    expires_at_s: int
    receipt: Receipt
    def __init__(self, token: _Optional[str] = ..., audience: _Optional[str] = ..., kind: _Optional[str] = ..., expires_at_s: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class IntrospectionRequest(_message.Message):
    __slots__ = ("token", "audience")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    token: str
    audience: str
    def __init__(self, token: _Optional[str] = ..., audience: _Optional[str] = ...) -> None: ...

class IntrospectionResponse(_message.Message):
    __slots__ = ("active", "code", "subject", "jkt", "token_id", "issued_at_s", "expires_at_s", "policy", "status", "simulated")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    JKT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    active: bool
    code: str
    subject: str
    jkt: str
    token_id: str
    issued_at_s: int
    expires_at_s: int
    policy: str
    status: str
    simulated: bool
    def __init__(self, active: _Optional[bool] = ..., code: _Optional[str] = ..., subject: _Optional[str] = ..., jkt: _Optional[str] = ..., token_id: _Optional[str] = ..., issued_at_s: _Optional[int] = ..., expires_at_s: _Optional[int] = ..., policy: _Optional[str] = ..., status: _Optional[str] = ..., simulated: _Optional[bool] = ...) -> None: ...

class VerificationResponse(_message.Message):
    __slots__ = ("ok", "code", "affirming", "verdict", "checks", "result")
    OK_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    AFFIRMING_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    code: str
    affirming: bool
    verdict: _struct_pb2.Struct
    checks: _containers.RepeatedCompositeFieldContainer[Check]
    result: str
    def __init__(self, ok: _Optional[bool] = ..., code: _Optional[str] = ..., affirming: _Optional[bool] = ..., verdict: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., checks: _Optional[_Iterable[_Union[Check, _Mapping]]] = ..., result: _Optional[str] = ...) -> None: ...

class Check(_message.Message):
    __slots__ = ("name", "code", "ok", "warning", "detail", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    code: str
    ok: bool
    warning: bool
    detail: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., code: _Optional[str] = ..., ok: _Optional[bool] = ..., warning: _Optional[bool] = ..., detail: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("name", "nonce", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    nonce: bytes
    version: int
    def __init__(self, name: _Optional[str] = ..., nonce: _Optional[bytes] = ..., version: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("sealed", "suite", "permit", "permit_digest", "signature", "receipt")
    SEALED_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    PERMIT_FIELD_NUMBER: _ClassVar[int]
    PERMIT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    suite: str
    permit: bytes
    permit_digest: bytes
    signature: bytes
    receipt: Receipt
    def __init__(self, sealed: _Optional[bytes] = ..., suite: _Optional[str] = ..., permit: _Optional[bytes] = ..., permit_digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class PutSecretRequest(_message.Message):
    __slots__ = ("name", "value", "labels", "terms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    labels: _containers.RepeatedScalarFieldContainer[str]
    terms: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ..., labels: _Optional[_Iterable[str]] = ..., terms: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class MailboxKey(_message.Message):
    __slots__ = ("mailbox", "owner", "epoch", "kind", "suite", "key", "incarnation", "not_before_s", "not_after_s", "signature")
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_S_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    mailbox: str
    owner: str
    epoch: int
    kind: str
    suite: str
    key: bytes
    incarnation: bytes
    not_before_s: int
    not_after_s: int
    signature: bytes
    def __init__(self, mailbox: _Optional[str] = ..., owner: _Optional[str] = ..., epoch: _Optional[int] = ..., kind: _Optional[str] = ..., suite: _Optional[str] = ..., key: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ..., not_before_s: _Optional[int] = ..., not_after_s: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class OpenMailboxRequest(_message.Message):
    __slots__ = ("name", "key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: MailboxKey
    def __init__(self, name: _Optional[str] = ..., key: _Optional[_Union[MailboxKey, _Mapping]] = ...) -> None: ...

class MailboxInfo(_message.Message):
    __slots__ = ("key", "owner_token", "next_seq", "streams")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OWNER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    key: MailboxKey
    owner_token: str
    next_seq: int
    streams: bool
    def __init__(self, key: _Optional[_Union[MailboxKey, _Mapping]] = ..., owner_token: _Optional[str] = ..., next_seq: _Optional[int] = ..., streams: _Optional[bool] = ...) -> None: ...

class SendRequest(_message.Message):
    __slots__ = ("name", "batch")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    batch: _envelope_pb2.Batch
    def __init__(self, name: _Optional[str] = ..., batch: _Optional[_Union[_envelope_pb2.Batch, _Mapping]] = ...) -> None: ...

class SendResult(_message.Message):
    __slots__ = ("msg_id", "status", "code")
    MSG_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    msg_id: bytes
    status: str
    code: str
    def __init__(self, msg_id: _Optional[bytes] = ..., status: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class SendResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[SendResult, _Mapping]]] = ...) -> None: ...

class ReceiveRequest(_message.Message):
    __slots__ = ("name", "max_messages", "wait_s", "lease_s", "anew")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ANEW_FIELD_NUMBER: _ClassVar[int]
    name: str
    max_messages: int
    wait_s: int
    lease_s: int
    anew: bool
    def __init__(self, name: _Optional[str] = ..., max_messages: _Optional[int] = ..., wait_s: _Optional[int] = ..., lease_s: _Optional[int] = ..., anew: _Optional[bool] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("envelope", "lease", "attempt", "accepted_at_ms", "acceptance", "sender_token")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    SENDER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    lease: str
    attempt: int
    accepted_at_ms: int
    acceptance: bytes
    sender_token: str
    def __init__(self, envelope: _Optional[bytes] = ..., lease: _Optional[str] = ..., attempt: _Optional[int] = ..., accepted_at_ms: _Optional[int] = ..., acceptance: _Optional[bytes] = ..., sender_token: _Optional[str] = ...) -> None: ...

class BatchDelivery(_message.Message):
    __slots__ = ("batch", "sender", "digest", "lease", "attempt", "accepted_at_ms", "acceptance", "remaining", "sender_token")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    SENDER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    batch: bytes
    sender: str
    digest: bytes
    lease: str
    attempt: int
    accepted_at_ms: int
    acceptance: bytes
    remaining: _containers.RepeatedScalarFieldContainer[int]
    sender_token: str
    def __init__(self, batch: _Optional[bytes] = ..., sender: _Optional[str] = ..., digest: _Optional[bytes] = ..., lease: _Optional[str] = ..., attempt: _Optional[int] = ..., accepted_at_ms: _Optional[int] = ..., acceptance: _Optional[bytes] = ..., remaining: _Optional[_Iterable[int]] = ..., sender_token: _Optional[str] = ...) -> None: ...

class ReceiveResponse(_message.Message):
    __slots__ = ("deliveries", "senders", "batches", "openings")
    class SendersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    deliveries: _containers.RepeatedCompositeFieldContainer[Delivery]
    senders: _containers.ScalarMap[str, str]
    batches: _containers.RepeatedCompositeFieldContainer[BatchDelivery]
    openings: _containers.RepeatedCompositeFieldContainer[OpeningDelivery]
    def __init__(self, deliveries: _Optional[_Iterable[_Union[Delivery, _Mapping]]] = ..., senders: _Optional[_Mapping[str, str]] = ..., batches: _Optional[_Iterable[_Union[BatchDelivery, _Mapping]]] = ..., openings: _Optional[_Iterable[_Union[OpeningDelivery, _Mapping]]] = ...) -> None: ...

class OpeningDelivery(_message.Message):
    __slots__ = ("envelope", "accepted_at_ms", "acceptance", "sender_token")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    SENDER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    accepted_at_ms: int
    acceptance: bytes
    sender_token: str
    def __init__(self, envelope: _Optional[bytes] = ..., accepted_at_ms: _Optional[int] = ..., acceptance: _Optional[bytes] = ..., sender_token: _Optional[str] = ...) -> None: ...

class Nak(_message.Message):
    __slots__ = ("lease", "delay_s", "code")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    delay_s: int
    code: str
    def __init__(self, lease: _Optional[str] = ..., delay_s: _Optional[int] = ..., code: _Optional[str] = ...) -> None: ...

class Partly(_message.Message):
    __slots__ = ("lease", "but", "delay_s", "code")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BUT_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    but: _containers.RepeatedScalarFieldContainer[int]
    delay_s: int
    code: str
    def __init__(self, lease: _Optional[str] = ..., but: _Optional[_Iterable[int]] = ..., delay_s: _Optional[int] = ..., code: _Optional[str] = ...) -> None: ...

class Extension(_message.Message):
    __slots__ = ("lease", "lease_s")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    lease: str
    lease_s: int
    def __init__(self, lease: _Optional[str] = ..., lease_s: _Optional[int] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("lease", "code")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    code: str
    def __init__(self, lease: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("name", "ack", "nak", "partly", "extend", "reject")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NAK_FIELD_NUMBER: _ClassVar[int]
    PARTLY_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    name: str
    ack: _containers.RepeatedScalarFieldContainer[str]
    nak: _containers.RepeatedCompositeFieldContainer[Nak]
    partly: _containers.RepeatedCompositeFieldContainer[Partly]
    extend: _containers.RepeatedCompositeFieldContainer[Extension]
    reject: _containers.RepeatedCompositeFieldContainer[Rejection]
    def __init__(self, name: _Optional[str] = ..., ack: _Optional[_Iterable[str]] = ..., nak: _Optional[_Iterable[_Union[Nak, _Mapping]]] = ..., partly: _Optional[_Iterable[_Union[Partly, _Mapping]]] = ..., extend: _Optional[_Iterable[_Union[Extension, _Mapping]]] = ..., reject: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ...) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ("done", "lost")
    DONE_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    done: int
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, done: _Optional[int] = ..., lost: _Optional[_Iterable[str]] = ...) -> None: ...

class PageRequest(_message.Message):
    __slots__ = ("name", "after", "limit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    after: int
    limit: int
    def __init__(self, name: _Optional[str] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Tombstone(_message.Message):
    __slots__ = ("number", "mailbox", "sender", "msg_id", "digest", "end", "code", "at_ms", "signature")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    MSG_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    mailbox: str
    sender: str
    msg_id: bytes
    digest: bytes
    end: str
    code: str
    at_ms: int
    signature: bytes
    def __init__(self, number: _Optional[int] = ..., mailbox: _Optional[str] = ..., sender: _Optional[str] = ..., msg_id: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., end: _Optional[str] = ..., code: _Optional[str] = ..., at_ms: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class TombstoneResponse(_message.Message):
    __slots__ = ("tombstones", "forgotten")
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    tombstones: _containers.RepeatedCompositeFieldContainer[Tombstone]
    forgotten: int
    def __init__(self, tombstones: _Optional[_Iterable[_Union[Tombstone, _Mapping]]] = ..., forgotten: _Optional[int] = ...) -> None: ...

class DeadInfo(_message.Message):
    __slots__ = ("number", "sender", "kind", "count", "msg_id", "octets", "attempt", "accepted_at_ms", "expires_at_ms", "dead_at_ms", "reason", "code")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MSG_ID_FIELD_NUMBER: _ClassVar[int]
    OCTETS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DEAD_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    number: int
    sender: str
    kind: str
    count: int
    msg_id: bytes
    octets: int
    attempt: int
    accepted_at_ms: int
    expires_at_ms: int
    dead_at_ms: int
    reason: str
    code: str
    def __init__(self, number: _Optional[int] = ..., sender: _Optional[str] = ..., kind: _Optional[str] = ..., count: _Optional[int] = ..., msg_id: _Optional[bytes] = ..., octets: _Optional[int] = ..., attempt: _Optional[int] = ..., accepted_at_ms: _Optional[int] = ..., expires_at_ms: _Optional[int] = ..., dead_at_ms: _Optional[int] = ..., reason: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class DeadResponse(_message.Message):
    __slots__ = ("dead",)
    DEAD_FIELD_NUMBER: _ClassVar[int]
    dead: _containers.RepeatedCompositeFieldContainer[DeadInfo]
    def __init__(self, dead: _Optional[_Iterable[_Union[DeadInfo, _Mapping]]] = ...) -> None: ...

class RedriveRequest(_message.Message):
    __slots__ = ("name", "numbers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class RedriveResponse(_message.Message):
    __slots__ = ("redriven", "gone")
    REDRIVEN_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    redriven: _containers.RepeatedScalarFieldContainer[int]
    gone: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, redriven: _Optional[_Iterable[int]] = ..., gone: _Optional[_Iterable[int]] = ...) -> None: ...

class TileRequest(_message.Message):
    __slots__ = ("tile",)
    TILE_FIELD_NUMBER: _ClassVar[int]
    tile: str
    def __init__(self, tile: _Optional[str] = ...) -> None: ...

class ConsistencyRequest(_message.Message):
    __slots__ = ("old", "size")
    OLD_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    old: int
    size: int
    def __init__(self, old: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class ConsistencyResponse(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("kind", "title", "status", "code", "correlation_id", "detail", "remedy", "codes", "retry_after_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    kind: str
    title: str
    status: int
    code: str
    correlation_id: str
    detail: str
    remedy: str
    codes: _containers.RepeatedScalarFieldContainer[str]
    retry_after_s: int
    def __init__(self, kind: _Optional[str] = ..., title: _Optional[str] = ..., status: _Optional[int] = ..., code: _Optional[str] = ..., correlation_id: _Optional[str] = ..., detail: _Optional[str] = ..., remedy: _Optional[str] = ..., codes: _Optional[_Iterable[str]] = ..., retry_after_s: _Optional[int] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...
