"""A canary secret, looked for everywhere that it has no business: files, logs, answers, metrics, a core."""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from broker.app import create_app
from broker.rest.routes import ENDPOINTS
from broker.rootkey import keyfile
from broker.rootkey.methods import Keeping, Method, create, load
from broker.telemetry import JsonLines
from tests.broker_world import URL, World, outcome
from tests.test_broker_opening import made

CANARY = b"canary-7f3a91c2-the-value-that-must-not-sing"
ROOT = Path(__file__).resolve().parent.parent


def forms(value: bytes) -> tuple[bytes, ...]:
    """As it is, and as text usually carries it, at each of the three offsets of base64."""
    found = [value, value.hex().encode(), value.hex().upper().encode()]
    for shift in range(3):
        padded = b"\0" * shift + value
        plain, url = base64.b64encode(padded), base64.urlsafe_b64encode(padded)
        found += [text[4 if shift else 0 : -4] for text in (plain, url)]
    return tuple(found)


def sings(value: bytes, where: bytes) -> bool:
    return any(form in where for form in forms(value))


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    return ((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def test_the_search_finds_what_it_looks_for() -> None:
    for shift in range(3):
        assert sings(CANARY, b"xx" + base64.b64encode(b"y" * shift + CANARY + b"tail"))
    assert sings(CANARY, json.dumps({"a": CANARY.decode()}).encode())
    assert not sings(CANARY, os.urandom(4096))


@pytest.mark.asyncio
async def test_a_secret_stands_in_no_file_no_log_and_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world = await World.make(tmp_path, database=True)
    await world.put("acme/open/canary", CANARY)
    await world.put("acme/shut/canary", CANARY)
    agent = await world.admitted()
    assert (await agent.release("acme/open/canary"))[1] == CANARY
    assert await outcome(agent.release("acme/shut/canary")) != "ok"
    answers = [path.read_bytes() for path in tmp_path.glob("broker.db*")]
    transport = httpx2.ASGITransport(app=create_app(world.broker, background=False))
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
        for endpoint in ENDPOINTS:
            path = endpoint.path.replace("{name:path}", "acme/open/canary").replace("{tile:path}", "0/000")
            for body in (b"", CANARY, json.dumps({"value": CANARY.decode(), CANARY.decode(): 1}).encode()):
                answer = await http.request(endpoint.method, path.replace("{index:int}", "0"), content=body)
                answers += [answer.content, repr(dict(answer.headers)).encode()]
        answers.append((await http.get("/metrics")).content)
    answers += [JsonLines().format(record).encode() for record in caplog.records]
    await world.broker.administration.destroy_secret(world.settings.admins[0], "acme/open/canary", None)
    await world.broker.close()
    answers += [raw for _, raw in files(tmp_path)]
    assert len(answers) > 100
    assert not [answer[:80] for answer in answers if sings(CANARY, answer)]


@pytest.mark.parametrize("method", [Method.PASSPHRASE, Method.SHARES])
def test_a_root_key_that_is_kept_stands_in_no_file(tmp_path: Path, method: Method) -> None:
    """Neither the key nor what comes from it: found by moving it to a bare key file elsewhere."""
    path = tmp_path / "kept" / "root.json"
    path.parent.mkdir()
    wish = (
        Keeping(method=method, passphrase=b"horse")
        if method is Method.PASSPHRASE
        else Keeping(method=method, threshold=2, count=3)
    )
    _, shares = create(path, wish)
    from broker.rootkey.holders import read_share
    from broker.rootkey.methods import migrate

    brought = [read_share(share) for share in shares]
    copy = tmp_path / "bare.json"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    migrate(copy, Keeping(), passphrase=b"horse", brought=brought)
    raw = base64.urlsafe_b64decode(keyfile.read(copy)["key"] + "=")
    root = load(copy)
    for _, text in files(path.parent):
        assert not sings(raw, text)
        assert not sings(root.derive("marks"), text)


@pytest.mark.slow
def test_a_serving_broker_that_is_aborted_leaves_neither_core_nor_canary(tmp_path: Path) -> None:
    place, _ = made(tmp_path)
    (tmp_path / "value").write_bytes(CANARY)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister", "broker", "serve", str(place.folder), "--json"],
            cwd=place.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    process.stdout.readline()
    assert place.run("secret", "put", "acme/a/b", str(tmp_path / "value"))["version"] == 1
    assert place.run("secret", "put", "acme/../b", str(tmp_path / "value"), status=1)["code"]
    process.send_signal(signal.SIGABRT)
    assert process.wait(20) == -signal.SIGABRT
    process.stdout.close()
    assert not list(place.folder.glob("core*"))
    found = [path.name for path, raw in files(place.folder) if sings(CANARY, raw)]
    assert found == []
    assert not sings(CANARY, log.read_bytes())
