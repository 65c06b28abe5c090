"""Trust domains of brokers by command: set up, pinned, contradicted by a trust file, not there."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.commands.setup import initialise
from broker.config import Settings, load
from broker.domains import open_domain
from broker.errors import BrokerCode, BrokerError
from broker.service import build
from broker.wire.challenge import ChallengeResponse
from enclave.session import State
from enclave.trustfile import TrustFile
from simulator.machine import Machine
from simulator.pcs_server import PcsServer
from tests.attested_world import session_of
from tests.broker_world import URL

ROOT = Path(__file__).resolve().parent.parent


# ── the commands ───────────────────────────────────────────────────────────────────────────────────────────────────


def cloister(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_a_broker_is_set_up_measured_pinned_and_served_in_a_domain_by_commands_alone(tmp_path: Path) -> None:
    machine, folder = tmp_path / "machine", tmp_path / "broker"
    root = tmp_path / "root.pem"
    root.write_bytes(Machine.create(machine).root_pem)
    with socket.socket() as probe, PcsServer(Machine.open(machine)) as pcs:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        cloister("broker", "init", str(folder), "--root", str(root), "--port", port, "--pcs-url", pcs.url)
        values = cloister("broker", "reference", "--trust-domain", "simulated", "--machine", str(machine))
        trust = json.loads((folder / "trust.json").read_text())
        trust["broker"]["reference"] = json.loads(values)
        (folder / "trust.json").write_text(json.dumps(trust))
        probe.close()
        serve = ["broker", "serve", str(folder), "--json", "--trust-domain", "simulated", "--machine", str(machine)]
        line = [sys.executable, "-m", "cloister", *serve]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                url = json.loads(process.stdout.readline())["broker_url"]
                session = session_of(TrustFile.load(folder / "trust.json"))
                question = session.ask(os.urandom(32)).to_dict()
                answer = httpx2.post(f"{url}/v1/challenges", json=question, trust_env=False).json()
                session.challenged(ChallengeResponse.from_dict(answer))
            finally:
                process.terminate()
        assert session.state is State.CHALLENGED


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda members: members.update(broker={"id": "00" * 32}), "another broker"),
        (lambda members: members["broker"].update(id="00" * 32), "SHA-256 of broker.log_key"),
        (lambda members: members.update(roots={"intel": True}), "other roots"),
        (lambda members: members["administrators"].update(keys=[]), "administrators"),
        (lambda members: members.pop("roots"), "roots must name"),
    ],
    ids=["broker", "log key", "roots", "administrators", "malformed"],
)
def test_a_trust_file_that_contradicts_the_broker_stops_its_start(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    machine = Machine.create(seed="contradiction")
    root = tmp_path / "root.pem"
    root.write_bytes(machine.root_pem)
    made = initialise(
        tmp_path / "broker",
        public_url=URL,
        host="127.0.0.1",
        port=8443,
        tenant="dev",
        kind="dev",
        profile="development",
        pcs_url="http://127.0.0.1:1",
        roots_file=root,
        at=machine.clock.now(),
    )
    members = json.loads(made.trust_file.read_text())
    change(members)
    made.trust_file.write_text(json.dumps(members))
    settings = load(made.folder / "broker.toml", {"CLOISTER_BROKER_SERVER_TRUST_DOMAIN": "simulated"})
    assert settings.trust_domain == "simulated"
    with pytest.raises(BrokerError) as refused:
        asyncio.run(build(settings, collateral=machine.as_source(), domain=machine.launch("broker")))
    assert refused.value.code is BrokerCode.CONFIG_INVALID
    assert word in refused.value.detail


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"trust_domain": "cloud"}, "server.trust_domain"),
        ({"trust_domain": "tdx"}, "trust.file"),
        ({"spiffe_trust_domain": "Upper.Case"}, "identity.trust_domain"),
    ],
    ids=str,
)
def test_settings_about_domains_are_checked(change: dict[str, Any], word: str) -> None:
    with pytest.raises(BrokerError) as refused:
        Settings(public_url=URL, bundles=(ROOT,), **change)
    assert word in refused.value.detail


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("cloud",), "one of"), (("simulated",), "--machine"), (("tdx",), "tdx")],
    ids=["unknown", "no machine", "no hardware"],
)
def test_a_trust_domain_that_is_not_there_is_named(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(BrokerError) as refused:
        open_domain(*arguments)
    assert refused.value.code is BrokerCode.CONFIG_INVALID
    assert word in refused.value.detail
