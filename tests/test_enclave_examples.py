"""The examples are run as their own first lines say."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.errors import Code as AttestationCode
from enclave.launch import stage
from simulator.demo import vectors
from simulator.demo.operator import Operator
from simulator.lab import Lab
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@contextmanager
def run(lab: Lab, example: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    around = ["--machine", str(lab.machine_folder), "--broker", lab.broker_url, "--trust", str(lab.trust_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "run", str(EXAMPLES / example), "--simulated", *around, "--", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def wait_until_admitted(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if " runs as agent/" in line:
            return
    pytest.fail("".join(said))


def ended(process: subprocess.Popen[str]) -> int:
    """By itself: whoever has done what it was started for needs no Ctrl-C."""
    return process.wait(timeout=20)


def test_hello_is_answered_to_whoever_greets(lab: Lab) -> None:
    with run(lab, "hello.py") as hello:
        wait_until_admitted(hello)
        with run(lab, "greet.py", "Ada") as greet:
            assert [line.partition(", from agent/lab/")[0] for line in lines(greet, 1)] == ["Hello Ada"]
            assert ended(greet) == 0


def test_the_research_pair_reads_a_sealed_report(lab: Lab) -> None:
    key, nonce = AESGCM.generate_key(256), os.urandom(12)
    report = nonce + AESGCM(key).encrypt(nonce, b"It works.\nReally.", b"")
    Operator(lab.broker_url, lab.admin_key_file).put_secret("lab/research/report-key", key, labels=("board-only",))
    with run(lab, "research/researcher.py") as researcher:
        wait_until_admitted(researcher)
        with run(lab, "research/analyst.py", b64encode(report).decode()) as analyst:
            assert analyst.stdout is not None
            assert analyst.stdout.readline() == "It works. (3 words, labels ['board-only'])\n"
            assert ended(analyst) == 0


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def test_the_queue_books_each_order_once_and_refuses_nonsense(lab: Lab) -> None:
    with run(lab, "queue/worker.py") as worker:
        wait_until_admitted(worker)
        with run(lab, "queue/shop.py") as shop:
            assert lines(shop, 4) == ["A-1: 97 left", "A-2: 93 left", "A-1: 97 left", "A-3: order.no_pieces"]
            assert ended(shop) == 0


def test_the_tool_that_the_caller_approved_is_the_one_that_is_described() -> None:
    server = str(EXAMPLES / "tools" / "server.py")
    line = [sys.executable, "-m", "cloister", "run", server, "--tools"]
    said = json.loads(subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout)
    assert [tool["name"] for tool in said["tools"]] == ["find"]
    assert f'APPROVED = "{said["digests"]["find"]}"' in (EXAMPLES / "tools" / "caller.py").read_text()


def test_a_tool_is_called_only_if_it_is_the_code_that_was_named(lab: Lab) -> None:
    corpus = b"a red fox\na blue bird\nanother fox"
    Operator(lab.broker_url, lab.admin_key_file).put_secret("lab/tools/corpus", corpus, labels=("licensed",))
    with stage(EXAMPLES / "tools" / "server.py") as staged:
        digest = staged.digest.hex()
    with run(lab, "tools/server.py") as server:
        wait_until_admitted(server)
        with run(lab, "tools/caller.py", digest, "fox") as caller:
            assert lines(caller, 3) == ["1: a red fox", "3: another fox", "labels ['licensed']"]
        with run(lab, "tools/caller.py", "00" * 48, "fox") as wary:
            assert lines(wary, 2) == ["peer.not_accepted", "labels []"]


def test_hello_is_short() -> None:
    text = (EXAMPLES / "hello.py").read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 15


def test_a_real_quote_is_verified_in_three_lines(tmp_path: Path) -> None:
    found = vectors.find()
    if found is None:
        pytest.skip("no recorded Intel quotes here")
    (tmp_path / "quote").write_bytes(found.raw)
    (tmp_path / "collateral").write_text(found.collateral)
    arguments = [str(tmp_path / "quote"), str(tmp_path / "collateral"), found.at.isoformat()]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "verify.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("UpToDate "), done.stderr


def test_the_verification_example_refuses_by_a_code(tmp_path: Path) -> None:
    machine = Machine.create(seed="example")
    (tmp_path / "quote").write_bytes(machine.launch("agent").quote(bytes(range(64))))
    (tmp_path / "collateral").write_text(machine.collateral().to_json())
    line = [sys.executable, str(EXAMPLES / "verify.py"), str(tmp_path / "quote"), str(tmp_path / "collateral")]
    for arguments, told in ((line, str(AttestationCode.CHAIN_ROOT)), (line[:2], "python examples/verify.py")):
        done = subprocess.run(
            arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert told in done.stderr
        assert "Traceback" not in done.stderr
