"""Attacks with certificates: the PCK chain, one certificate's bytes, the SGX extension."""

from collections.abc import Callable

from tests.attack_table import Change, attack, put, sets
from tests.pki_factory import (
    AKI,
    AT,
    BASIC,
    CA,
    DAY,
    DISTRIBUTION,
    PCK,
    ROOT,
    SGX,
    SKI,
    SVNS,
    TRUE,
    UNKNOWN,
    USAGE,
    Cert,
    World,
    integer,
    name,
    octets,
    point,
    seq,
    sign,
    spki,
    time,
    tlv,
)

# -- the PCK chain


@attack("chain.names")
def a_tcb_signer_as_pck_ca(w: World) -> None:
    w.pck_chain = ["leaf", "signer", "root"]


@attack("chain.names")
def a_tcb_signer_as_pck_leaf(w: World) -> None:
    w.pck_chain = ["signer", "ca", "root"]


@attack("chain.names")
def a_leaf_of_another_name(w: World) -> None:
    w.certs["leaf"].subject = "Intel SGX PCK Certificate 2"
    w.certs["leaf"].sgx = w.sgx.der()


@attack("chain.names")
def a_ca_of_another_name(w: World) -> None:
    w.certs["ca"].subject = w.certs["leaf"].issuer = "Intel SGX PCK Server CA"


@attack("chain.names")
def the_leaf_names_another_issuer(w: World) -> None:
    w.certs["leaf"].issuer = ROOT


@attack("chain.names")
def the_root_names_another_issuer(w: World) -> None:
    w.certs["edition"] = Cert(ROOT, CA, "root", "root", True, 1)
    w.pck_chain = ["leaf", "ca", "edition"]


@attack("chain.root_not_trusted")
def another_root_of_the_same_name(w: World) -> None:
    w.certs["root"] = Cert(ROOT, ROOT, "other_root", "other_root", True, 1)
    w.certs["ca"].signer = "other_root"
    w.certs["trusted"] = Cert(ROOT, ROOT, "root", "root", True, 1)
    w.tcb_chain, w.crl_chain, w.trusted = ["signer", "trusted"], ["quoted ca", "trusted"], ["trusted"]
    w.certs["quoted ca"] = Cert(CA, ROOT, "ca", "root", True, 0)


@attack("chain.profile")
def a_leaf_that_is_a_ca(w: World) -> None:
    w.certs["leaf"].basic = seq(TRUE)


@attack("chain.profile")
def a_ca_that_is_none(w: World) -> None:
    w.certs["ca"].basic = seq()


@attack("chain.profile")
def a_ca_that_may_not_sign_certificates(w: World) -> None:
    w.certs["ca"].usage = bytes.fromhex("03020102")


@attack("chain.profile")
def a_ca_that_may_not_sign_crls(w: World) -> None:
    w.certs["ca"].usage = bytes.fromhex("03020204")


@attack("chain.profile")
def a_leaf_that_may_sign_certificates(w: World) -> None:
    w.certs["leaf"].usage = bytes.fromhex("03020284")


@attack("chain.profile")
def a_leaf_that_may_sign_crls(w: World) -> None:
    w.certs["leaf"].usage = bytes.fromhex("03020182")


@attack("chain.profile")
def a_leaf_that_may_not_sign_data(w: World) -> None:
    w.certs["leaf"].usage = bytes.fromhex("03020640")


@attack("chain.profile")
def an_unknown_critical_extension(w: World) -> None:
    w.certs["leaf"].extra = [(UNKNOWN, True, seq())]


@attack("ok")
def an_unknown_extension_that_is_not_critical(w: World) -> None:
    w.certs["leaf"].extra = [(UNKNOWN, False, seq())]


for _end, _what in (("25", "an extended key usage"), ("1e", "name constraints"), ("24", "policy constraints")):
    for _which in ("leaf", "ca", "root"):
        _limit = (bytes.fromhex("0603551d" + _end), False, seq())
        put("chain.profile", f"{_what}, not critical, of the {_which}", sets("certs", _which, extra=[_limit]))
