from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Header(_message.Message):
    __slots__ = ("v", "suite", "tenant", "msg_id", "sender", "sender_jkt", "mailbox", "mailbox_key", "incarnation", "seq", "sent_at_ms", "expires_at_ms", "type", "labels", "permit_digest", "in_reply_to", "reply_to")
    V_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MSG_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SENDER_JKT_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_KEY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PERMIT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IN_REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    v: int
    suite: str
    tenant: str
    msg_id: bytes
    sender: str
    sender_jkt: str
    mailbox: str
    mailbox_key: bytes
    incarnation: bytes
    seq: int
    sent_at_ms: int
    expires_at_ms: int
    type: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    permit_digest: bytes
    in_reply_to: bytes
    reply_to: str
    def __init__(self, v: _Optional[int] = ..., suite: _Optional[str] = ..., tenant: _Optional[str] = ..., msg_id: _Optional[bytes] = ..., sender: _Optional[str] = ..., sender_jkt: _Optional[str] = ..., mailbox: _Optional[str] = ..., mailbox_key: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ..., seq: _Optional[int] = ..., sent_at_ms: _Optional[int] = ..., expires_at_ms: _Optional[int] = ..., type: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., permit_digest: _Optional[bytes] = ..., in_reply_to: _Optional[bytes] = ..., reply_to: _Optional[str] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("header", "body", "signature")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    body: bytes
    signature: bytes
    def __init__(self, header: _Optional[bytes] = ..., body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("envelopes",)
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    envelopes: _containers.RepeatedCompositeFieldContainer[Envelope]
    def __init__(self, envelopes: _Optional[_Iterable[_Union[Envelope, _Mapping]]] = ...) -> None: ...
