"""A broker with a policy for guests of Confidential Containers; a guest; tokens and log entries to look into."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import es256
from attestation.encoding import b64url
from simulator.broker_fixture import BrokerUnderTest
from simulator.domain import SimulatedTd
from simulator.machine import Machine
from tests.broker_world import FILES
from tests.kbs_client import Answer, KbsClient, over_http, unb64u

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = (ROOT / "policies" / "schema.cedarschema").read_bytes()
SECRET = b"hush, this is for guests"
NAME = "acme/open/a"
RULES = """
@id("admit")
permit (principal, action == Action::"Admit", resource == Tenant::"acme")
when { principal.simulated };

@id("kbs-open")
permit (principal, action == Action::"ReleaseSecret", resource in Path::"acme/open")
when { context.via == "kbs" };

@id("own-protocol")
permit (principal, action == Action::"ReleaseSecret", resource in Path::"acme/agents")
when { principal.simulated };

@id("never-top")
forbid (principal, action == Action::"ReleaseSecret", resource)
when { resource.labels.contains("top") };
"""


def bundle(rules: str = RULES, version: int = 1) -> dict[str, bytes]:
    files = {**FILES, "policy.cedar": rules}
    told = {name: text.replace("version = 1", f"version = {version}").encode() for name, text in files.items()}
    return {**told, "schema.cedarschema": SCHEMA}


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUnderTest]:
    machine = Machine.create(seed="kbs")
    with BrokerUnderTest(machine, tmp_path_factory.mktemp("kbs"), bundle=bundle(), tenant="acme") as served:
        served.put_secret(NAME, SECRET)
        served.put_secret("acme/open/top", SECRET, labels=("top",))
        served.put_secret("acme/agents/a", SECRET)
        yield served


def attester(td: SimulatedTd, *, log: bool = True) -> Callable[[bytes], tuple[bytes, bytes | None]]:
    return lambda report_data: (td.quote(report_data), td.event_log() + b"\xff" * 8 if log else None)


def guest(kbs: BrokerUnderTest, **members: Any) -> KbsClient:
    td = members.pop("td", None) or kbs.machine.launch("guest")
    return KbsClient(send=over_http(kbs.url), attester=attester(td), **members)


def attested(kbs: BrokerUnderTest, **members: Any) -> KbsClient:
    client = guest(kbs, **members)
    assert client.auth().status == 200
    assert client.attest().status == 200
    return client


def refused(answer: Answer, status: int, name: str, code: str) -> None:
    assert (answer.status, answer.error) == (status, name), answer.raw
    assert code in answer.json["detail"]


def header(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unb64u(token.split(".")[0]))
    return found


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unb64u(token.split(".")[1]))
    return found


def forged(token: str, key: ec.EllipticCurvePrivateKey, **changes: Any) -> str:
    """The same claims, signed by somebody who shows his own key in the header."""
    public = es256.jwk(es256.dump_public(key.public_key()))
    head = {**header(token), "jwk": {"alg": "ES256", **public}}
    signed = f"{b64url(json.dumps(head).encode())}.{b64url(json.dumps({**claims(token), **changes}).encode())}"
    return f"{signed}.{b64url(es256.sign(key, signed.encode()))}"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[BrokerUnderTest]:
    """A broker whose clock and policy a test may move."""
    with BrokerUnderTest(Machine.create(seed="own kbs"), tmp_path, bundle=bundle(), tenant="acme") as served:
        served.put_secret(NAME, SECRET)
        yield served


def entries(kbs: BrokerUnderTest, kind: str) -> list[dict[str, Any]]:
    return [json.loads(row.entry) for row in kbs.broker.audit.page(start=0, limit=1000, kind=kind)]
