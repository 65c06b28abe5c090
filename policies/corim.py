"""CoRIM (Concise Reference Integrity Manifest) → reference values. One way only: our own form is TOML.

Decides which measurements of a manifest mean MRTD and RTMRs. It checks no signature: a COSE envelope is opened and its
signer reported as not verified, and whoever imports must know where the file came from. cbor2 is needed and loaded only
here.

Read are unsigned manifests (tag 501) and COSE_Sign1 (tag 18) around them, CoMIDs (tag 506), reference triples whose
measurements carry digests of 48 bytes (digest list, key 2; mrtee, key −83 of Intel's profile) for MRTD, and integrity
registers (key 14) named 0 to 3 or rtmr0 to rtmr3. Intel's set expressions (tag 60020, operator `member`) give several
values.

Sources: draft-ietf-rats-corim-10; draft-cds-rats-intel-corim-profile; draft text's numbers are taken, digests are
recognised by their length as well, since files exist that label SHA-512 as algorithm 7 or SHA-384 as 8.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from policies.codes import BundleCode
from policies.errors import BundleError

CORIM, COSE_SIGN1, COMID, SET_EXPRESSION = 501, 18, 506, 60020
ID, TAGS, PROFILE = 0, 1, 3
TAG_IDENTITY, TRIPLES, REFERENCE = 1, 4, 0
VALUES, DIGESTS, REGISTERS, MRTEE = 1, 2, 14, -83
MEMBER, EQUAL = 6, 0
SIZE: Final = 48
MAX_FILE: Final = 4 << 20
MAX_VALUES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Measurements found: register ("mr_td", "rtmr0" …) → accepted digests in hex. `signed` says that a COSE envelope
    was there, which nobody has verified."""

    id: str
    registers: tuple[tuple[str, tuple[str, ...]], ...]
    signed: bool

    def to_toml(self, workload: str, source: str) -> str:
        """A [[workload]] table for reference-values.toml: one value for each combination of the digests.

        Raises BundleError when there are more than anybody would read.
        """
        names = [name for name, _ in self.registers]
        count = math.prod(len(found) for _, found in self.registers)
        if count > MAX_VALUES:
            raise _bad(source, f"{count} combinations of the digests, at most {MAX_VALUES}", "write the ones that run")
        lines = ["[[workload]]", f"name = {_quoted(workload)}"]
        for digests in itertools.product(*(found for _, found in self.registers)):
            lines += ["", "[[workload.value]]", f"source = {_quoted(source)}"]
            lines += [f'{name} = "{digest}"' for name, digest in zip(names, digests, strict=True)]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As a basic string of TOML, which escapes like JSON, and U+007F too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def import_corim(name: str, raw: bytes) -> Imported:
    """Read a manifest. Raises BundleError: not CBOR, no CoRIM, no TDX measurement in it, cbor2 missing."""
    if len(raw) > MAX_FILE:
        raise _bad(name, f"{len(raw)} bytes, at most {MAX_FILE}")
    try:
        import cbor2
    except ModuleNotFoundError as error:
        raise _bad(name, "reading CoRIM needs the Python package cbor2", "pip install 'cloister[corim]'") from error
    try:
        manifest, signed = _manifest(cbor2.loads(raw), cbor2)
        found = _registers(manifest, cbor2)
    except (cbor2.CBORDecodeError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise _bad(name, f"no CoRIM: {error}") from error
    if "mr_td" not in found:
        hint = "it needs a reference triple with a digest of 48 bytes (SHA-384)"
        raise _bad(name, f"no MRTD in it; found {', '.join(found) or 'nothing'}", hint)
    registers = tuple((register, tuple(dict.fromkeys(found[register]))) for register in sorted(found))
    return Imported(id=str(manifest.get(ID, "")), registers=registers, signed=signed)


def _bad(name: str, detail: str, hint: str = "") -> BundleError:
    return BundleError(BundleCode.SYNTAX, name, 0, detail, hint)


def _manifest(decoded: Any, cbor2: Any) -> tuple[Mapping[Any, Any], bool]:
    """The corim-map, and whether it came in a COSE_Sign1."""
    signed = False
    if isinstance(decoded, cbor2.CBORTag) and decoded.tag == COSE_SIGN1:
        decoded, signed = cbor2.loads(decoded.value[2]), True
    if isinstance(decoded, cbor2.CBORTag) and decoded.tag == CORIM:
        decoded = decoded.value
    if not isinstance(decoded, Mapping):
        raise TypeError(f"top level is {type(decoded).__name__}, need tag 501 or 18")
    return decoded, signed


def _registers(manifest: Mapping[Any, Any], cbor2: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tag in manifest[TAGS]:
        if isinstance(tag, cbor2.CBORTag) and tag.tag == COMID:
            comid = cbor2.loads(tag.value) if isinstance(tag.value, bytes) else tag.value
            for _, measurements in comid.get(TRIPLES, {}).get(REFERENCE, ()):
                for measurement in measurements:
                    for register, digest in _measurement(measurement[VALUES], cbor2):
                        found.setdefault(register, []).append(digest)
    return found


def _measurement(values: Mapping[Any, Any], cbor2: Any) -> Iterator[tuple[str, str]]:
    for key in (DIGESTS, MRTEE):
        for digest in _digests(values.get(key), cbor2):
            yield "mr_td", digest
    for label, digests in (values.get(REGISTERS) or {}).items():
        number = str(label).lower().removeprefix("rtmr")
        if number in ("0", "1", "2", "3"):
            for digest in _digests(digests, cbor2):
                yield f"rtmr{number}", digest


def _digests(value: Any, cbor2: Any) -> Iterator[str]:
    """Hex of every 48-byte digest in a digest, a list of [algorithm, digest] pairs, or a set expression."""
    if isinstance(value, bytes):
        if len(value) == SIZE:
            yield value.hex()
    elif isinstance(value, cbor2.CBORTag):
        if value.tag == SET_EXPRESSION:
            operator, members = value.value
            if operator not in (EQUAL, MEMBER):
                raise ValueError(f"set operator {operator} names no accepted value")
            yield from _digests(members, cbor2)
        else:
            yield from _digests(value.value, cbor2)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _digests(item, cbor2)
