"""Writes test vectors from the faults, for our own tests and for other verifiers.

Decides the file format and what goes in: every fault that is not huge, and good evidence of every kind. All of it
follows from one seed, so writing it again gives the same bytes. No private key is in it.

    python -m simulator.vectors tests/vectors
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from simulator.collateral import Documents
from simulator.faults import FAULTS
from simulator.machine import Machine
from simulator.registry import EVENT_LOG, Exhibit, Fault
from simulator.scene import Scene

SEED: Final = "cloister test vectors 1"
AT: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(64, 128))
HUGE: Final = 256 << 10
"""Bytes. Larger vectors are not stored; the faults still make them."""
README: Final = "README.md"

_MEMBERS: Final = tuple(field.name for field in fields(Documents))
_SPECS: Final = {
    "quote": "Intel TDX DCAP Quoting Library API, appendix A.3; Intel SGX ECDSA QuoteLib Reference",
    "chain": "Intel SGX PCK Certificate and CRL Profile Specification; RFC 5280",
    "signer": "Intel SGX PCK Certificate and CRL Profile Specification; RFC 5280",
    "crl": "Intel SGX PCK Certificate and CRL Profile Specification; RFC 5280",
    "collateral": "Intel PCS API v4: TCB info v3, enclave identity v2",
    "qe": "Intel quote verification library, 4.1.2.5.13 and 4.1.2.5.14",
    "module": "Intel quote verification library, 4.1.2.5.12",
    "tcb": "Intel quote verification library, 4.1.2.5.2",
    "binding": "REPORT_DATA is compared with what the verifier expects",
    "eventlog": "TCG PC Client Platform Firmware Profile; UEFI 2.11, chapter 38",
    "evidence": "the members that an agent sends beside its quote",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One vector, ready to be judged."""

    id: str
    why: str
    expect: str
    """`ok`, or the code of the refusal"""
    exhibit: Exhibit


def build() -> dict[str, str]:
    """File name → content: one JSON file per family of codes, `good.json`, and the README."""
    machine = Machine.create(seed=SEED)
    base = json.loads(machine.documents(at=AT).to_json())
    families: dict[str, list[dict[str, Any]]] = {"good": [_vector(v, base) for v in _good(machine)]}
    left_out: list[str] = []
    for fault in FAULTS.values():
        shown = fault.make(Scene(machine, report_data=REPORT_DATA, at=AT))
        if _size(shown) > HUGE:
            left_out.append(fault.name)
            continue
        vector = Vector(id=fault.name, why=fault.what, expect=str(fault.code), exhibit=shown)
        families.setdefault(fault.code.partition(".")[0], []).append(_vector(vector, base, fault))
    files = {
        f"{family}.json": json.dumps(
            {"root_pem": machine.root_pem.decode(), "collateral": base, "vectors": vectors}, indent=1
        )
        + "\n"
        for family, vectors in families.items()
    }
    return files | {README: _readme(families, left_out)}


def write(folder: Path) -> None:
    """Write all files, and nothing else, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build().items():
        (folder / name).write_text(content, encoding="utf-8")


def load(folder: Path) -> tuple[Vector, ...]:
    """All vectors in a folder that `write` filled."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return tuple(_loaded(entry, file["root_pem"], file["collateral"]) for file in files for entry in file["vectors"])


def _good(machine: Machine) -> Iterator[Vector]:
    """Evidence that nothing is wrong with, one of each kind."""

    def vector(name: str, why: str, scene: Scene, quote: bytes, tee: str = "tdx", log: bytes = b"") -> Vector:
        shown = scene.exhibit(quote, scene.documents(tee), log)
        return Vector(id=name, why=why, expect="ok", exhibit=shown)

    first, second, client = (
        Scene(machine, report_data=REPORT_DATA, at=AT, platform=index, options={"label": "good"}) for index in range(3)
    )
    td = first.td()
    for version, body in ((4, 2), (5, 2), (5, 3), (5, 4)):
        quote = td.quote(REPORT_DATA, version=version, body=body)
        yield vector(
            f"td-v{version}-body-{body}", f"version {version}, body type {body}", first, quote, log=td.event_log()
        )
    nested = first.td(partitioned=True).quote(REPORT_DATA)
    yield vector("td-extended", "version 5, body type 4, from an extended TDREPORT", first, nested)
    padded = first.td(pad_to=8_000).quote(REPORT_DATA)
    yield vector("td-padded", "zeros up to 8,000 bytes, as hosts with a fixed buffer send them", first, padded)
    yield vector("td-module-3", "another platform family, TDX module of version 3", second, second.quote())
    for version in (3, 5):
        quote = first.platform.sgx_quote(REPORT_DATA, version=version)
        yield vector(f"sgx-v{version}", f"an SGX enclave, version {version}", first, quote, "sgx")
    quote = client.platform.sgx_quote(REPORT_DATA)
    yield vector("sgx-processor-ca", "an SGX enclave of a client under the Processor CA", client, quote, "sgx")