_limit = (bytes.fromhex("0603551d36"), False, integer(0))
put("chain.profile", "an inhibitAnyPolicy, not critical", sets("certs", "ca", extra=[_limit]))


@attack("ok")
def distribution_points_that_are_no_der(w: World) -> None:
    w.certs["leaf"].drop = (DISTRIBUTION,)
    w.certs["leaf"].extra = [(DISTRIBUTION, False, b"\x30\x05?")]


@attack("chain.profile")
def a_critical_sgx_extension(w: World) -> None:
    w.certs["leaf"].drop = (SGX,)
    w.certs["leaf"].extra = [(SGX, True, w.sgx.der())]


@attack("chain.profile")
def a_path_length_that_is_too_short(w: World) -> None:
    w.certs["root"].path_length = 0


for _oid, _what in ((AKI, "authority key id"), (SKI, "subject key id"), (DISTRIBUTION, "distribution point")):
    put("chain.profile", f"a leaf without {_what}", sets("certs", "leaf", drop=(_oid,)))
put("chain.profile", "a leaf without key usage", sets("certs", "leaf", drop=(USAGE,)))
put("chain.profile", "a leaf without basic constraints", sets("certs", "leaf", drop=(BASIC,)))


@attack("chain.signature_invalid")
def a_leaf_signed_by_somebody_else(w: World) -> None:
    w.certs["leaf"].signer = "rogue"


@attack("chain.signature_invalid")
def a_leaf_signed_by_its_root(w: World) -> None:
    w.certs["leaf"].signer = "root"


@attack("chain.signature_invalid")
def a_ca_with_the_right_name_and_another_key(w: World) -> None:
    w.certs["rogue ca"] = Cert(CA, ROOT, "rogue", "rogue", True, 0)
    w.certs["leaf"].signer = "rogue"
    w.pck_chain = ["leaf", "rogue ca", "root"]


@attack("chain.signature_invalid")
def a_root_with_the_right_key_and_other_dates(w: World) -> None:
    w.certs["edition"] = Cert(ROOT, ROOT, "root", "rogue", True, 1, serial=79, not_after=AT + 9000 * DAY)
    w.pck_chain = ["leaf", "ca", "edition"]


@attack("chain.signature_invalid")
def a_leaf_with_a_bit_flipped(w: World) -> None:
    w.certs["leaf"].tweak = lambda raw: raw.replace(b"P" * 16, b"P" * 15 + b"Q")


# -- one certificate, byte by byte


def _leaf(**changes: object) -> Change:
    def change(w: World) -> None:
        for field, value in changes.items():
            setattr(w.certs["leaf"], field, value)

    return change


def _times(first: bytes, last: bytes, *more: bytes) -> bytes:
    return seq(first, last, *more)


