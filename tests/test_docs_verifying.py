"""What docs/verifying.md shows runs as it stands."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from attestation import Code
from enclave import Agent
from policies.scaffold import starter
from simulator.agent_fixture import Agents
from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "verifying.md").read_text("utf-8")
EXPECTED = bytes(range(64))
AUDIENCE = "https://models.example"
PERMIT = f"""
@id("models")
permit (principal, action == Action::"IssueToken", resource == Tenant::"lab")
when {{ principal.simulated && context.audience == "{AUDIENCE}" }};
"""


def names_of(example: str) -> dict[str, Any]:
    found = re.search(rf"<!-- example: {example} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(seed="verifying")


@pytest.fixture
def broker(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerUnderTest]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    bundle = dict(starter("lab", tenant="lab", at=machine.clock.now()))
    bundle["policy.cedar"] += PERMIT.encode()
    with BrokerUnderTest(machine, tmp_path, bundle=bundle) as running:
        yield running


def test_the_library_judges_and_refuses_by_a_code(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from attestation import Verifier

    names = names_of("verify")
    raw, text, now = machine.launch("td").quote(EXPECTED), machine.collateral().to_json(), machine.clock.now()
    assert (
        names["judge"](raw, text, EXPECTED, now) == Code.CHAIN_ROOT
    )  # Intel's roots, and this is no machine of Intel's
    names["verifier"] = Verifier(machine.roots)
    assert names["judge"](raw, text, EXPECTED, now).startswith("UpToDate ")
    assert names["judge"](raw, text, bytes(63) + b"1", now) == Code.BINDING_REPORT_DATA
    assert names["judge"](raw[:100], text, EXPECTED, now) == Code.QUOTE_TRUNCATED


def test_the_shell_lines_run(tmp_path: Path) -> None:
    block = re.search(r"<!-- run: shell -->\n```console\n(.*?)```", PAGE, re.DOTALL)
    assert block
    script = "\n".join(line.removeprefix("$ ") for line in block[1].splitlines())
    cloister = f'cloister() {{ "{sys.executable}" -m cloister "$@"; }}\nset -e\n'
    done = subprocess.run(
        ["bash", "-c", cloister + script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TRUSTED" in done.stdout
    assert json.loads((tmp_path / "answer.json").read_text())["ok"] is True


def test_a_broker_is_asked_and_its_signed_answer_checked(broker: BrokerUnderTest, machine: Machine) -> None:
    names = names_of("rest")
    quote, nonce = machine.launch("td").quote(EXPECTED), "bm9uY2Utbm9uY2U"
    answer = names["ask"](broker.url, quote, EXPECTED, AUDIENCE, nonce)
    assert (answer["ok"], answer["code"]) == (True, "ok")
    claims = names["check"](broker.url, answer["result"], AUDIENCE, nonce, datetime.now(UTC))
    assert claims["ear_status"] in ("affirming", "warning")
    refused = names["ask"](broker.url, quote, bytes(64)[:-1] + b"1", AUDIENCE, nonce)
    assert (refused["ok"], refused["code"]) == (False, Code.BINDING_REPORT_DATA)


def test_a_body_that_is_wrong_is_answered_with_its_field(broker: BrokerUnderTest) -> None:
    names = names_of("rest")
    with pytest.raises(HTTPError) as caught:
        names["ask"](broker.url, b"x", b"too short", AUDIENCE, "nonce")
    problem = json.load(caught.value)
    assert caught.value.code == 400
    assert "report_data" in problem["detail"]


def test_a_stock_library_reads_an_agents_token(broker: BrokerUnderTest, machine: Machine) -> None:
    names = names_of("token")
    with Agents(broker) as agents:
        running = agents.start(Agent("caller"))
        issued = agents.run(running.agent.context().token(AUDIENCE))
        subject, jkt = names["subject_of"](broker.url, issued.token, AUDIENCE)
        assert (subject, subject.rpartition("/")[2]) == (running.subject, jkt)
