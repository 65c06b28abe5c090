"""What a lab says to the person in front of it: before it serves, while it serves, and when it cannot."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.errors import CloisterError
from broker.errors import BrokerCode
from simulator import lab as lab_module
from simulator.broker_fixture import BrokerUnderTest
from simulator.errors import MEANING, SimulatorCode, SimulatorError
from simulator.lablog import speak_to_people
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """A lab takes the loggers of its process for itself."""
    root = logging.getLogger("cloister")
    handlers, level, propagate = list(root.handlers), root.level, root.propagate
    yield
    root.handlers, root.level, root.propagate = handlers, level, propagate


@pytest.fixture
def said() -> io.StringIO:
    stream = io.StringIO()
    speak_to_people(stream)
    return stream


def test_a_refusal_is_one_line_with_its_reasons_below(said: io.StringIO) -> None:
    logging.getLogger("cloister.broker.release").warning(
        "secret.refused",
        extra={"resource": "lab/x", "subject": "agent/lab/k", "reasons": ["a: b", "c: d"], "correlation_id": "1"},
    )
    first, *reasons = said.getvalue().splitlines()
    assert first.split()[1:] == ["secret.refused", "agent/lab/k", "lab/x"]
    assert [line.strip() for line in reasons] == ["a: b", "c: d"]
    assert all(line.startswith("   ") for line in reasons)


def test_what_the_welcome_has_said_is_not_said_again(said: io.StringIO) -> None:
    for event in ("trust.root", "broker.attested"):
        logging.getLogger("cloister.broker").warning(event, extra={"sha256": "00"})
    assert said.getvalue() == ""


def test_strangers_cannot_drive_the_terminal_or_fill_it(said: io.StringIO) -> None:
    logging.getLogger("cloister.broker").warning("x", extra={"subject": "\x1b[2J\n" + "y" * 5000})
    assert "\x1b" not in said.getvalue()
    assert said.getvalue().count("\n") == 1
    assert len(said.getvalue()) < 500


def test_the_text_of_an_exception_is_not_logged(said: io.StringIO) -> None:
    logging.getLogger("cloister.broker").error("broker.internal", exc_info=ValueError("canary"))
    assert "ValueError" in said.getvalue()
    assert "canary" not in said.getvalue()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder.write_text("a file"), "File exists"),
        (lambda folder: (folder / "policy").mkdir(parents=True), "bundle.file_missing"),
        (lambda folder: _damaged(folder), SimulatorCode.MACHINE_DAMAGED),
        (lambda folder: _with_key(folder, b"no key"), BrokerCode.CONFIG_INVALID),
        (lambda folder: _with_key(folder, _pem(ec.generate_private_key(ec.SECP384R1()))), BrokerCode.CONFIG_INVALID),
    ],
    ids=["file", "policy", "machine", "no key", "key of another kind"],
)
def test_a_lab_that_cannot_start_says_why_and_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, code: str
) -> None:
    folder = tmp_path / "lab"
    assert callable(make)
    make(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert lab_module.main(["--dir", str(folder)]) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = capsys.readouterr()
    assert told.out == ""
    assert code in told.err
    assert "Traceback" not in told.err


def _damaged(folder: Path) -> None:
    (folder / "machine").mkdir(parents=True)
    Machine.open(folder / "machine", create=True)
    for file in (folder / "machine").iterdir():
        if file.suffix == ".json":
            file.write_text("{")


def _with_key(folder: Path, pem: bytes) -> None:
    folder.mkdir()
    (folder / "admin.pem").write_bytes(pem)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("line", [["nosuch.py"], ["--di", "x"]])
def test_a_wrong_command_line_starts_nothing(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lab_module.main(line)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_before_the_welcome_nothing_stands_on_stderr(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "lab", "--dir", str(tmp_path / "lab")],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_every_code_of_the_simulator_says_what_to_do() -> None:
    assert set(MEANING) == set(SimulatorCode)
    for code in SimulatorCode:
        assert SimulatorError(code, "x").remedy == MEANING[code][1]


def test_a_refused_secret_reaches_the_person_with_what_would_help(said: io.StringIO, tmp_path: Path) -> None:
    from simulator.agent_fixture import Agents, Peer

    machine = Machine.create(seed="words")
    with BrokerUnderTest(machine, tmp_path / "broker") as broker, Agents(broker) as agents:
        from enclave.agent import Agent

        peer = agents.add(Peer(agents, Agent("peer"), machine.launch("peer")))
        with pytest.raises(CloisterError):
            peer.secret("acme/of/others")
    assert "secret.refused" in said.getvalue()
    assert "policy.resource_of_another_tenant" in said.getvalue()
