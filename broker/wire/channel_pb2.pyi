from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ChannelOpening(_message.Message):
    __slots__ = ("channel", "key", "mailbox_key", "incarnation", "appraisal", "policy")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_KEY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    APPRAISAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    key: bytes
    mailbox_key: bytes
    incarnation: bytes
    appraisal: bytes
    policy: bytes
    def __init__(self, channel: _Optional[bytes] = ..., key: _Optional[bytes] = ..., mailbox_key: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ..., appraisal: _Optional[bytes] = ..., policy: _Optional[bytes] = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("channel", "seq", "sent_at_ms", "expires_at_ms", "type", "labels", "in_reply_to", "reply_to")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IN_REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    seq: int
    sent_at_ms: int
    expires_at_ms: int
    type: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    in_reply_to: bytes
    reply_to: str
    def __init__(self, channel: _Optional[bytes] = ..., seq: _Optional[int] = ..., sent_at_ms: _Optional[int] = ..., expires_at_ms: _Optional[int] = ..., type: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., in_reply_to: _Optional[bytes] = ..., reply_to: _Optional[str] = ...) -> None: ...

class ChannelBatch(_message.Message):
    __slots__ = ("channel", "first_seq", "prev_chain", "headers", "bodies", "signature")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_CHAIN_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    first_seq: int
    prev_chain: bytes
    headers: _containers.RepeatedScalarFieldContainer[bytes]
    bodies: _containers.RepeatedScalarFieldContainer[bytes]
    signature: bytes
    def __init__(self, channel: _Optional[bytes] = ..., first_seq: _Optional[int] = ..., prev_chain: _Optional[bytes] = ..., headers: _Optional[_Iterable[bytes]] = ..., bodies: _Optional[_Iterable[bytes]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ChannelSend(_message.Message):
    __slots__ = ("opening", "batch")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    opening: bytes
    batch: bytes
    def __init__(self, opening: _Optional[bytes] = ..., batch: _Optional[bytes] = ...) -> None: ...
