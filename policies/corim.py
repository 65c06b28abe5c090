"""CoRIM (Concise Reference Integrity Manifest) → reference values. One way only: our own form is TOML.

Decides whether a manifest may be believed (signed by the key that the caller names, in force, of a profile known here),
which of its environments is meant (the one that the caller names, to the word), and which of its measurements are MRTD
and RTMRs. What COSE asks of a signature is decided in `policies.cose`. cbor2 is needed and loaded only in a call.

Read are manifests (tag 501), bare or in COSE_Sign1 (tag 18), CoMIDs (tag 506) and reference triples. A triple is one
state of its environment, so its measurements make values of their own and are not mixed with those of another triple.
MRTD is `digests` (key 2) of a measurement without a key or with the key `mrtd`, or `mrtee` (−83) of Intel's profile;
RTMRs are integrity registers (key 14) named 0 to 3 or rtmr0 to rtmr3, or `digests` of a measurement with such a text as
key. A digest list is one value under several algorithms; several values come in Intel's set expressions (tag 60020,
operator `member`). Whatever else a triple measures can't be said in a reference value, and is listed as left out.

Sources: draft-ietf-rats-corim-10 (4.1 manifest, 4.2 signed, 5.1.4 triples, 7.3 validity); RFC 9597 (CWT claims in
headers); draft-cds-rats-intel-corim-profile. 48 bytes are a TDX register whatever the algorithm's number says, since
files exist that label SHA-512 as algorithm 7 or SHA-384 as 8.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from policies.codes import BundleCode
from policies.cose import CONTENT_TYPE, SIGN1, Signed, SignerKey, decode, verify_sign1
from policies.errors import BundleError

CORIM, COMID, COTL, OID, BYTES, UEID, URI, SET_EXPRESSION = 501, 506, 508, 111, 560, 550, 32, 60020
ID, TAGS, PROFILE, VALIDITY = 0, 1, 3, 4
LINKED, TRIPLES, REFERENCE = 3, 4, 0
RELATION, REPLACES = 1, 1
KEY, VALUES, AUTHORITY, DIGESTS, REGISTERS, MRTEE = 0, 1, 2, 2, 14, -83
META, CLAIMS = 8, 15
MEMBER, EQUAL = 6, 0
SIZE: Final = 48
MAX_FILE: Final = 4 << 20
MAX_VALUES: Final = 64
MAX_TEXT: Final = 256
CONTENT: Final = "application/rim+cbor"
INTEL: Final = "2.16.840.1.113741.1.16.1"
ENVIRONMENT: Final = ("class-id", "vendor", "model", "layer", "index", "instance", "group")
# Intel's classes that hold digests of 48 bytes and are no trust domain.
NO_DOMAIN: Final = {
    "2.16.840.1.113741.1.2.3.4.1": "the SGX quoting enclave",
    "2.16.840.1.113741.1.2.3.4.2": "the SGX quoting enclave",
    "2.16.840.1.113741.1.2.3.4.3": "the TDX module",
    "2.16.840.1.113741.1.2.3.4.4": "the SGX platform",
    "2.16.840.1.113741.1.2.3.4.5": "the SGX platform",
    "2.16.840.1.113741.1.2.3.4.6": "the SGX platform",
    "2.16.840.1.113741.1.2.3.5.1": "an SGX enclave",
}
_MRTD_KEYS: Final = frozenset({None, 83, "mrtd", "mr_td", "mrtee"})


class Unsigned(Enum):
    """What is written in a key's place where a manifest is taken that nobody signed."""

    UNSIGNED = "unsigned"