_UTC, _GENERAL = 0x17, 0x18
_BEGIN, _END = time(AT - DAY), time(AT + DAY)
_P256 = spki("leaf")[:-64]
for _title, _changes in (
    ("version 1", {"version": bytes.fromhex("a003020100")}),
    ("a negative serial number", {"serial": -5}),
    ("a serial number of 22 octets", {"serial": 1 << 170}),
    ("a serial number of 161 bits", {"serial": 1 << 160}),
    ("an empty serial number", {"tweak": lambda raw: raw.replace(integer(1005), b"\x02\x00\x05\x00")}),
    ("another algorithm inside", {"tbs_algorithm": bytes.fromhex("300a06082a8648ce3d040303")}),
    ("another algorithm outside", {"tweak": lambda raw: _last(raw, bytes.fromhex("3d040302"), b"\x3d\x04\x03\x03")}),
    ("bytes after the certificate", {"tweak": lambda raw: raw + b"\0"}),
    ("a certificate cut short", {"tweak": lambda raw: raw[:-1]}),
    ("a certificate of one byte", {"tweak": lambda _: b"\x30"}),
    ("a certificate that is no sequence", {"tweak": lambda raw: b"\x31" + raw[1:]}),
    ("an endless length", {"tweak": lambda raw: b"\x30\x80" + raw[4:]}),
    ("a length of five octets", {"tweak": lambda raw: b"\x30\x85\0\0\0" + raw[2:]}),
    ("a length with a leading zero", {"tweak": lambda raw: b"\x30\x83\0" + raw[2:]}),
    ("a length whose octets are missing", {"tweak": lambda _: b"\x30\x83\x01"}),
    ("a bit string with unused bits", {"tweak": lambda raw: _unused_bits(raw)}),
    ("something after the signature", {"tweak": lambda raw: _grow(raw, b"\x05\x00")}),
    ("a key on another curve", {"spki": bytes.fromhex("3013") + spki("leaf")[2:]}),
    ("a compressed key", {"spki": _P256[:-1] + b"\x02" + point("leaf")}),
    ("a key that is no point", {"spki": _P256 + b"\x01" * 64}),
    ("an extension twice", {"extra": [(AKI, False, seq())]}),
    ("a key usage with a bit among the unused", {"usage": bytes.fromhex("03020681")}),
    (
        "a name with two common names",
        {"subject_der": seq(*(tlv(0x31, seq(bytes.fromhex("0603550403"), tlv(12, PCK.encode()))) for _ in "ab"))},
    ),
    (
        "a name with two attributes in a set",
        {"subject_der": seq(tlv(0x31, seq(bytes.fromhex("0603550403"), tlv(12, PCK.encode())), seq()))},
    ),
    ("a name without common name", {"subject_der": seq()}),
    ("bytes after the name's attributes", {"subject_der": seq(tlv(0x31))}),
    ("a time without zone", {"times": _times(tlv(_UTC, b"260101000000+"), _END)}),
    ("a time without seconds", {"times": _times(tlv(_UTC, b"2601010000Z"), _END)}),
    ("a time that is no number", {"times": _times(tlv(_UTC, b"26010100000xZ"), _END)}),
    ("a time that is a week's", {"times": _times(tlv(_UTC, b"26W011000000Z"), _END)}),
    ("a 30th of February", {"times": _times(tlv(_UTC, b"260230000000Z"), _END)}),
    ("a time of an unknown kind", {"times": _times(tlv(0x19, b"260101000000Z"), _END)}),
    ("three times in the validity", {"times": _times(_BEGIN, _END, _END)}),
    ("one time in the validity", {"times": seq(_BEGIN)}),
    ("basic constraints that are no boolean", {"basic": seq(integer(1))}),
    ("bytes after the basic constraints", {"basic": seq() + b"\0"}),
    ("something after the path length", {"basic": seq(TRUE, integer(0), integer(0))}),
    ("a negative path length", {"basic": seq(TRUE, integer(-1))}),
    ("a key usage that is no bit string", {"usage": b"\x04\x02\x06\xc0"}),
    ("an empty key usage", {"usage": b"\x03\x01\x00"}),
    ("a key usage of many bytes", {"usage": b"\x03\x05\x00\xc0\0\0\0"}),
    ("a key usage with eight unused bits", {"usage": b"\x03\x02\x08\0"}),
):
    put("chain.malformed", f"leaf: {_title}", _leaf(**_changes))

put(
    "chain.malformed",
    "leaf: a common name without text",
    _leaf(subject_der=seq(tlv(0x31, seq(bytes.fromhex("0603550403"))))),
)
put(
    "chain.malformed",
    "leaf: a common name that is no text",
    _leaf(subject_der=name(PCK).replace(b"\x0c" + bytes((len(PCK),)), b"\x04" + bytes((len(PCK),)), 1)),
)
put(
    "chain.malformed",
    "leaf: a name with an attribute that is no attribute",
    _leaf(subject_der=name(PCK).replace(bytes.fromhex("060355040a"), bytes.fromhex("260355040a"), 1)),
)
put(
    "chain.malformed",
    "leaf: a common name that holds how Intel's names end",
    _leaf(subject_der=seq(tlv(0x31, seq(b"\x06\x03\x55\x04\x03", tlv(0x0C, PCK.encode() + name(PCK)[-82:]))))),
)
put("ok", "leaf: a name of other people", _leaf(subject_der=name(PCK).replace(b"Santa Clara", b"Santa Barba")))
put("chain.malformed", "leaf: serial number zero", lambda w: _reserialled(w, b"\x02\x01\0"))
put("chain.malformed", "leaf: a serial number with a zero too many", lambda w: _reserialled(w, b"\x02\x03\0\x03\xed"))
put("ok", "leaf: a serial number of 160 bits", _leaf(serial=(1 << 160) - 1))
put(
    "ok",
    "leaf: a generalized time",
    _leaf(times=_times(tlv(_GENERAL, b"20260101000000Z"), tlv(_GENERAL, b"20990101000000Z"))),
)
put(
    "chain.not_yet_valid",
    "leaf: a time of the last century is not one of the next",
    _leaf(times=_times(time(AT + DAY), _END)),
)
put(
    "chain.expired",
    "leaf: a two-digit year of 50 is 1950",
    _leaf(times=_times(tlv(_UTC, b"500101000000Z"), tlv(_UTC, b"510101000000Z"))),
)


