from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToBroker(_message.Message):
    __slots__ = ("hello", "sends", "settles", "credit", "renewal", "save", "follows")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SENDS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    sends: _containers.RepeatedCompositeFieldContainer[StreamSend]
    settles: _containers.RepeatedCompositeFieldContainer[Settle]
    credit: int
    renewal: Renewal
    save: Save
    follows: _containers.RepeatedCompositeFieldContainer[Follow]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., sends: _Optional[_Iterable[_Union[StreamSend, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[Settle, _Mapping]]] = ..., credit: _Optional[int] = ..., renewal: _Optional[_Union[Renewal, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., follows: _Optional[_Iterable[_Union[Follow, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("mailbox", "credit", "lease_s")
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    mailbox: str
    credit: int
    lease_s: int
    def __init__(self, mailbox: _Optional[str] = ..., credit: _Optional[int] = ..., lease_s: _Optional[int] = ...) -> None: ...

class StreamSend(_message.Message):
    __slots__ = ("id", "mailbox", "opening", "batch", "topic")
    ID_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    id: int
    mailbox: str
    opening: bytes
    batch: bytes
    topic: bool
    def __init__(self, id: _Optional[int] = ..., mailbox: _Optional[str] = ..., opening: _Optional[bytes] = ..., batch: _Optional[bytes] = ..., topic: _Optional[bool] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("topic", "done", "begun")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    topic: str
    done: int
    begun: int
    def __init__(self, topic: _Optional[str] = ..., done: _Optional[int] = ..., begun: _Optional[int] = ...) -> None: ...

class Settle(_message.Message):
    __slots__ = ("lease", "verb", "delay_s", "code")
    class Verb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACK: _ClassVar[Settle.Verb]
        NAK: _ClassVar[Settle.Verb]
        EXTEND: _ClassVar[Settle.Verb]
        REJECT: _ClassVar[Settle.Verb]
    ACK: Settle.Verb
    NAK: Settle.Verb
    EXTEND: Settle.Verb
    REJECT: Settle.Verb
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    EXCEPT_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    verb: Settle.Verb
    delay_s: int
    code: str
    def __init__(self, lease: _Optional[str] = ..., verb: _Optional[_Union[Settle.Verb, str]] = ..., delay_s: _Optional[int] = ..., code: _Optional[str] = ..., **kwargs) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("token", "proof")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    token: str
    proof: str
    def __init__(self, token: _Optional[str] = ..., proof: _Optional[str] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ("number", "sealed", "nonce", "settles")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    number: int
    sealed: bytes
    nonce: bytes
    settles: _containers.RepeatedCompositeFieldContainer[Settle]
    def __init__(self, number: _Optional[int] = ..., sealed: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., settles: _Optional[_Iterable[_Union[Settle, _Mapping]]] = ...) -> None: ...

class FromBroker(_message.Message):
    __slots__ = ("welcome", "results", "senders", "openings", "parcels", "lost", "saved", "news")
    class SendersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    PARCELS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    results: _containers.RepeatedCompositeFieldContainer[StreamResult]
    senders: _containers.ScalarMap[str, str]
    openings: _containers.RepeatedCompositeFieldContainer[StreamOpening]
    parcels: _containers.RepeatedCompositeFieldContainer[Parcel]
    lost: _containers.RepeatedScalarFieldContainer[str]
    saved: _containers.RepeatedCompositeFieldContainer[Saved]
    news: _containers.RepeatedCompositeFieldContainer[TopicNews]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., results: _Optional[_Iterable[_Union[StreamResult, _Mapping]]] = ..., senders: _Optional[_Mapping[str, str]] = ..., openings: _Optional[_Iterable[_Union[StreamOpening, _Mapping]]] = ..., parcels: _Optional[_Iterable[_Union[Parcel, _Mapping]]] = ..., lost: _Optional[_Iterable[str]] = ..., saved: _Optional[_Iterable[_Union[Saved, _Mapping]]] = ..., news: _Optional[_Iterable[_Union[TopicNews, _Mapping]]] = ...) -> None: ...

class TopicNews(_message.Message):
    __slots__ = ("topic", "begun", "parcels", "places", "openings", "senders", "missed", "code", "status")
    class SendersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    PARCELS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    begun: int
    parcels: _containers.RepeatedCompositeFieldContainer[Parcel]
    places: _containers.RepeatedScalarFieldContainer[int]
    openings: _containers.RepeatedCompositeFieldContainer[StreamOpening]
    senders: _containers.ScalarMap[str, str]
    missed: int
    code: str
    status: int
    def __init__(self, topic: _Optional[str] = ..., begun: _Optional[int] = ..., parcels: _Optional[_Iterable[_Union[Parcel, _Mapping]]] = ..., places: _Optional[_Iterable[int]] = ..., openings: _Optional[_Iterable[_Union[StreamOpening, _Mapping]]] = ..., senders: _Optional[_Mapping[str, str]] = ..., missed: _Optional[int] = ..., code: _Optional[str] = ..., status: _Optional[int] = ...) -> None: ...

class Saved(_message.Message):
    __slots__ = ("number", "digest", "signature", "code", "status")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: bytes
    signature: bytes
    code: str
    status: int
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., code: _Optional[str] = ..., status: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("ends_at_s", "nonce")
    ENDS_AT_S_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ends_at_s: int
    nonce: str
    def __init__(self, ends_at_s: _Optional[int] = ..., nonce: _Optional[str] = ...) -> None: ...

class StreamResult(_message.Message):
    __slots__ = ("id", "status", "code", "retry_after_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    id: int
    status: str
    code: str
    retry_after_s: int
    def __init__(self, id: _Optional[int] = ..., status: _Optional[str] = ..., code: _Optional[str] = ..., retry_after_s: _Optional[int] = ...) -> None: ...

class StreamOpening(_message.Message):
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

class Parcel(_message.Message):
    __slots__ = ("kind", "content", "lease", "attempt", "accepted_at_ms", "acceptance", "remaining", "messages", "sender_token")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SENDER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    kind: str
    content: bytes
    lease: str
    attempt: int
    accepted_at_ms: int
    acceptance: bytes
    remaining: _containers.RepeatedScalarFieldContainer[int]
    messages: int
    sender_token: str
    def __init__(self, kind: _Optional[str] = ..., content: _Optional[bytes] = ..., lease: _Optional[str] = ..., attempt: _Optional[int] = ..., accepted_at_ms: _Optional[int] = ..., acceptance: _Optional[bytes] = ..., remaining: _Optional[_Iterable[int]] = ..., messages: _Optional[int] = ..., sender_token: _Optional[str] = ...) -> None: ...