UNSIGNED: Final = Unsigned.UNSIGNED
Registers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Accepted sets of measurements: register ("mr_td", "rtmr0" …) and digest in hex.

    verified  whether a named key signed it; else the caller said that nobody need have
    until     the moment from which on the manifest is no longer in force
    left_out  what the chosen triples measure beside, which no reference value can say
    """

    id: str
    values: tuple[Registers, ...]
    verified: bool
    until: datetime | None
    left_out: tuple[str, ...]

    def to_toml(self, workload: str, source: str) -> str:
        """A [[workload]] table for reference-values.toml."""
        lines = ["[[workload]]", f"name = {_quoted(workload)}"]
        for value in self.values:
            lines += ["", "[[workload.value]]", f"source = {_quoted(source)}"]
            lines += [f'{name} = "{digest}"' for name, digest in value]
            if self.until:
                lines.append(f'until = "{self.until.isoformat()}"')
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As a basic string of TOML, which escapes like JSON, and U+007F too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def parse_environment(words: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE`, each name once. Raises BundleError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ENVIRONMENT or not equals or not value:
            hint = f"write NAME=VALUE; names are {', '.join(ENVIRONMENT)}"
            raise _bad("--environment", f"{word!r} names nothing", hint, BundleCode.VALUE)
        if name in found:
            raise _bad("--environment", f"{name} is there twice", "keep one", BundleCode.DUPLICATE)
        found[name] = value
    return found


def import_corim(
    name: str, raw: bytes, *, signer: SignerKey | Unsigned, environment: Mapping[str, str], at: datetime
) -> Imported:
    """Read a manifest, as of `at`, for the environment that is meant.

    Raises BundleError: no CoRIM, not signed by `signer`, not in force, of an unknown profile, another environment,
    no TDX measurement in it; or cbor2 is missing.
    """
    if len(raw) > MAX_FILE:
        raise _bad(name, f"{len(raw)} bytes, at most {MAX_FILE}", code=BundleCode.TOO_LARGE)
    try:
        import cbor2
    except ModuleNotFoundError as error:
        raise _bad(name, "reading CoRIM needs the Python package cbor2", "pip install 'cloister[corim]'") from error
    try:
        return _Reader(name, cbor2.CBORTag).read(raw, signer, environment, at)
    except (
        cbor2.CBORDecodeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise _bad(name, f"no CoRIM: {error}") from error


def _bad(name: str, detail: str, hint: str = "", code: BundleCode = BundleCode.SYNTAX) -> BundleError:
    return BundleError(code, name, 0, detail, hint)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One file's name, for what is wrong with it, and how cbor2 shows a tag."""

    name: str
    tag_type: Any

    def read(self, raw: bytes, signer: SignerKey | Unsigned, environment: Mapping[str, str], at: datetime) -> Imported:
        manifest, signed = self._opened(decode(raw), signer)
        ends = [*self._signers_window(signed, at), *self._window("the manifest", manifest.get(VALIDITY), at)]
        intel = self._is_intel(manifest.get(PROFILE))
        left_out: dict[str, None] = {}
        values: list[Registers] = []
        for measurements in self._triples(manifest, environment):
            values += self._values(_States(self.tag_type, intel), measurements, left_out)
        if not values:
            hint = "it needs a reference triple with a digest of 48 bytes (SHA-384)"
            raise _bad(self.name, "no MRTD of that environment in it", hint)
        if len(values) > MAX_VALUES:
            raise self._too_many(len(values))
        return Imported(
            id=_text(manifest.get(ID, ""), self.tag_type),
            values=tuple(dict.fromkeys(values)),
            verified=signed is not None,
            until=min(ends, default=None),
            left_out=tuple(left_out),
        )

    def _too_many(self, count: int) -> BundleError:
        detail = f"{count} combinations of the digests, at most {MAX_VALUES}"
        return _bad(self.name, detail, "write the ones that run")

    def _opened(self, item: Any, signer: SignerKey | Unsigned) -> tuple[Mapping[Any, Any], Signed | None]:
        """The corim-map and what signed it. A file that is signed is verified or refused, whatever was said."""
        signed = None
        if self._is(item, SIGN1):
            if isinstance(signer, Unsigned):
                hint = "name the key or certificate that signed it: --signer FILE"
                raise _bad(self.name, "the manifest is signed", hint, BundleCode.MANIFEST_SIGNATURE)
            signed = verify_sign1(self.name, item.value, signer)
            kind = signed.protected.get(CONTENT_TYPE)
            if not isinstance(kind, str) or kind.partition(";")[0].strip().lower() != CONTENT:
                detail = f"what is signed is {kind!r}, need {CONTENT}"
                raise _bad(self.name, detail, code=BundleCode.MANIFEST_HEADER)
            item = decode(signed.payload)
        elif not isinstance(signer, Unsigned):
            hint = "ask for the signed file (COSE_Sign1); --unsigned takes this one as it is"
            raise _bad(self.name, "nobody signed the manifest", hint, BundleCode.MANIFEST_UNSIGNED)
        if self._is(item, CORIM):
            item = item.value
        if not isinstance(item, Mapping):
            raise TypeError(f"top level is {type(item).__name__}, need tag 501 or 18")
        return item, signed

    def _is(self, item: Any, tag: int) -> bool:
        return isinstance(item, self.tag_type) and item.tag == tag

    def _signers_window(self, signed: Signed | None, at: datetime) -> list[datetime]:
        """How long the signer stands by it: `corim-meta` or CWT claims, one of which must be there, and no quarrel."""
        if signed is None:
            return []
        claims, raw_meta = signed.protected.get(CLAIMS), signed.protected.get(META)
        if claims is None and raw_meta is None:
            detail = "the signer does not say who signed it: neither corim-meta nor CWT claims"
            raise _bad(self.name, detail, code=BundleCode.MANIFEST_HEADER)
        meta = decode(raw_meta) if raw_meta is not None else {}
        claimed = {} if claims is None else {0: _moment(claims.get(5)), 1: _moment(claims.get(4))}
        stated = {key: _moment(value) for key, value in (meta.get(1) or {}).items()}
        if claims is not None and raw_meta is not None:
            same_end = claimed[1] == stated.get(1) and claimed[0] == stated.get(0)
            if not same_end or claims.get(1) != meta[0][0]:
                detail = "corim-meta and CWT claims differ in signer or validity"
                raise _bad(self.name, detail, code=BundleCode.MANIFEST_HEADER)
        return [*self._window("the signature", claimed, at), *self._window("the signature", stated, at)]

    def _window(self, what: str, window: Mapping[Any, Any] | None, at: datetime) -> list[datetime]:
        """The end of a validity-map in which `at` lies; none where there is no map, or no end in it."""
        begin, end = (_moment((window or {}).get(key)) for key in (0, 1))
        if (begin and at < begin) or (end and at >= end):
            bounds = f"{begin.isoformat() if begin else '…'} to {end.isoformat() if end else '…'}"
            detail = f"{what} is in force from {bounds}, not at {at.isoformat()}"
            raise _bad(self.name, detail, "ask for a newer one", BundleCode.MANIFEST_VALIDITY)
        return [end] if end else []

    def _is_intel(self, profile: Any) -> bool:
        """Whether Intel's keys and expressions have their meaning. A profile that is not known refuses the whole."""
        if profile is None:
            return False
        found = _text(profile, self.tag_type).removeprefix("urn:oid:")
        if found != INTEL:
            detail = f"its profile is {found}; known are none and {INTEL} (Intel's)"
            raise _bad(self.name, detail, code=BundleCode.MANIFEST_PROFILE)
        return True

    def _triples(self, manifest: Mapping[Any, Any], wanted: Mapping[str, str]) -> list[Any]:
        """The measurements of each reference triple whose environment is the one that is meant."""
        chosen: list[Any] = []
        others: dict[str, None] = {}
        for tag in manifest[TAGS]:
            if self._is(tag, COTL):
                raise _bad(self.name, "its tags are activated by a list (CoTL, tag 508), which is not read here")
            if not self._is(tag, COMID):
                continue
            comid = decode(tag.value) if isinstance(tag.value, bytes) else tag.value
            if any(link[RELATION] == REPLACES for link in comid.get(LINKED) or ()):
                raise _bad(self.name, "one of its tags replaces another, and which one holds is not judged here")
            for environment, measurements in comid.get(TRIPLES, {}).get(REFERENCE) or ():
                found = self._environment(environment)
                if found == wanted:
                    chosen.append(measurements)
                others[_words(found)] = None
        if wanted.get("class-id") in NO_DOMAIN:
            detail = f"class {wanted['class-id']} is {NO_DOMAIN[wanted['class-id']]}, no trust domain"
            raise _bad(self.name, detail, code=BundleCode.MANIFEST_ENVIRONMENT)
        if not chosen:
            detail = "no environment in it is the one that is meant" if wanted else "no environment is named"
            hint = f"it has: {'; '.join(others) or 'none'}. Name the one that is your trust domain"
            raise _bad(self.name, detail, hint, BundleCode.MANIFEST_ENVIRONMENT)
        return chosen

    def _environment(self, environment: Mapping[Any, Any]) -> dict[str, str]:
        """Every attribute that is there, by its name. One that has no name here still makes it another environment."""
        kind = environment.get(0) or {}
        named = {ENVIRONMENT[key] if key in range(5) else f"class {key}": value for key, value in kind.items()}
        named |= {{1: "instance", 2: "group"}.get(key, str(key)): value for key, value in environment.items() if key}
        if not named:
            raise ValueError("a reference triple does not say what its environment is")
        return {key: _text(value, self.tag_type) for key, value in named.items()}

    def _values(self, states: _States, measurements: Any, left_out: dict[str, None]) -> Iterator[Registers]:
        """One value for each combination of what the registers of one triple may hold."""
        found: dict[str, list[str]] = {}
        for measurement in measurements:
            for register, digests in states.of(measurement, left_out):
                if register in found:
                    raise ValueError(f"{register} is measured twice in one reference triple")
                found[register] = digests
        if not found:
            return
        if "mr_td" not in found:
            raise ValueError(f"{', '.join(found)} without an MRTD in the same triple: whose they are is not said")
        count = math.prod(len(digests) for digests in found.values())
        if count > MAX_VALUES:
            raise self._too_many(count)
        names = sorted(found)
        for combination in itertools.product(*(found[name] for name in names)):
            yield tuple(zip(names, combination, strict=True))