def _last(raw: bytes, old: bytes, new: bytes) -> bytes:
    before, _, after = raw.rpartition(old)
    return before + new + after


def _grow(raw: bytes, more: bytes) -> bytes:
    """The same outer sequence with something more at its end."""
    return seq(raw[4:] + more)


def _unused_bits(raw: bytes) -> bytes:
    at = raw.rindex(b"\x00\x30\x44") if b"\x00\x30\x44" in raw[-80:] else raw.rindex(b"\x00\x30", len(raw) - 80)
    return raw[:at] + b"\x01" + raw[at + 1 :]


def _reserialled(w: World, serial: bytes) -> None:
    """Re-signed, so that nothing but the serial is wrong."""
    _resign(w, lambda tbs: seq(tbs[4:].replace(integer(1005), serial, 1)))


def _resign(w: World, change: Callable[[bytes], bytes]) -> None:
    def tweak(raw: bytes) -> bytes:
        size = int.from_bytes(raw[6:8], "big") + 4
        tbs = change(raw[4 : 4 + size])
        return seq(tbs, bytes.fromhex("300a06082a8648ce3d040302"), tlv(3, b"\0", sign("ca", tbs)))

    w.certs["leaf"].tweak = tweak


@attack("chain.malformed")
def a_certificate_without_extensions(w: World) -> None:
    def cut(tbs: bytes) -> bytes:
        at = tbs.index(point("leaf")) + 64
        return seq(tbs[4:at])

    _resign(w, cut)


@attack("chain.malformed")
def something_after_the_extensions(w: World) -> None:
    _resign(w, lambda tbs: seq(tbs[4:] + b"\x05\x00"))


@attack("chain.malformed")
def an_extension_beside_the_list_of_them(w: World) -> None:
    def put_beside(tbs: bytes) -> bytes:
        at = tbs.index(point("leaf")) + 64
        return seq(tbs[4:at] + tlv(0xA3, tbs[at + 4 :] + seq(UNKNOWN, octets(b"a"))))

    _resign(w, put_beside)


@attack("chain.malformed")
def an_extension_after_the_extensions(w: World) -> None:
    _resign(w, lambda tbs: seq(tbs[4:] + seq(UNKNOWN, octets(b"a"))))


@attack("chain.malformed")
def a_last_pem_block_without_end(w: World) -> None:
    w.certification = (5, w.pem(w.pck_chain).rpartition(b"-----END")[0])


@attack("chain.malformed")
def two_values_in_an_extension(w: World) -> None:
    good = seq(UNKNOWN, octets(b"a"))
    bad = seq(UNKNOWN, octets(b"a"), octets(b"b"))
    _extension_bytes(w, good, bad)


@attack("chain.malformed")
def a_critical_flag_that_is_false(w: World) -> None:
    _extension_bytes(w, seq(UNKNOWN, octets(b"a")), seq(UNKNOWN, b"\x01\x01\x00", octets(b"a")))


@attack("chain.malformed")
def an_extension_without_value(w: World) -> None:
    _extension_bytes(w, seq(UNKNOWN, octets(b"a")), seq(UNKNOWN))


