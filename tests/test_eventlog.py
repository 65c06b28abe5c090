"""Event logs: both forms parse or are refused with a code, replay is exact, and labels are never believed."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError, Code, MalformedEvidence, VerificationFailed
from attestation.eventlog import (
    EV_EVENT_TAG,
    EV_NO_ACTION,
    LAUNCH_TAG,
    MAX_EVENTS,
    MAX_LOG,
    Event,
    EventLog,
    Launch,
    LogBuilder,
    dstack_digest,
    launch_event,
)
from attestation.quote import TdReport
from tests import vectors_real
from tests.vectors_real import RealQuote

LOGS = [quote for quote in vectors_real.quotes() if quote.raw.get("event_log")]

events = st.builds(
    Event,
    st.integers(0, 3),
    st.integers(0, 0xFFFFFFFF).filter(lambda kind: kind != EV_NO_ACTION),
    st.binary(min_size=48, max_size=48),
    st.binary(max_size=40),
    st.just(""),
)
logs = st.lists(events, min_size=1, max_size=8).map(lambda entries: EventLog(tuple(entries)))


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


def outcome(parse: Callable[[bytes], EventLog], raw: bytes) -> str:
    """As `code_of`, but nothing else than MalformedEvidence may come out of a parser."""
    try:
        parse(raw)
    except MalformedEvidence as error:
        return error.code
    return "ok"


def td_with(rtmrs: tuple[bytes, ...]) -> TdReport:
    first, second, third, fourth = rtmrs
    rest = (b"",) * 10
    return TdReport(*rest, (first, second, third, fourth), bytes(64))


@pytest.mark.parametrize("vector", LOGS, ids=lambda vector: vector.id)
def test_every_real_log_replays_to_the_registers_that_its_index_names(vector: RealQuote) -> None:
    log, td = EventLog.parse(vector.event_log), vector.quote.td
    expected = vector.raw["event_log"]
    assert len(log.entries) == expected["events"]
    extended = {event.register for event in log.entries}
    replayed = [index for index in range(4) if index in extended and log.replay()[index] == td.rtmrs[index]]
    assert replayed == expected["replays_rtmr"]


@pytest.mark.parametrize("vector", LOGS, ids=lambda vector: vector.id)
def test_a_real_log_passes_only_if_all_registers_agree(vector: RealQuote) -> None:
    log, td = EventLog.parse(vector.event_log), vector.quote.td
    whole = all(a == b for a, b in zip(log.replay(), td.rtmrs, strict=True))
    assert code_of(lambda: log.check(td)) == ("ok" if whole else Code.EVENTLOG_REPLAY)


def test_some_real_logs_have_no_run_time_digests_and_still_replay() -> None:
    stripped = [vector for vector in LOGS if vector.raw["event_log"].get("runtime_digests_present") is False]
    assert not LOGS or len(stripped) == 4
    for vector in stripped:
        EventLog.parse(vector.event_log).check(vector.quote.td)


@given(log=logs, padding=st.sampled_from([b"", b"\0", b"\xff", bytes(3), b"\xff" * 64, bytes(4096), b"\xff" * 4096]))
def test_what_is_encoded_parses_to_the_same_entries_with_any_padding(log: EventLog, padding: bytes) -> None:
    assert EventLog.parse(log.to_ccel() + padding) == log


@given(log=logs, cut=st.integers(1, 10_000))
def test_a_log_that_ends_inside_a_record_is_refused(log: EventLog, cut: int) -> None:
    raw = log.to_ccel()
    whole = {len(EventLog(log.entries[:count]).to_ccel()) for count in range(len(log.entries) + 1)}
    size = cut % len(raw)
    outcome = code_of(lambda: EventLog.parse_ccel(raw[:size]))
    assert outcome == ("ok" if size in whole else Code.EVENTLOG_MALFORMED)


@given(raw=st.one_of(st.binary(max_size=300), logs.map(EventLog.to_ccel).flatmap(lambda raw: _edited(raw))))
def test_any_bytes_are_a_log_or_malformed(raw: bytes) -> None:
    for parse in (EventLog.parse, EventLog.parse_ccel, EventLog.parse_dstack):
        assert outcome(parse, raw).startswith(("ok", "eventlog."))


def _edited(raw: bytes) -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(0, len(raw) - 1), st.binary(max_size=6)).map(
        lambda edit: raw[: edit[0]] + edit[1] + raw[edit[0] + len(edit[1]) :]
    )


HEADER = EventLog(()).to_ccel()
RECORD = EventLog((Event(0, 1, bytes(48), b"x"),)).to_ccel()[len(HEADER) :]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", Code.EVENTLOG_MALFORMED),
        (b"\xff" * 200, Code.EVENTLOG_MALFORMED),
        (HEADER[:64], Code.EVENTLOG_MALFORMED),
        (HEADER.replace(b"Spec ID Event03", b"Spec ID Event02"), Code.EVENTLOG_MALFORMED),
        (HEADER.replace(b"\x0c\x00\x30\x00", b"\x0b\x00\x20\x00"), Code.EVENTLOG_MALFORMED),
        (HEADER + b"\xff\xff\xff\xff\x00", Code.EVENTLOG_MALFORMED),
        (HEADER + bytes(8) + RECORD, Code.EVENTLOG_MALFORMED),
        (HEADER + b"\x05" + RECORD[1:], Code.EVENTLOG_MALFORMED),
        (HEADER + b"\x00" + RECORD[1:], Code.EVENTLOG_MALFORMED),
        (HEADER + RECORD[:8] + b"\x02" + RECORD[9:], Code.EVENTLOG_MALFORMED),
        (HEADER + RECORD[:12] + b"\x0b" + RECORD[13:], Code.EVENTLOG_MALFORMED),
        (HEADER + RECORD[:62] + b"\xff\xff\xff\x7f" + RECORD[66:], Code.EVENTLOG_MALFORMED),
        (HEADER + RECORD * (MAX_EVENTS + 1), Code.EVENTLOG_TOO_LARGE),
        (bytes(MAX_LOG + 1), Code.EVENTLOG_TOO_LARGE),
    ],
)
def test_a_deviation_from_the_form_has_a_code(raw: bytes, code: Code) -> None:
    assert code_of(lambda: EventLog.parse_ccel(raw)) == code


def test_an_informative_record_of_the_measured_firmware_is_kept_and_not_replayed() -> None:
    log = EventLog.parse(EventLog((Event(-1, EV_NO_ACTION, bytes(48), b"note"),)).to_ccel())
    assert log.entries[0].register == -1
    assert log.replay() == (bytes(48),) * 4


def entry(**changes: object) -> dict[str, object]:
    plain = {"imr": 0, "event_type": 4, "digest": "11" * 48, "event": "", "event_payload": "00000000"}
    return plain | changes


def runtime(name: str, payload: bytes, *, digest: bytes = b"", **more: object) -> dict[str, object]:
    members = {
        "imr": 3,
        "event_type": 0x08000001,
        "digest": digest.hex(),
        "event": name,
        "event_payload": payload.hex(),
    }
    return members | more


@pytest.mark.parametrize(
    "item",
    [
        entry(imr=4),
        entry(imr=-1),
        entry(imr=True),
        entry(imr="0"),
        entry(imr=1.0),
        entry(event_type=1 << 32),
        entry(digest="11" * 47),
        entry(digest="11 " * 48),
        entry(digest="zz" * 48),
        entry(digest=None),
        entry(digest=""),
        entry(event=7),
        entry(event_payload="1"),
        runtime("a", b"", version=3),
        runtime("a", b"", version=True),
        runtime("\ud800", b""),
        [],
        None,
    ],
    ids=repr,
)
def test_an_entry_of_another_form_is_malformed(item: object) -> None:
    assert code_of(lambda: EventLog.parse_dstack(json.dumps([item]))) == Code.EVENTLOG_MALFORMED


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[", "[1]", "[" * 60_000, '[{"imr":0,"imr":1}]', "[" + "1" * 5000 + "]", b"[\xff]", "[NaN]"],
    ids=lambda text: repr(text[:20]),
)
def test_text_that_is_no_list_of_entries_is_malformed(text: str | bytes) -> None:
    assert code_of(lambda: EventLog.parse_dstack(text)) == Code.EVENTLOG_MALFORMED


def test_too_many_or_too_large_entries_are_refused() -> None:
    assert code_of(lambda: EventLog.parse_dstack(json.dumps([0] * (MAX_EVENTS + 1)))) == Code.EVENTLOG_TOO_LARGE
    assert code_of(lambda: EventLog.parse_dstack(" " * (MAX_LOG + 1))) == Code.EVENTLOG_TOO_LARGE


HOSTILE = {
    "objects": "[" + "{}," * 349_000 + "{}]",
    "lists": "[" + "[]," * 349_000 + "[]]",
    "numbers": "[" + "0," * 520_000 + "0]",
    "texts": "[" + '"ab",' * 200_000 + "0]",
    "nests": "[" + "[[[[]]]]," * 110_000 + "0]",
    "long numbers": "[" + ("7" * 4300 + ",") * 240 + "0]",
    "members": "[{" + ",".join(f'"{number:x}":0' for number in range(100_000)) + "}]",
    "escapes": '["' + "\\ud83d\\ude00" * 87_000 + '"]',
    "as many as may be": "[" + "{}," * 32_000 + "{}]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_refused_in_little_memory(text: str) -> None:
    raw = text.encode()
    assert len(raw) <= MAX_LOG
    assert code_of(lambda: EventLog.parse(raw)) in (Code.EVENTLOG_TOO_LARGE, Code.EVENTLOG_MALFORMED)
    tracemalloc.start()
    code_of(lambda: EventLog.parse(raw))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_log_of_as_many_events_as_may_be_is_read() -> None:
    text = json.dumps([runtime("a", b"", version=2, note="x")] * MAX_EVENTS, separators=(",", ":"))
    assert len(EventLog.parse(text.encode()).entries) == MAX_EVENTS


def test_a_name_that_could_end_at_another_colon_is_refused_where_name_and_payload_are_hashed_together() -> None:
    spliced = runtime("foo:compose-hash", b"evil")
    assert code_of(lambda: EventLog.parse_dstack(json.dumps([spliced]))) == Code.EVENTLOG_MALFORMED
    told = EventLog.parse_dstack(json.dumps([runtime("foo", b"compose-hash:evil"), spliced | {"version": 2}]))
    assert told.entries[0].digest != told.entries[1].digest
    with pytest.raises(ValueError):
        dstack_digest("foo:compose-hash", b"evil")


def test_the_entries_of_a_log_cannot_change_after_it_was_checked() -> None:
    with pytest.raises(TypeError):
        EventLog([])  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_time_digest_is_computed_from_name_and_payload(version: int) -> None:
    digest = dstack_digest("app-id", b"\x01\x02", version=version)
    with_digest = EventLog.parse(json.dumps([runtime("app-id", b"\x01\x02", digest=digest, version=version)]).encode())
    without = EventLog.parse(json.dumps([runtime("app-id", b"\x01\x02", version=version)]).encode())
    assert with_digest == without
    assert with_digest.digests(3) == (digest,)


def test_the_second_rule_for_run_time_digests_is_over_canonical_json() -> None:
    text = b'{"name":"app-id","payload":"0102","type":134217729}'
    assert dstack_digest("app-id", b"\x01\x02", version=2) == hashlib.sha384(text).digest()


def test_a_run_time_event_with_another_digest_than_its_text_gives_is_refused() -> None:
    text = json.dumps([runtime("app-id", b"\x01", digest=dstack_digest("app-id", b"\x02"))])
    assert code_of(lambda: EventLog.parse_dstack(text)) == Code.EVENTLOG_DIGEST


@given(log=logs)
def test_replay_is_the_hash_chain_of_each_register(log: EventLog) -> None:
    values = [bytes(48)] * 4
    for event in log.entries:
        values[event.register] = hashlib.sha384(values[event.register] + event.digest).digest()
    assert log.replay() == tuple(values)
    log.check(td_with(tuple(values)))


@settings(max_examples=200)
@given(log=logs, data=st.data())
def test_any_change_of_what_is_measured_fails_the_replay(log: EventLog, data: st.DataObject) -> None:
    td = td_with(log.replay())
    entries = list(log.entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    match data.draw(st.sampled_from(["digest", "register", "drop", "add", "silence"])):
        case "digest":
            bit = data.draw(st.integers(0, 383))
            digest = (int.from_bytes(entries[index].digest, "big") ^ 1 << bit).to_bytes(48, "big")
            entries[index] = entries[index]._replace(digest=digest)
        case "register":
            entries[index] = entries[index]._replace(register=(entries[index].register + 1) % 4)
        case "drop":
            del entries[index]
        case "add":
            entries.insert(index, data.draw(events))
        case "silence":
            entries[index] = entries[index]._replace(event_type=EV_NO_ACTION)
    assert code_of(lambda: EventLog(tuple(entries)).check(td)) == Code.EVENTLOG_REPLAY


@given(log=logs, data=st.data())
def test_labels_are_not_measured(log: EventLog, data: st.DataObject) -> None:
    changed = [event._replace(event_type=1, data=data.draw(st.binary(max_size=9))) for event in log.entries]
    EventLog(tuple(changed)).check(td_with(log.replay()))


def test_swapped_events_of_one_register_fail_the_replay() -> None:
    first, second = Event(3, 6, b"1" * 48, b""), Event(3, 6, b"2" * 48, b"")
    td = td_with(EventLog((first, second)).replay())
    assert code_of(lambda: EventLog((second, first)).check(td)) == Code.EVENTLOG_REPLAY


def test_a_mismatch_names_every_register_that_differs() -> None:
    td = td_with((bytes(48), b"1" * 48, bytes(48), b"3" * 48))
    with pytest.raises(VerificationFailed) as caught:
        EventLog(()).check(td)
    assert "RTMR1" in caught.value.detail
    assert "RTMR3" in caught.value.detail
    assert "RTMR0" not in caught.value.detail


CODE = hashlib.sha384(b"agent.py").digest()


def launched(*names: str) -> LogBuilder:
    builder = LogBuilder()
    for name in names:
        digest, data = launch_event(CODE, name)
        builder.append(3, digest, event_type=EV_EVENT_TAG, data=data)
    return builder


def test_the_guest_writes_launches_that_the_reader_finds_in_order() -> None:
    builder = launched("first", "zweite 🚀")
    log = EventLog.parse(builder.encode())
    assert log == builder.log
    assert log.launches() == (Launch(CODE.hex(), "first"), Launch(CODE.hex(), "zweite 🚀"))


def test_a_launch_whose_text_is_not_what_was_measured_is_refused() -> None:
    digest, data = launch_event(CODE, "first")
    lying = EventLog((Event(3, EV_EVENT_TAG, digest, data + b"!"),))
    assert code_of(lying.launches) == Code.EVENTLOG_DIGEST


@pytest.mark.parametrize("name", [b"", b"a" * 256, b"\xff", b"a\nb", b"\x1b[31m"])
def test_a_launch_with_a_name_that_no_builder_writes_is_refused(name: bytes) -> None:
    data = LAUNCH_TAG + CODE + name
    log = EventLog((Event(3, EV_EVENT_TAG, hashlib.sha384(data).digest(), data),))
    assert code_of(log.launches) == Code.EVENTLOG_LAUNCH


def test_the_tag_counts_in_rtmr3_as_a_tagged_event_alone() -> None:
    digest, data = launch_event(CODE, "first")
    elsewhere = EventLog((Event(2, EV_EVENT_TAG, digest, data), Event(3, 1, digest, data)))
    assert elsewhere.launches() == ()
    assert len(elsewhere.digests(3)) == 1


@pytest.mark.parametrize(("digest", "name"), [(CODE[:-1], "a"), (CODE, ""), (CODE, "a" * 256), (CODE, "a\0b")])
def test_the_builder_refuses_what_no_reader_would_take(digest: bytes, name: str) -> None:
    with pytest.raises(ValueError):
        launch_event(digest, name)


def test_the_builder_goes_on_from_a_boot_log_and_is_bounded() -> None:
    boot = EventLog((Event(0, 1, b"b" * 48, b"boot"),)).to_ccel() + b"\xff" * 100
    builder = LogBuilder(boot)
    builder.append(3, b"d" * 48, event_type=6, data=b"more")
    assert [event.data for event in EventLog.parse(builder.encode()).entries] == [b"boot", b"more"]
    with pytest.raises(ValueError):
        builder.append(3, b"d" * 48, event_type=6, data=bytes(MAX_LOG))
    for wrong in ({"register": 4}, {"digest": b""}, {"event_type": EV_NO_ACTION}):
        arguments = {"register": 3, "digest": b"d" * 48, "event_type": 6, "data": b""} | wrong
        with pytest.raises(ValueError):
            builder.append(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("raw", [None, "[]", bytearray(b"[]"), memoryview(b"[]"), []])
def test_a_log_is_read_from_bytes_alone(raw: Any) -> None:
    for read in (EventLog.parse, EventLog.parse_ccel):
        with pytest.raises(TypeError, match="bytes"):
            read(raw)
