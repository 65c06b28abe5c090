"""PEM text ↔ the DER of its certificates.

Decides which spellings are taken: base64 in its one canonical form, and in a quote, where nothing signs the text, only
the lines that quoting libraries write. What the certificates say is read by `certificates`.

Source: RFC 7468.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

from attestation.checks import Unmet

MAX_CERTIFICATES: Final = 8
"""In one text; no chain here has more than three."""

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_WHITE: Final = b" \t\r\n"
_WIDTH: Final = 64  # characters of a line, as nearly all write them
_MIME_WIDTH: Final = 76  # and as a few do
_AFTER: Final = (b"\n", b"")  # an END line


def pem_blocks(text: bytes, *, in_quote: bool = False) -> list[bytes]:
    """The base64 bodies of the certificates in a PEM text. Nothing but white space may stand around them.

    `in_quote`: quoting libraries end the text in a quote with one NUL; and as nothing there protects the white space,
    only the form that they write is taken (RFC 7468, the strict text), or one quote could be sent in a million
    spellings. Raises Unmet.
    """
    if in_quote:
        text = _with_unix_line_ends(text.removesuffix(b"\0"))
    before, *blocks = text.split(_BEGIN)
    if not blocks:
        raise Unmet("no certificate")
    if len(blocks) > MAX_CERTIFICATES:
        raise Unmet(f"more than {MAX_CERTIFICATES} certificates")
    if before and (in_quote or before.strip(_WHITE)):
        raise Unmet("something stands before the first certificate")
    bodies = []
    for block in blocks:
        body, found, after = block.partition(_END)
        if not found or after.strip(_WHITE):
            raise Unmet("a certificate has no end, or something other than white space follows it")
        if in_quote and not (after in _AFTER and _strict(body)):
            raise Unmet("the certificates are not in lines of 64 or 76 characters without other white space")
        bodies.append(body)
    return bodies


def _with_unix_line_ends(text: bytes) -> bytes:
    """All of them changed where all are CR LF; a text of two kinds stays as it is, and is refused for its CRs."""
    if b"\r" not in text:
        return text
    return text.replace(b"\r\n", b"\n") if text.count(b"\r\n") == text.count(b"\n") else text


def _strict(body: bytes) -> bool:
    """Lines of one length but for the last, which is not longer: a line end at 0, 65, 130 … and after the last line."""
    if b" " in body or b"\t" in body or b"\r" in body:
        return False
    lines = body.count(b"\n") - 1
    if not lines > 0 or body[-1:] != b"\n" or body[-2:] == b"\n\n":
        return False
    ends = b"\n" * lines
    return body[: -1 : _WIDTH + 1] == ends or body[: -1 : _MIME_WIDTH + 1] == ends


def pem_decode(body: bytes) -> bytes:
    """The DER in one body: base64 in its one canonical spelling. Raises Unmet."""
    text = body.translate(None, _WHITE)
    try:
        raw = a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise Unmet("a certificate is not base64") from error
    last = len(raw) % 3 or 3  # strict mode leaves open what the spare bits of the last characters are
    if b2a_base64(raw[-last:], newline=False) != text[-4:]:
        raise Unmet("a certificate is not base64 as it should be spelled")
    return raw
