"""`cloister quote inspect` and `cloister quote diff`: what a quote claims, field by field. Nothing is verified.

Decides how fields are printed and which exit status says what: 0 fine, 2 an unreadable file, 3 bytes that are no quote.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from attestation.errors import MEANING, MalformedEvidence
from attestation.inspect import Difference, Field, certificates, differences, fields, title
from attestation.quote import MAX_QUOTE, Quote
from attestation.terminal import FINE, MALFORMED, USAGE, UsageError, paint, plain, read_quote

_SHORT: Final = 96  # hex digits that a line shows: a SHA-384 digest in full


def inspect(path: str, *, as_json: bool) -> int:
    """Print every field. The JSON object has `title`, `size`, `fields`, `certificates`; on failure `code`, `detail`."""
    try:
        raw = read_quote(path, MAX_QUOTE)
        quote = Quote.parse(raw)
    except UsageError as error:
        return _usage(error)
    except MalformedEvidence as error:
        return _malformed(error, path, as_json)
    shown, chain = fields(raw), certificates(quote)
    if as_json:
        _print(
            {
                "ok": True,
                "code": None,
                "title": title(quote),
                "size": quote.size,
                "fields": [field._asdict() for field in shown],
                "certificates": list(chain),
            }
        )
        return FINE
    print(f"{paint(title(quote), 'bold')}, {quote.size} bytes. What it claims; nothing here is verified.")
    section = ""
    for field in shown:
        if field.section != section:
            section = field.section
            print(f"\n{paint(section, 'bold')}\n  {paint('offset   size  name', 'dim')}")
        print("\n".join(_lines(field)))
    for number, certificate in enumerate(chain):
        print(f"\n{paint(f'certificate {number}', 'bold')}")
        print("\n".join(_certificate(certificate)))
    return FINE


def diff(first: str, second: str, *, as_json: bool) -> int:
    """Print the fields that differ. The JSON object has `same` and `differences`."""
    path = first
    try:
        if first == second == "-":
            raise UsageError("only one of the two can come from standard input")
        one = read_quote(first, MAX_QUOTE)
        two = read_quote(second, MAX_QUOTE)
        Quote.parse(one)
        path = second
        found = differences(one, two)
    except UsageError as error:
        return _usage(error)
    except MalformedEvidence as error:
        return _malformed(error, path, as_json)
    if as_json:
        _print({"ok": True, "code": None, "same": not found, "differences": [_difference(item) for item in found]})
        return FINE
    told = "1 field differs." if len(found) == 1 else f"{len(found)} fields differ."
    print(told if found else "Every field is the same.")
    for item in found:
        print(f"\n{paint(item.name, 'bold')}")
        for mark, style, field in (("-", "bad", item.first), ("+", "good", item.second)):
            text = "(no such field)" if field is None else f"{_value(field)}  {plain(field.meaning)}"
            print(f"  {paint(f'{mark} {text}', style)}")
    return FINE


def _lines(field: Field) -> list[str]:
    head = f"  {field.offset:>6} {field.length:>6}  {field.name:<24} {plain(field.meaning)}"
    return [head, f"  {'':>13}  {paint(_value(field), 'dim')}"] if field.value else [head]


def _value(field: Field) -> str:
    if len(field.value) <= 2 * _SHORT:
        return field.value
    return f"{field.value[:_SHORT]}… ({field.length} bytes)"


def _certificate(certificate: dict[str, Any]) -> list[str]:
    shown: list[str] = []
    for name, value in certificate.items():
        if isinstance(value, dict):
            shown += [f"  {'SGX extension':<18} {part} = {_plain_value(item)}" for part, item in value.items()]
        else:
            shown.append(f"  {name:<18} {_plain_value(value)}")
    return shown


def _plain_value(value: object) -> str:
    return (
        {None: "absent", True: "yes", False: "no"}[value]
        if value is None or isinstance(value, bool)
        else plain(str(value))
    )


def _difference(item: Difference) -> dict[str, Any]:
    return {
        "name": item.name,
        "first": None if item.first is None else item.first._asdict(),
        "second": None if item.second is None else item.second._asdict(),
    }


def _usage(error: UsageError) -> int:
    print(f"cloister quote: {error}", file=sys.stderr)
    return USAGE


def _malformed(error: MalformedEvidence, path: str, as_json: bool) -> int:
    if as_json:
        _print({"ok": False, "code": str(error.code), "detail": error.detail})
    else:
        print(f"✗ {path}: {plain(error.detail)} [{error.code}]\n  → {MEANING[error.code][1]}", file=sys.stderr)
    return MALFORMED


def _print(members: dict[str, Any]) -> None:
    print(json.dumps(members, indent=2))
