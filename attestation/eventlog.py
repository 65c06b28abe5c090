"""Event logs as bytes ↔ entries, and their replay to the run-time registers.

Decides which logs are well formed and whether one explains a quote's RTMRs. A log is the sender's story: only its
digests are measured. So nothing here or later may act on an event's type or data, the one exception being an event
whose digest has been recomputed from its data by the rule of that event (`EventLog.launches`, dstack's runtime events).

Two forms are read: the TCG2 "crypto agile" log that firmware leaves for the ACPI table CCEL, and the JSON list of
dstack's guest agent. What the registers should be is left to policies.

Sources: TCG PC Client Platform Firmware Profile (event format); UEFI 2.11 §38 (register mapping: index 1 is RTMR0);
dstack `cc-eventlog` (JSON form and the digest rules of runtime events).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, final

from attestation.encoding import TooManyValues, compact_json, strict_json
from attestation.errors import Code, MalformedEvidence, VerificationFailed
from attestation.quote import TdReport

MAX_LOG: Final = 1 << 20
"""Bytes, of either form."""
MAX_EVENTS: Final = 4096
MAX_VALUES: Final = 16 * MAX_EVENTS
"""JSON values in dstack's form: real events have five or six members."""
MAX_NAME: Final = 255
"""UTF-8 bytes of a launched program's name."""

EV_NO_ACTION: Final = 3
EV_EVENT_TAG: Final = 6
DSTACK_RUNTIME_EVENT: Final = 0x08000001
LAUNCH_REGISTER: Final = 3
LAUNCH_TAG: Final = b"cloister/launch/v1\0"

_DIGEST: Final = 48
_ZERO: Final = bytes(_DIGEST)
_SHA384: Final = 0x000C
_PADDING: Final = 0xFFFFFFFF
_FIRST: Final = struct.Struct("<II20sI")  # register index, type, SHA-1 slot, size of the event
_RECORD: Final = struct.Struct("<IIIH48sI")  # register index, type, number of digests, algorithm, digest, size
_WORDS: Final = struct.Struct("<II")
# "Spec ID Event03", platform class 0, version 2.0 errata 0, uintn 2, one algorithm (SHA-384, 48 bytes), no vendor data
_SPEC_ID: Final = struct.Struct("<16sIBBBBIHHB")
_SPEC_ID_EVENT: Final = _SPEC_ID.pack(b"Spec ID Event03\0", 0, 0, 2, 0, 2, 1, _SHA384, _DIGEST, 0)


class Event(NamedTuple):
    """One entry. Only `register`, `digest` and the order are measured; `event_type`, `data` and `name` are labels."""

    register: int
    """0 to 3 = RTMR0 to RTMR3; −1 = MRTD, in EV_NO_ACTION entries alone."""
    event_type: int
    digest: bytes
    data: bytes
    name: str = ""
    """dstack's runtime events have one."""


class Launch(NamedTuple):
    """A program that was measured into RTMR3 before it ran."""

    digest: str
    """SHA-384 of the code, 96 hex digits."""
    name: str


class Registers(NamedTuple):
    """Replayed values, 48 bytes each."""

    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes


