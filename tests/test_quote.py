"""Quotes parse strictly: every byte string is a Quote or MalformedEvidence with the code that says why."""

from __future__ import annotations

import copy
import pickle
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedEvidence
from attestation.quote import BODY_SIZES, MAX_QUOTE, EnclaveReport, Quote, TdReport, Tee

VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TDX, SGX = 0x81, 0


def certification(*, auth: bytes = bytes(32), kind: int = 5, data: bytes = b"PEM", outer: int | None = 6) -> bytes:
    """Everything after the attestation key; `outer` None is the bare form of version 3."""
    inner = bytes(384) + b"\x51" * 64 + struct.pack("<H", len(auth)) + auth + struct.pack("<HI", kind, len(data)) + data
    return inner if outer is None else struct.pack("<HI", outer, len(inner)) + inner


def quote_bytes(
    *,
    version: int = 4,
    key_type: int = 2,
    tee: int = TDX,
    qe_svn: int = 0,
    body_type: int = 2,
    body: bytes | None = None,
    rest: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A well-formed quote whose signatures mean nothing; each argument bends one thing."""
    header = struct.pack("<HHIHH16s20s", version, key_type, tee, qe_svn, 0, VENDOR, bytes(range(20)))
    body = bytes(i % 251 for i in range(BODY_SIZES.get(body_type, 10))) if body is None else body
    descriptor = struct.pack("<HI", body_type, len(body)) if version == 5 else b""
    rest = certification(outer=None if version == 3 else 6) if rest is None else rest
    signature_data = b"\x11" * 64 + b"\x22" * 64 + rest
    return header + descriptor + body + struct.pack("<I", len(signature_data)) + signature_data + tail


GOOD = {
    "sgx v3": quote_bytes(version=3, tee=SGX, body_type=1),
    "tdx v4": quote_bytes(),
    "sgx v5": quote_bytes(version=5, tee=SGX, body_type=1),
    "tdx v5 1.0": quote_bytes(version=5),
    "tdx v5 1.5": quote_bytes(version=5, body_type=3),
    "tdx v5 1.5Ex": quote_bytes(version=5, body_type=4),
}


def code_of(raw: bytes) -> str:
    with pytest.raises(MalformedEvidence) as caught:
        Quote.parse(raw)
    return caught.value.code


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_the_parts_of_a_quote_are_its_bytes_in_order(raw: bytes) -> None:
    quote = Quote.parse(raw)
    outer = b"" if quote.version == 3 else quote.certified[64:70]
    parts = (
        quote.signed,
        struct.pack("<I", len(quote.signature) + len(quote.certified)),
        quote.signature,
        quote.attestation_key,
        outer,
        quote.qe_report_raw,
        quote.qe_report_signature,
        struct.pack("<H", len(quote.auth_data)),
        quote.auth_data,
        struct.pack("<HI", quote.certification_type, len(quote.certification_data)),
        quote.certification_data,
    )
    assert b"".join(parts) == raw
    assert quote.size == len(raw)


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_every_field_of_the_body_is_cut_at_its_offset(raw: bytes) -> None:
    quote = Quote.parse(raw)
    body = quote.signed[54 if quote.version == 5 else 48 :]
    if isinstance(quote.body, EnclaveReport):
        assert quote.tee is Tee.SGX
        assert (quote.body.mr_enclave, quote.body.mr_signer) == (body[64:96], body[128:160])
        assert quote.body.attributes == body[48:64]
        assert quote.body.isv_svn == int.from_bytes(body[258:260], "little")
        assert quote.report_data == body[320:384]
        return
    assert quote.tee is Tee.TDX
    td = quote.td
    assert (td.tee_tcb_svn, td.mr_seam, td.td_attributes) == (body[:16], body[16:64], body[120:128])
    assert (td.xfam, td.mr_td, td.mr_config_id) == (body[128:136], body[136:184], body[184:232])
    assert (td.mr_owner, td.mr_owner_config) == (body[232:280], body[280:328])
    assert td.rtmrs == tuple(body[at : at + 48] for at in (328, 376, 424, 472))
    assert quote.report_data == body[520:584]
    if len(body) > 584:
        assert (td.tee_tcb_svn_2, td.mr_service_td) == (body[584:600], body[600:648])
    if len(body) > 648:
        assert td.extended is not None
        assert (td.extended.vm_id, td.extended.td_id) == (body[648], body[649:681])
        assert (td.extended.initial_fmspc, td.extended.service_td_hash) == (body[817:829], body[829:877])
        assert td.extended.service_td_attributes == body[877:885]


BENT = {
    "nothing at all": (b"", "quote.empty"),
    "more than a mebibyte": (bytes(MAX_QUOTE + 1), "quote.too_large"),
    "half a header": (GOOD["tdx v4"][:47], "quote.truncated"),
    "a header alone": (GOOD["tdx v4"][:48], "quote.truncated"),
    "a v5 header alone": (GOOD["tdx v5 1.0"][:50], "quote.truncated"),
    "a body alone": (GOOD["tdx v4"][:632], "quote.truncated"),
    "one byte short": (GOOD["tdx v4"][:-1], "quote.truncated"),
    "version 2": (quote_bytes(version=2, tee=SGX, body_type=1), "quote.version_unsupported"),
    "version 6": (quote_bytes(version=6), "quote.version_unsupported"),
    "a P-384 key": (quote_bytes(key_type=3), "quote.key_type_unsupported"),
    "reserved header bytes": (quote_bytes(qe_svn=1), "quote.reserved_not_zero"),
    "TDX in version 3": (quote_bytes(version=3, tee=TDX, body_type=1), "quote.tee_unsupported"),
    "SGX in version 4": (quote_bytes(tee=SGX), "quote.tee_unsupported"),
    "TDX with an enclave's body": (quote_bytes(version=5, tee=TDX, body_type=1), "quote.tee_unsupported"),
    "SGX with a TD's body": (quote_bytes(version=5, tee=SGX, body_type=3), "quote.tee_unsupported"),
    "body type 9": (quote_bytes(version=5, body_type=9), "quote.body_type_unsupported"),
    "a body of another size": (quote_bytes(version=5, body=bytes(585)), "quote.body_size_mismatch"),
    "no outer certification": (quote_bytes(rest=b""), "quote.length_mismatch"),
    "outer type 5": (quote_bytes(rest=certification(outer=5)), "quote.certification_type_unsupported"),
    "outer size too small": (quote_bytes(rest=certification() + b"x"), "quote.length_mismatch"),
    "inner type 6": (quote_bytes(rest=certification(kind=6)), "quote.certification_type_unsupported"),
    "inner type 7": (quote_bytes(rest=certification(kind=7)), "quote.certification_type_unsupported"),
    "an RSA-2048 PPID that is short": (
        quote_bytes(rest=certification(kind=2, data=bytes(275))),
        "quote.certification_size_mismatch",
    ),
    "an RSA-3072 PPID that is long": (
        quote_bytes(rest=certification(kind=3, data=bytes(405))),
        "quote.certification_size_mismatch",
    ),
    "no QE report": (quote_bytes(rest=struct.pack("<HI", 6, 3) + b"abc"), "quote.length_mismatch"),
    "auth data past the end": (
        quote_bytes(rest=struct.pack("<HI", 6, 450) + bytes(448) + b"\xff\xff"),
        "quote.length_mismatch",
    ),
    "bytes after the certification data": (
        quote_bytes(version=3, tee=SGX, body_type=1, rest=certification(outer=None) + b"x"),
        "quote.length_mismatch",
    ),
    "something behind the quote": (quote_bytes(tail=b"\0\0\1"), "quote.trailing_bytes"),
}


@pytest.mark.parametrize(("raw", "code"), BENT.values(), ids=BENT.keys())
def test_each_deviation_has_its_own_code(raw: bytes, code: str) -> None:
    assert code_of(raw) == code


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("zeros", [1, 70, 3064])
def test_zero_padding_is_dropped_and_never_kept(raw: bytes, zeros: int) -> None:
    assert Quote.parse(raw + bytes(zeros)) == Quote.parse(raw)


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_no_prefix_of_a_quote_is_a_quote(raw: bytes) -> None:
    for end in range(len(raw)):
        code_of(raw[:end])


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_certification_types_one_to_five_are_carried(kind: int) -> None:
    data = bytes({2: 276, 3: 404}.get(kind, 36))
    quote = Quote.parse(quote_bytes(rest=certification(kind=kind, data=data)))
    assert (quote.certification_type, quote.certification_data) == (kind, data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_quote_or_malformed(raw: bytes) -> None:
    outcome(raw)


@given(
    base=st.sampled_from(sorted(GOOD)),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_any_edit_of_a_quote_is_a_quote_or_malformed(base: str, edits: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(GOOD[base])
    for at, value in edits:
        raw[at % len(raw)] = value
    outcome(bytes(raw[: len(raw) - cut]))


def outcome(raw: bytes) -> str:
    try:
        quote = Quote.parse(raw)
    except MalformedEvidence as error:
        return error.code
    assert quote.size <= len(raw)
    assert not any(raw[quote.size :])
    return "ok"


def test_a_claimed_length_of_four_gigabytes_costs_nothing() -> None:
    raw = bytearray(GOOD["tdx v4"])
    raw[632:636] = b"\xff\xff\xff\xff"
    assert code_of(bytes(raw)) == "quote.truncated"


def test_an_sgx_quote_has_no_td_report() -> None:
    with pytest.raises(TypeError):
        _ = Quote.parse(GOOD["sgx v3"]).td


def test_a_quote_only_comes_from_its_bytes() -> None:
    """Else somebody could put another body beside what was signed."""
    quote = Quote.parse(GOOD["tdx v4"])
    other = quote.td._replace(mr_td=bytes(48))
    for make in (
        lambda: Quote(),
        lambda: replace(quote, body=other),
        lambda: setattr(quote, "body", other),
        lambda: copy.copy(quote),
        lambda: pickle.dumps(quote),
        lambda: Quote.parse(bytearray(GOOD["tdx v4"])),  # type: ignore[arg-type]  # on purpose
    ):
        with pytest.raises((TypeError, AttributeError)):
            make()


def test_signatures_and_keys_stay_out_of_the_repr() -> None:
    assert "1111" not in repr(Quote.parse(GOOD["tdx v4"])).replace("\\x", "")


@pytest.mark.parametrize("size", [0, 383, 385])
def test_an_enclave_report_has_exactly_384_bytes(size: int) -> None:
    with pytest.raises(MalformedEvidence):
        EnclaveReport.parse(bytes(size))


def test_a_td_report_names_every_register_once() -> None:
    assert len(set(TdReport._fields)) == 15
