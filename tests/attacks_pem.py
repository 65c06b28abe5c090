"""Attacks with the text around certificates: what stands in a quote or beside it, and in how many spellings."""

from collections.abc import Callable

from tests.attack_table import Change, attack, put, sets
from tests.pki_factory import (
    PCK,
    UNKNOWN,
    World,
    seq,
    tlv,
)

# -- the PCK chain


def _certification(kind: int, size: int) -> Change:
    return sets(certification=(kind, b"\x01" * size))


for _kind, _size in ((1, 36), (2, 276), (3, 404), (4, 900)):
    put("chain.not_in_quote", f"certification data of type {_kind}", _certification(_kind, _size))


@attack("chain.not_in_quote")
def a_pck_chain_beside_the_quote(w: World) -> None:
    w.beside = {"pck_certificate_chain": w.pem(w.pck_chain).decode()}
    w.certification = (1, bytes(36))


@attack("chain.malformed")
def no_certificate_at_all(w: World) -> None:
    w.certification = (5, b"")


@attack("chain.malformed")
def garbage_between_pem_blocks(w: World) -> None:
    w.pem_join = b"garbage\n"


@attack("chain.malformed")
def a_pem_text_whose_last_bits_stand_for_nothing(w: World) -> None:
    """Base64 pads with bits that nobody reads: only zeros are taken there."""
    extra = 0
    while len(w.cert("leaf")) % 3 != 1:
        extra += 1
        w.certs["leaf"].extra = [(UNKNOWN, False, bytes(extra))]
    text = w.pem(w.pck_chain)
    at = text.index(b"==") - 1
    assert text[at : at + 1] in b"AQgw"
    w.certification = (5, text[:at] + bytes((text[at] + 1,)) + text[at + 1 :])


@attack("chain.malformed")
def white_space_between_pem_blocks(w: World) -> None:
    w.pem_join = b"\n\n \n"


def _wrapped(text: bytes, width: int) -> bytes:
    """The first block in lines of another length."""
    body, end, rest = text.removeprefix(_FIRST).partition(b"-----END")
    joined = body.replace(b"\n", b"")
    lines = [joined[at : at + width] + b"\n" for at in range(0, len(joined), width)]
    return _FIRST + b"".join(lines) + end + rest


_FIRST = b"-----BEGIN CERTIFICATE-----\n"


def _spelled(change: Callable[[bytes], bytes]) -> Change:
    """The PEM text of the quote, written another way."""

    def spell(w: World) -> None:
        w.certification = (5, change(w.pem(w.pck_chain)))

    return spell


for _title, _change in (
    ("a space inside a PEM line", lambda text: text[:60] + b" " + text[60:]),
    ("a space for a line's last character", lambda text: text.replace(text[60:91], text[60:90] + b" ", 1)),
    ("an empty line inside a PEM block", lambda text: text.replace(b"\n", b"\n\n", 2)),
    ("a PEM line of 128 characters", lambda text: text.replace(text[28:93], text[28:92], 1)),
    ("a line end before the first PEM block", lambda text: b"\n" + text),
    ("a blank for the line end after a PEM block", lambda text: text.replace(b"-----\n-----", b"----- -----", 1)),
    ("two line ends after a PEM block", lambda text: text + b"\n"),
    ("line ends of two kinds", lambda text: text.replace(b"\n", b"\r\n", 4)),
):
    put("chain.malformed", _title, _spelled(_change))
put("chain.malformed", "line ends of one kind a block", _spelled(lambda text: text.replace(b"\n", b"\r\n", 20)))
put("ok", "PEM lines of 76 characters", _spelled(lambda text: _wrapped(text, 76)))
put("chain.malformed", "PEM lines of 60 characters", _spelled(lambda text: _wrapped(text, 60)))
put("ok", "no line end between the PEM blocks", _spelled(lambda text: text.replace(b"-----\n-----", b"-" * 10)))
put("ok", "no line end after the last PEM block", _spelled(lambda text: text[:-1]))
put("ok", "line ends of the other kind", _spelled(lambda text: text.replace(b"\n", b"\r\n")))


for _title, _subject in (
    ("a name whose only attribute ends in its first byte", "3003310130"),
    ("a name whose only attribute is not DER", "300631043081" + "0603"),
    ("a name without attributes", "3000"),
    ("a name with an empty set", "30023100"),
):
    put("chain.malformed", _title, sets("certs", "leaf", subject_der=bytes.fromhex(_subject)))


def _attribute(oid_and_text: bytes, tag: int = 0x30, header: bytes | None = None) -> Change:
    """A subject of one attribute, as DER or nearly."""
    header = bytes((tag, len(oid_and_text))) if header is None else header
    return sets("certs", "leaf", subject_der=seq(tlv(0x31, header + oid_and_text)))


_CN = b"\x06\x03\x55\x04\x03" + tlv(0x0C, PCK.encode())
put("ok", "a name of one attribute", _attribute(_CN))
put(
    "chain.malformed",
    "two attributes in one set",
    sets("certs", "leaf", subject_der=seq(tlv(0x31, seq(_CN)) + tlv(0x31, seq(b"\x06\x03\x55\x04\x06") + seq()))),
)
put("chain.malformed", "a name whose attribute is a set", _attribute(_CN, tag=0x31))
put("chain.malformed", "a common name with something behind it", _attribute(_CN + b"\x05\x00"))
put(
    "chain.malformed",
    "an attribute of 129 bytes that starts with its length",
    _attribute(_CN[:5] + tlv(0x0C, PCK.encode().ljust(122, b"\0")), header=b"\x30\x81"),
)


@attack("chain.malformed")
def a_certificate_of_nine_kibibytes(w: World) -> None:
    w.certs["leaf"].extra = [(UNKNOWN, False, bytes(9 * 1024))]


@attack("chain.malformed")
def garbage_before_the_pem_blocks(w: World) -> None:
    w.certification = (5, b"x" + w.pem(w.pck_chain))


@attack("chain.malformed")
def garbage_after_the_pem_blocks(w: World) -> None:
    w.pem_end = b"x\0"


@attack("chain.malformed")
def two_nuls_at_the_end(w: World) -> None:
    w.pem_end = b"\0\0"


@attack("chain.malformed")
def a_pem_block_without_end(w: World) -> None:
    w.certification = (5, w.pem(w.pck_chain) + b"-----BEGIN CERTIFICATE-----\nAAAA\n")


@attack("chain.malformed")
def a_pem_block_that_is_not_base64(w: World) -> None:
    w.certification = (5, w.pem(["ca", "root"]) + b"-----BEGIN CERTIFICATE-----\n@@@@\n-----END CERTIFICATE-----\n")


@attack("chain.malformed")
def nine_certificates(w: World) -> None:
    w.pck_chain = ["leaf"] * 9


@attack("chain.length")
def an_extra_certificate(w: World) -> None:
    w.pck_chain = ["leaf", "ca", "root", "signer"]


@attack("chain.length")
def the_same_root_twice(w: World) -> None:
    w.pck_chain = ["leaf", "ca", "root", "root"]


@attack("chain.length")
def no_root_certificate(w: World) -> None:
    w.pck_chain = ["leaf", "ca"]