@final
@dataclass(frozen=True, slots=True)
class EventLog:
    """A log as its sender tells it. Believe its digests after `check`, its texts never.

    What follows from the entries is worked out when it is first asked for: agents of one image send one log.
    """

    entries: tuple[Event, ...]
    _replayed: Registers | None = field(default=None, init=False, repr=False, compare=False)
    _texts: tuple[tuple[str, ...], ...] | None = field(default=None, init=False, repr=False, compare=False)
    _launches: tuple[Launch, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.entries) is not tuple:
            raise TypeError("entries are a tuple: what was checked must not change afterwards")

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Either form: JSON when the first visible byte is `[`.

        Raises MalformedEvidence: eventlog.*; TypeError for other than bytes, which could change while they are judged.
        """
        _expect_bytes(raw)
        return cls.parse_dstack(raw) if raw[:64].lstrip()[:1] == b"[" else cls.parse_ccel(raw)

    @classmethod
    def parse_ccel(cls, raw: bytes) -> Self:
        """The TCG2 form. Little-endian, in bytes:

            first record   4 index, 4 type = 3, 20 zeros, 4 size, then the Spec ID event (33 bytes; SHA-384 alone)
            each further   4 index, 4 type, 4 count = 1, 2 algorithm = 0x000C, 48 digest, 4 size, size × data

        The log ends with the data, or with nothing but 0xFF or nothing but zeros.
        Raises MalformedEvidence: eventlog.too_large, eventlog.malformed; TypeError for other than bytes.
        """
        _expect_bytes(raw)
        _bounded(len(raw))
        at = _skip_first_record(raw)
        entries: list[Event] = []
        while not _only_padding(raw, at):
            if len(entries) == MAX_EVENTS:
                raise MalformedEvidence(Code.EVENTLOG_TOO_LARGE, f"more than {MAX_EVENTS} events")
            event, at = _record(raw, at)
            entries.append(event)
        return cls(tuple(entries))

    @classmethod
    def parse_dstack(cls, text: str | bytes) -> Self:
        """dstack's form: a JSON list of {imr 0–3, event_type, digest hex, event, event_payload hex, version?}.

        Digests of runtime events are recomputed from name and payload, whether the agent stripped them or not.
        Raises MalformedEvidence: eventlog.too_large, eventlog.malformed, eventlog.digest_mismatch.
        """
        _bounded(len(text))
        try:
            listed = strict_json(text, max_values=MAX_VALUES)
        except TooManyValues as error:
            raise MalformedEvidence(Code.EVENTLOG_TOO_LARGE, str(error)) from error
        except ValueError as error:
            raise MalformedEvidence(Code.EVENTLOG_MALFORMED, f"not JSON as it should be: {error}") from error
        if not isinstance(listed, list):
            raise MalformedEvidence(Code.EVENTLOG_MALFORMED, "not a JSON list")
        if len(listed) > MAX_EVENTS:
            raise MalformedEvidence(Code.EVENTLOG_TOO_LARGE, f"{len(listed)} events, at most {MAX_EVENTS}")
        return cls(tuple(_dstack_event(number, item) for number, item in enumerate(listed)))

    def replay(self) -> Registers:
        """What the registers hold after these entries, in this order, were extended into zeroed ones."""
        if self._replayed is None:
            values = [_ZERO] * 4
            for event in self.entries:
                if event.event_type != EV_NO_ACTION:
                    values[event.register] = hashlib.sha384(values[event.register] + event.digest).digest()
            object.__setattr__(self, "_replayed", Registers(*values))
        assert self._replayed is not None
        return self._replayed

    def check(self, td: TdReport) -> None:
        """Raises VerificationFailed eventlog.replay_mismatch, naming every register that differs."""
        if self.replay() == td.rtmrs:
            return
        wrong = [
            f"RTMR{index}: {len(self.digests(index))} events give {replayed.hex()[:32]}…, "
            f"the quote has {quoted.hex()[:32]}…"
            for index, (replayed, quoted) in enumerate(zip(self.replay(), td.rtmrs, strict=True))
            if replayed != quoted
        ]
        raise VerificationFailed(Code.EVENTLOG_REPLAY, "; ".join(wrong))

    def digests(self, register: int) -> tuple[bytes, ...]:
        """The digests that were extended into one register, in order."""
        return tuple(e.digest for e in self.entries if e.register == register and e.event_type != EV_NO_ACTION)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """`digests` of every register, in lower-case hex."""
        if self._texts is None:
            rows = tuple(tuple(digest.hex() for digest in self.digests(register)) for register in range(4))
            object.__setattr__(self, "_texts", rows)
        assert self._texts is not None
        return self._texts

    def launches(self) -> tuple[Launch, ...]:
        """The programs that say they were launched, in order, each digest recomputed.

        RTMR3 may hold further events: whoever decides on launches compares their number with `digests(3)` too, because
        a log may call a launch by another type and leave out its data.
        Raises VerificationFailed: eventlog.digest_mismatch, eventlog.launch_invalid.
        """
        if self._launches is None:
            found = tuple(
                _launch(event)
                for event in self.entries
                if event.register == LAUNCH_REGISTER
                and event.event_type == EV_EVENT_TAG
                and event.data.startswith(LAUNCH_TAG)
            )
            object.__setattr__(self, "_launches", found)
        assert self._launches is not None
        return self._launches

    def to_ccel(self) -> bytes:
        """The TCG2 form of these entries, without padding. Names have no place in it."""
        first = _FIRST.pack(1, EV_NO_ACTION, bytes(20), len(_SPEC_ID_EVENT)) + _SPEC_ID_EVENT
        return first + b"".join(
            _RECORD.pack(e.register + 1, e.event_type, 1, _SHA384, e.digest, len(e.data)) + e.data for e in self.entries
        )


@final
class LogBuilder:
    """The guest's side: the kernel extends an RTMR and writes nothing down, so whoever extends keeps the log."""

    __slots__ = ("_entries", "_size")

    def __init__(self, boot_log: bytes = b"") -> None:
        """`boot_log` is what firmware left (CCEL data, padded or not). Raises MalformedEvidence if it is not a log."""
        self._entries: list[Event] = list(EventLog.parse_ccel(boot_log).entries) if boot_log else []
        self._size = len(EventLog(tuple(self._entries)).to_ccel())

    def append(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        """Write down one extension. Raises ValueError for what no reader would take."""
        if not 0 <= register <= 3 or len(digest) != _DIGEST or not 0 <= event_type < 1 << 32:
            raise ValueError("need a register 0 to 3, a 48-byte digest and a 32-bit event type")
        if event_type == EV_NO_ACTION:
            raise ValueError("EV_NO_ACTION is what is not extended")
        size = self._size + _RECORD.size + len(data)
        if size > MAX_LOG or len(self._entries) >= MAX_EVENTS:
            raise ValueError("the event log is full")
        self._entries.append(Event(register, event_type, digest, data))
        self._size = size

    @property
    def log(self) -> EventLog:
        return EventLog(tuple(self._entries))

    def encode(self) -> bytes:
        """The log so far, as CCEL data."""
        return self.log.to_ccel()


def launch_event(code_digest: bytes, name: str) -> tuple[bytes, bytes]:
    """(digest to extend into RTMR3, data to log) for a program; type EV_EVENT_TAG.

    data = "cloister/launch/v1" ‖ 00 ‖ SHA-384 of the code (48) ‖ name in UTF-8 (1 to 255 bytes);
    digest = SHA-384(data).
    Raises ValueError for a digest of another length or a name that isn't printable text.
    """
    encoded = name.encode()
    if len(code_digest) != _DIGEST or not 0 < len(encoded) <= MAX_NAME or not name.isprintable():
        raise ValueError("need a SHA-384 digest and a printable name of 1 to 255 UTF-8 bytes")
    data = LAUNCH_TAG + code_digest + encoded
    return hashlib.sha384(data).digest(), data


def dstack_digest(name: str, payload: bytes, *, version: int = 1) -> bytes:
    """SHA-384 by dstack's rule for runtime events: 1 = type (u32) ‖ ":" ‖ name ‖ ":" ‖ payload, 2 = RFC 8785 text.

    ValueError for a name that is not Unicode, and under rule 1 for one with ":" in it: such a digest is also that of
    another event, whose name ends earlier and whose payload begins with the rest.
    """
    if version == 1:
        if ":" in name:
            raise ValueError("by rule 1, ':' in a name cannot be told from the end of the name")
        head = DSTACK_RUNTIME_EVENT.to_bytes(4, "little")
        return hashlib.sha384(b":".join((head, name.encode(), payload))).digest()
    members = {"name": name, "payload": payload.hex(), "type": DSTACK_RUNTIME_EVENT}
    return hashlib.sha384(compact_json(members)).digest()  # in the order RFC 8785 wants


def _expect_bytes(raw: object) -> None:
    if type(raw) is not bytes:
        raise TypeError(f"an event log is bytes, not {type(raw).__name__}")


def _bounded(size: int) -> None:
    if size > MAX_LOG:
        raise MalformedEvidence(Code.EVENTLOG_TOO_LARGE, f"{size} bytes, at most {MAX_LOG}")


def _skip_first_record(raw: bytes) -> int:
    """Offset of the second record; the first must be the Spec ID event of a log with SHA-384 digests alone."""
    end = _FIRST.size + _SPEC_ID.size
    if len(raw) < end:
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, f"{len(raw)} bytes, the first record alone has {end}")
    _, event_type, slot, size = _FIRST.unpack_from(raw)
    signature, _, _, _, _, _, algorithms, algorithm, length, vendor = _SPEC_ID.unpack_from(raw, _FIRST.size)
    if event_type != EV_NO_ACTION or any(slot) or signature != b"Spec ID Event03\0":
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, "the first record is no Spec ID event of a crypto-agile log")
    if (algorithms, algorithm, length) != (1, _SHA384, _DIGEST) or size != _SPEC_ID.size + vendor:
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, "the Spec ID event declares other digests than SHA-384 alone")
    return _advance(raw, _FIRST.size, size, "the first record")


