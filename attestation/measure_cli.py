"""`cloister measure IMAGE`: what a trust domain started from this image will report, printed or as JSON.

Decides how the prediction is shown and which exit status says what: 0 fine, 2 a file that can't be read or a wrong
option, 3 an image or event log that is malformed. How measurements come about is `measure`'s business; the options of
the command line are parsed in `cli`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from attestation.errors import MEANING, MalformedEvidence
from attestation.eventlog import MAX_LOG
from attestation.measure import MAX_IMAGE, Section, Variant, configuration_digest, mrtd, registers, sections

FINE: Final = 0
USAGE: Final = 2
MALFORMED: Final = 3


def measure(
    image: Path,
    *,
    variant: str = Variant.SINGLE_PASS,
    event_log: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print MRTD of `image` (both variants; `variant` chooses the one called `mrtd`) and, with `event_log`, the RTMRs.

    Returns the exit status. The JSON object has `ok`, `code`, `detail`, `image_sha384`, `variant`, `mrtd`, `variants`
    (variant → MRTD), `cfv_sha384`, `sections`, `rtmrs`; unknown members are null.
    """
    if variant not in list(Variant):
        return _usage(f"no variant {variant!r}; there are {' and '.join(Variant)}")
    try:
        content = _read(image, MAX_IMAGE)
        log = None if event_log is None else _read(event_log, MAX_LOG)
    except OSError as error:
        return _usage(f"cannot read {error.filename}: {error.strerror}")
    try:
        found = predict(content, variant=variant, event_log=log)
    except MalformedEvidence as error:
        found = _nothing() | {"ok": False, "code": str(error.code), "detail": error.detail}
        if not as_json:
            print(f"cloister measure: {error}\n  what to do: {MEANING[error.code][1]}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2))
    elif found["ok"]:
        print("\n".join(_lines(found)))
    return FINE if found["ok"] else MALFORMED


def predict(image: bytes, *, variant: str = Variant.SINGLE_PASS, event_log: bytes | None = None) -> dict[str, Any]:
    """The JSON object of `measure`. Raises MalformedEvidence, `image.*` or `eventlog.*`."""
    import hashlib

    by_variant = {str(each): mrtd(image, each).hex() for each in Variant}
    configuration = configuration_digest(image)
    return _nothing() | {
        "ok": True,
        "image_sha384": hashlib.sha384(image).hexdigest(),
        "variant": str(Variant(variant)),
        "mrtd": by_variant[variant],
        "variants": by_variant,
        "cfv_sha384": None if configuration is None else configuration.hex(),
        "sections": [_section(section) for section in sections(image)],
        "rtmrs": None if event_log is None else [value.hex() for value in registers(event_log)],
    }


def _nothing() -> dict[str, Any]:
    names = ("code", "detail", "image_sha384", "variant", "mrtd", "variants", "cfv_sha384", "sections", "rtmrs")
    return {"ok": False, **dict.fromkeys(names)}


def _section(section: Section) -> dict[str, Any]:
    return {
        "type": section.type.name,
        "data_offset": section.data_offset,
        "raw_size": section.raw_size,
        "address": section.address,
        "memory_size": section.memory_size,
        "measured": section.measured,
        "added_later": section.added_later,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    names = [found["variant"], *(str(name) for name in Variant if name != found["variant"])]
    lines = [f"MRTD {name:<12} {found['variants'][name]}   {_WHERE[name]}" for name in names]
    lines += ["", "section       address           memory      from file                measured"]
    for row in found["sections"]:
        extent = f"{row['data_offset']:#x} + {row['raw_size']:#x}" if row["raw_size"] else "-"
        measured = "later, not at all" if row["added_later"] else "contents" if row["measured"] else "address alone"
        lines.append(f"{row['type']:<13} {row['address']:#012x} {row['memory_size']:#12x}      {extent:<24} {measured}")
    if found["cfv_sha384"]:
        lines += ["", f"SHA-384 of the configuration volume, an event of RTMR0: {found['cfv_sha384']}"]
    lines.append("")
    lines += [f"RTMR{index}             {value}" for index, value in enumerate(found["rtmrs"] or ())]
    if not found["rtmrs"]:
        lines.append("RTMRs: give --event-log with the log of a boot that you trust.")
    return [*lines, "MRTD covers the firmware code only: pin RTMR0 to RTMR2 as well."]


_WHERE: Final[dict[str, str]] = {
    Variant.SINGLE_PASS: "Linux KVM, QEMU 9 and later, Google",
    Variant.TWO_PASS: "Intel's QEMU 8 fork",
}


def _read(path: Path, limit: int) -> bytes:
    """At most one byte more than `limit`, so that what is too large is refused as such and never read whole."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def _usage(message: str) -> int:
    print(f"cloister measure: {message}", file=sys.stderr)
    return USAGE