@dataclass(frozen=True, slots=True)
class _States:
    """What a measurement says of MRTD and RTMRs, by the profile of its manifest."""

    tag_type: Any
    intel: bool

    def of(self, measurement: Mapping[Any, Any], left_out: dict[str, None]) -> Iterator[tuple[str, list[str]]]:
        key = measurement.get(KEY)
        key = key.lower() if isinstance(key, str) else key
        if AUTHORITY in measurement:
            left_out["authorized-by"] = None
        for number, value in measurement[VALUES].items():
            if number == DIGESTS and (register := self._register(key)):
                yield from self._accepted(register, value)
            elif number == MRTEE and self.intel and key is None:
                yield from self._accepted("mr_td", value)
            elif number == REGISTERS and key is None:
                for label, digests in value.items():
                    name = f"rtmr{str(label).lower().removeprefix('rtmr')}"
                    if self._register(name):
                        yield from self._accepted(name, digests)
                    else:
                        left_out[f"integrity register {_text(label, self.tag_type)}"] = None
            else:
                whose = "" if key is None else f" of {_text(key, self.tag_type)}"
                left_out[f"value {_text(number, self.tag_type)}{whose}"] = None

    def _register(self, key: Any) -> str:
        """The register that `digests` under this key are of; empty when they are of something else."""
        if isinstance(key, str) and key in ("rtmr0", "rtmr1", "rtmr2", "rtmr3"):
            return key
        if key in _MRTD_KEYS and (key != 83 or self.intel):
            return "mr_td"
        return ""

    def _accepted(self, register: str, value: Any) -> Iterator[tuple[str, list[str]]]:
        """Nothing where no digest has 48 bytes: then it is none of a trust domain's."""
        digests = list(dict.fromkeys(self._digests(value)))
        if digests:
            yield register, digests

    def _digests(self, value: Any) -> Iterator[str]:
        """Hex of the one 48-byte digest in a digest or a list of [algorithm, digest]; of each member of a set."""
        if isinstance(value, self.tag_type) and value.tag == SET_EXPRESSION:
            operator, members = value.value
            if not self.intel or operator not in (EQUAL, MEMBER):
                raise ValueError(f"set operator {operator} names no accepted value")
            for member in members:
                yield from self._one([member])
        elif isinstance(value, self.tag_type) and value.tag == BYTES:
            yield from self._one([[None, value.value]])
        elif isinstance(value, bytes):
            yield from self._one([[None, value]])
        else:
            alone = len(value) == 2 and isinstance(value[1], bytes)  # [algorithm, digest], as Intel's examples write it
            yield from self._one([value] if alone else value)

    def _one(self, digests: Any) -> list[str]:
        found = [digest.hex() for _, digest in digests if len(digest) == SIZE]
        if len(found) > 1:
            raise ValueError("a list of digests is one value: it holds two of 48 bytes")
        return found


def _moment(value: Any) -> datetime | None:
    """A time of CBOR (tag 1, which cbor2 reads) or of CWT (a number of seconds)."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise TypeError(f"{value!r} is no time")
    return value.astimezone(UTC)


def _words(environment: Mapping[str, str]) -> str:
    """As the options that name it."""
    return " ".join(f"--environment {shlex.quote(f'{name}={value}')}" for name, value in environment.items())


def _text(value: Any, tag_type: Any) -> str:
    """An id in the form in which people write it: dotted, as a UUID, in hex, or as it is; never a control character."""
    if isinstance(value, tag_type) and value.tag in (OID, BYTES, UEID, URI):
        value = _dotted(value.value) if value.tag == OID else value.value
    if isinstance(value, bytes):
        return value.hex()
    text = str(value) if isinstance(value, str | int | uuid.UUID) else repr(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"an identifier of {len(text)} characters, at most {MAX_TEXT}")
    return text if text.isprintable() else ascii(text)


def _dotted(encoded: bytes) -> str:
    """The BER content of an absolute OID (RFC 9090) as numbers and dots."""
    if not encoded or encoded[-1] & 0x80:
        raise ValueError("an object identifier is cut off")
    arcs, arc = [], 0
    for byte in encoded:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