def _only_padding(raw: bytes, at: int) -> bool:
    """Whether nothing but one kind of padding follows. The scan runs where no record can start, so once per log."""
    left = len(raw) - at
    if left >= _WORDS.size:
        index, event_type = _WORDS.unpack_from(raw, at)
        if index != _PADDING and (index or event_type):
            return False
    return raw.count(0xFF, at) == left or raw.count(0, at) == left


def _record(raw: bytes, at: int) -> tuple[Event, int]:
    """The record at an offset, and the offset after it."""
    start = _advance(raw, at, _RECORD.size, f"the record at {at}")
    index, event_type, digests, algorithm, digest, size = _RECORD.unpack_from(raw, at)
    if index > 4 or (index == 0 and event_type != EV_NO_ACTION):
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, f"register index {index} at {at}; 1 to 4 can be extended")
    if digests != 1 or algorithm != _SHA384:
        detail = f"{digests} digests, the first of algorithm {algorithm:#x}, at {at}; need one SHA-384 digest"
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, detail)
    end = _advance(raw, start, size, f"the event at {start}")
    return Event(index - 1, event_type, digest, raw[start:end]), end


def _advance(raw: bytes, at: int, size: int, what: str) -> int:
    end = at + size
    if end > len(raw):
        raise MalformedEvidence(Code.EVENTLOG_MALFORMED, f"{what} would end at {end}, the log ends at {len(raw)}")
    return end


