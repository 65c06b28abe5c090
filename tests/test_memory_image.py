"""Who reads the whole memory of a broker finds nothing of what agents say to each other in ephemeral mailboxes."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from enclave import Agent, Context
from enclave.trustfile import TrustFile
from simulator.machine import Machine
from tests.test_broker_canary import sings

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 40  # the first as an envelope, the rest on a channel
PATIENCE_S = 60.0
LARGEST = 1 << 30


@dataclass
class Whisper:
    text: str


@contextmanager
def lab(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Process id of a running lab, and what it told."""
    command = [sys.executable, "-m", "cloister", "lab", "--json", "--dir", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


def image(pid: int) -> Iterator[bytes]:
    """Every readable region of a process's memory."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as regions, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for region in regions:
            where, access, *_ = region.split()
            start, end = (int(edge, 16) for edge in where.split("-"))
            if "r" in access and end - start < LARGEST:
                try:
                    memory.seek(start)
                    yield memory.read(end - start)
                except (OSError, OverflowError):  # the kernel's own pages
                    continue


async def whispered(told: dict[str, str], canary: str) -> int:
    """Two agents of this process talk by way of the lab's broker; how many messages were heard."""
    heard, everything = [], asyncio.Event()
    listener, speaker = Agent("listener"), Agent("speaker")

    @listener.on_message(Whisper)
    async def hear(_: Context, message: Whisper) -> None:
        heard.append(message.text)
        if len(heard) == MESSAGES:
            everything.set()

    machine, trust = Machine.open(Path(told["machine"])), TrustFile.load(Path(told["trust_file"]))
    try:
        for agent in (listener, speaker):
            await agent.start(domain=machine.launch(agent.name), trust=trust, broker_url=told["broker_url"])
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(MESSAGES):
                await speaker.context().send("listener", Whisper(text=canary))
            await everything.wait()
    finally:
        for agent in (speaker, listener):
            await agent.stop()
    return heard.count(canary)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read another process's memory here")
def test_the_memory_of_a_broker_shows_ciphertext_alone(tmp_path: Path) -> None:
    canary = f"canary-{secrets.token_hex(16)}"
    with lab(tmp_path / "lab") as (pid, told):
        assert asyncio.run(whispered(told, canary)) == MESSAGES
        regions = list(image(pid))
    assert any(b"lab/mail/listener" in region for region in regions), "this is the process that carried the mail"
    assert not any(sings(canary.encode(), region) for region in regions)