def _extension_bytes(w: World, good: bytes, bad: bytes) -> None:
    """One extension's raw record, put in place of a good one; all lengths are made to fit again."""
    w.certs["leaf"].extra = [(UNKNOWN, False, b"a")]

    def change(tbs: bytes) -> bytes:
        at = tbs.index(point("leaf")) + 64
        listed = tbs[at + 8 :]
        assert listed.endswith(good)
        return seq(tbs[4:at] + tlv(0xA3, seq(listed[: -len(good)] + bad)))

    _resign(w, change)


# -- the SGX extension


def _sgx(**changes: object) -> Change:
    def change(w: World) -> None:
        for field, value in changes.items():
            setattr(w.sgx, field, value)

    return change


_ITEMS = [integer(svn) for svn in SVNS]
for _title, _extension_changes in (
    ("CPUSVN octets that are not the components", {"cpusvn": bytes(16)}),
    ("CPUSVN of 15 octets", {"cpusvn": bytes(SVNS[:15])}),
    ("a component above 255", {"svns": [300, *SVNS[1:]], "cpusvn": bytes(SVNS)}),
    ("a PCESVN above 65535", {"pcesvn": 70_000}),
    ("a negative component", {"svn_items": [b"\x02\x01\xff", *_ITEMS[1:]]}),
    ("a component with a leading zero", {"svn_items": [b"\x02\x02\x00\x03", *_ITEMS[1:]]}),
    ("an empty component", {"svn_items": [b"\x02\x00", *_ITEMS[1:]]}),
    ("a component of six octets", {"svn_items": [b"\x02\x06\x01\0\0\0\0\0", *_ITEMS[1:]]}),
    ("two values in a component", {"svn_items": [_ITEMS[0] + _ITEMS[0], *_ITEMS[1:]]}),
    ("a component that is an octet string", {"svn_items": [b"\x04\x01\x03", *_ITEMS[1:]]}),
    ("a component that passes its end", {"svn_items": [b"\x02\x09\x03", *_ITEMS[1:]]}),
    ("fifteen components", {"svn_items": _ITEMS[:15]}),
    ("seventeen components", {"svn_items": [*_ITEMS, _ITEMS[0]]}),
    ("a PPID of 15 octets", {"ppid": bytes(15)}),
    ("a PCEID of 3 octets", {"pceid": bytes(3)}),
    ("an FMSPC of 5 octets", {"fmspc": bytes(5)}),
    ("an instance id of 17 octets", {"piid": bytes(17)}),
    ("an unknown SGX type", {"sgx_type": tlv(0x0A, b"\x03")}),
    ("an SGX type that is an integer", {"sgx_type": integer(1)}),
    ("two flags", {"flags": [TRUE, TRUE]}),
    ("four flags", {"flags": [TRUE] * 4}),
    ("a flag that is neither true nor false", {"flags": [b"\x01\x01\x01", TRUE, TRUE]}),
    ("an item too many", {"append": [octets(b"x")]}),
    ("a platform CA's certificate with a processor's items", {"platform": False}),
):
    put("chain.pck_extension", f"SGX extension: {_title}", _sgx(**_extension_changes))


@attack("chain.pck_extension")
def no_sgx_extension(w: World) -> None:
    w.certs["leaf"].drop = (SGX,)


@attack("chain.pck_extension")
def an_oid_twice_in_the_sgx_extension(w: World) -> None:
    raw = w.sgx.der()
    fmspc_oid = bytes.fromhex("060a2a864886f84d010d0104")
    w.certs["leaf"].sgx = raw.replace(fmspc_oid, fmspc_oid[:-1] + b"\x03")


@attack("chain.pck_extension")
def bytes_after_the_sgx_extension(w: World) -> None:
    w.certs["leaf"].sgx = w.sgx.der() + b"\0"


@attack("chain.pck_extension")
def a_processor_ca_with_a_platforms_items(w: World) -> None:
    w.certs["ca"].subject = w.certs["leaf"].issuer = w.pck_crl.issuer = "Intel SGX PCK Processor CA"