def _dstack_event(number: int, item: object) -> Event:
    if not isinstance(item, dict):
        raise _bad(number, "is not an object")
    register, event_type = _integer(number, item, "imr", 3), _integer(number, item, "event_type", 0xFFFFFFFF)
    digest, payload = _hex(number, item, "digest"), _hex(number, item, "event_payload")
    name = item.get("event")
    if not isinstance(name, str):
        raise _bad(number, "event is not text")
    if event_type == DSTACK_RUNTIME_EVENT:
        digest = _runtime_digest(number, item, name, payload, digest)
    if len(digest) != _DIGEST:
        raise _bad(number, f"digest has {len(digest)} bytes, not {_DIGEST}")
    return Event(register, event_type, digest, payload, name)


def _runtime_digest(number: int, item: dict[str, Any], name: str, payload: bytes, given: bytes) -> bytes:
    """Agents since 0.5.6 strip this digest; one that is there must be what name and payload give."""
    version = item.get("version", 1)
    if type(version) is not int or version not in (1, 2):
        raise _bad(number, "version is not 1 or 2")
    try:
        computed = dstack_digest(name, payload, version=version)
    except ValueError as error:
        raise _bad(number, f"event is not a name: {error}") from error
    if given and given != computed:
        raise MalformedEvidence(Code.EVENTLOG_DIGEST, f"event {number}: its name and payload hash to another digest")
    return computed


def _integer(number: int, item: dict[str, Any], member: str, most: int) -> int:
    value = item.get(member)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _bad(number, f"{member} is not an integer from 0 to {most}")
    return value


def _hex(number: int, item: dict[str, Any], member: str) -> bytes:
    text = item.get(member)
    if not isinstance(text, str):
        raise _bad(number, f"{member} is not text")
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise _bad(number, f"{member} is not hex") from error
    if 2 * len(value) != len(text):  # fromhex skips blanks
        raise _bad(number, f"{member} is not hex")
    return value


def _bad(number: int, what: str) -> MalformedEvidence:
    return MalformedEvidence(Code.EVENTLOG_MALFORMED, f"event {number}: {what}")


def _launch(event: Event) -> Launch:
    if hashlib.sha384(event.data).digest() != event.digest:
        raise VerificationFailed(Code.EVENTLOG_DIGEST, "a launch event's data does not hash to the measured digest")
    body = event.data[len(LAUNCH_TAG) :]
    encoded = body[_DIGEST:]
    try:
        name = encoded.decode()
    except UnicodeDecodeError as error:
        raise VerificationFailed(Code.EVENTLOG_LAUNCH, "the name is not UTF-8") from error
    if not 0 < len(encoded) <= MAX_NAME or not name.isprintable():
        raise VerificationFailed(Code.EVENTLOG_LAUNCH, "the name is not 1 to 255 bytes of printable text")
    return Launch(body[:_DIGEST].hex(), name)