def _size(shown: Exhibit) -> int:
    return len(shown.quote) + len(shown.collateral) + len(shown.event_log) + len(json.dumps(shown.evidence))


def _vector(vector: Vector, base: dict[str, str], fault: Fault | None = None) -> dict[str, Any]:
    shown = vector.exhibit
    with_log = fault is None or EVENT_LOG in fault.forms
    inputs: dict[str, Any] = {
        "quote": b64encode(shown.quote).decode(),
        "collateral": _changes(shown.collateral, base),
        "event_log": b64encode(shown.event_log).decode() if with_log and shown.event_log else None,
        "report_data": shown.report_data.hex(),
    }
    if shown.evidence is not None:
        inputs |= {"quote": None, "evidence": shown.evidence, "client_nonce": shown.client_nonce.hex()}
    return {
        "id": vector.id,
        "why": vector.why,
        "spec": _SPECS[vector.expect.partition(".")[0]] if fault else _SPECS["quote"],
        "source": f"simulator, seed {SEED!r}" + (f", fault {fault.name}" if fault else ""),
        "inputs": inputs,
        "at": datetime.fromtimestamp(shown.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expect": vector.expect,
    }


def _changes(text: str, base: dict[str, str]) -> dict[str, Any]:
    """What differs from the file's common collateral: members, or the whole text where that is no such JSON."""
    try:
        members = json.loads(text)
    except ValueError:
        return {"text": text}
    if set(members) != set(_MEMBERS):
        return {"text": text}
    return {name: value for name, value in members.items() if value != base[name]}


def _loaded(entry: dict[str, Any], root_pem: str, base: dict[str, str]) -> Vector:
    inputs = entry["inputs"]
    changes = inputs["collateral"]
    at = datetime.fromisoformat(entry["at"])
    shown = Exhibit(
        quote=b64decode(inputs["quote"] or ""),
        collateral=changes["text"] if "text" in changes else json.dumps(base | changes),
        event_log=b64decode(inputs["event_log"] or ""),
        report_data=bytes.fromhex(inputs["report_data"]),
        at=int(at.timestamp()),
        root_pem=root_pem.encode(),
        evidence=inputs.get("evidence"),
        client_nonce=bytes.fromhex(inputs.get("client_nonce", "")),
    )
    return Vector(id=entry["id"], why=entry["why"], expect=entry["expect"], exhibit=shown)


def _readme(families: dict[str, list[dict[str, Any]]], left_out: list[str]) -> str:
    rows = "\n".join(f"| `{family}.json` | {len(vectors)} |" for family, vectors in families.items())
    return f"""# Test vectors

Quotes, collateral and event logs with the code that a strict verifier refuses each with, or `ok`. All of them come from
the simulator and its named faults (`cloister sim fault --list`), from one seed:
`python -m simulator.vectors tests/vectors` writes these files again, byte for byte, and a test compares. No private key
is in them, and the root they chain to is worth nothing anywhere else.

| file | vectors |
| --- | --- |
{rows}

Each file has `root_pem` (the only trust anchor), `collateral` (nine members, CRLs and signatures in hex) and `vectors`:

| member | meaning |
| --- | --- |
| `id` | the fault's name |
| `why` | what is wrong |
| `spec` | where it says so |
| `source` | where the vector comes from |
| `inputs.quote` | base64; null where `inputs.evidence` holds it |
| `inputs.collateral` | the members that differ from the file's `collateral`; or `text`, all of the collateral file |
| `inputs.event_log` | base64 CCEL data, or null: none is judged |
| `inputs.report_data` | hex: the 64 bytes to expect |
| `inputs.evidence`, `inputs.client_nonce` | what an agent sends beside its quote |
| `at` | when it is judged |
| `expect` | `ok`, or the code of the refusal where UpToDate alone is accepted |

Not stored because of their size: {", ".join(f"`{name}`" for name in left_out)}.
"""


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/vectors"))
