"""A broker that is sealed at start: what it answers, who opens it, and how a disk that was set back shows."""

import asyncio
import base64
import contextlib
import hashlib
import http.server
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.sealing import seal_to
from attestation.verifier import Verifier
from broker.commands.admin_client import AdminClient, AdminError
from broker.commands.unsealing import bring
from broker.config import Admin, Settings
from broker.domains import reference_values
from broker.errors import BrokerCode, BrokerError
from broker.opening import Opening
from broker.rootkey.holders import packed, read_share
from broker.rootkey.methods import Keeping, Method, create
from broker.rootkey.shares import Share
from broker.service import Broker, build
from broker.wire import dpop
from broker.wire.attested import BrokerReference, judge
from broker.wire.challenge import ChallengeResponse
from broker.wire.errors import WireError
from broker.wire.jose import b64u, thumbprint
from broker.wire.log import Checkpoint, raw_log_key, verify_consistency
from broker.wire.trustfile import render
from broker.wire.unseal import ShareOffer, UnsealStatus, share_info
from broker.witness import COSIGNATURE, Witness, _key_id
from simulator.machine import Machine
from tests.broker_world import write_bundle

TIMEOUT_S = 20


@dataclass
class House:
    """A folder, settings, administrators' keys, and a machine whose clock everybody uses."""

    folder: Path
    shares: tuple[Share, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    machine: Machine = field(default_factory=lambda: Machine.create(seed="sealed"))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    looker: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    port: int = 0
    domain: Any = None

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        write_bundle(self.folder / "policy")
        (self.folder / "trust.json").write_bytes(self.trust)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def trust(self) -> bytes:
        """What agents of this broker are given."""
        return render(tenant="acme", log_key=b"log key".ljust(32), roots_pem=(self.machine.root_pem,))

    def settings(self) -> Settings:
        members: dict[str, Any] = {
            "public_url": self.url,
            "port": self.port,
            "bundles": (self.folder / "policy",),
            "database": self.folder / "broker.db",
            "root_key_file": self.folder / "root.json",
            "admins": (
                Admin(name="ann", jkt=thumbprint(self.key.public_key())),
                Admin(name="ida", jkt=thumbprint(self.looker.public_key()), role="auditor"),
                Admin(name="tom", jkt="T" * 43, tenants=("acme",)),
            ),
        }
        return Settings(**(members | self.changes))

    def keep(self, keeping: Keeping) -> None:
        _, paths = create(self.folder / "root.json", keeping)
        self.shares = tuple(read_share(path) for path in paths)

    def opening(self) -> Opening:
        return Opening(
            settings=self.settings(),
            clock=self.machine.clock.now,
            collateral=self.machine.as_source(),
            roots=self.machine.roots,
            domain=self.domain,
        )

    async def built(self) -> Broker:
        """The broker without doors, as the development profile opens it."""
        return await build(
            replace(self.settings(), confirm_by="skipped"),
            clock=self.machine.clock.now,
            collateral=self.machine.as_source(),
            roots=self.machine.roots,
        )


@dataclass
class Start:
    """One start of it, with the sealed doors under a client."""

    house: House
    http: httpx2.AsyncClient
    opened: asyncio.Future[Broker]
    task: asyncio.Task[None]
    nonce: str | None = None

    async def status(self) -> UnsealStatus:
        return UnsealStatus.from_dict((await self.http.get("/v1/unseal")).json())

    async def bring(self, share: Share) -> tuple[int, dict[str, Any]]:
        status = await self.status()
        sealed = seal_to(status.suite, status.key, packed(share), info=share_info(status.key)).blob
        answer = await self.http.post("/v1/unseal", json=ShareOffer(sealed=sealed).to_dict())
        return answer.status_code, answer.json()

    async def confirm(self, note: str, by: ec.EllipticCurvePrivateKey | None = None) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"checkpoint": note}).encode()
        for _ in range(2):
            at_s = int(self.house.machine.clock.now().timestamp())
            how: dict[str, Any] = {"method": "POST", "url": f"{self.house.url}/v1/unseal:confirm", "body": body}
            proof = dpop.build(by or self.house.key, at_s=at_s, nonce=self.nonce, **how)
            answer = await self.http.post("/v1/unseal:confirm", content=body, headers={"cloister-admin": proof})
            self.nonce = answer.headers["dpop-nonce"]
            if answer.status_code != 401:
                break
        return answer.status_code, answer.json()


@contextlib.asynccontextmanager
async def starting(house: House) -> AsyncIterator[Start]:
    """The start, as far as its sealed doors; what follows is up to the test."""
    loop = asyncio.get_running_loop()
    sealed, opened = asyncio.Event(), loop.create_future()

    async def serving(broker: Broker, bound: socket.socket) -> None:
        bound.close()
        opened.set_result(broker)

    async def run() -> None:
        try:
            await house.opening().run(sealed=sealed.set, serving=serving)
        except BrokerError as error:
            opened.set_exception(error)

    task = asyncio.create_task(run())
    waiting = asyncio.create_task(sealed.wait())
    await asyncio.wait({waiting, opened}, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_S)
    async with httpx2.AsyncClient(base_url=house.url, timeout=TIMEOUT_S) as http:
        try:
            yield Start(house=house, http=http, opened=opened, task=task)
        finally:
            waiting.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if opened.done() and opened.exception() is None:
                await opened.result().close()


def refused(answer: tuple[int, dict[str, Any]]) -> str:
    assert answer[0] >= 400
    return str(answer[1]["code"])


# ── shares ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_t28_a_broker_of_shares_stays_sealed_until_enough_of_them_came(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.keep(Keeping(method=Method.SHARES, threshold=3, count=5))
    async with starting(house) as start:
        for share in (house.shares[4], house.shares[0], house.shares[4]):
            assert (await start.bring(share))[1]["state"] == "shares"
        assert (await start.status()).given == (1, 5)
        assert not start.opened.done()
        await start.bring(house.shares[2])
        broker = await asyncio.wait_for(start.opened, TIMEOUT_S)
        assert broker.audit.head().size > 0


@pytest.mark.asyncio
async def test_a_sealed_broker_answers_what_it_lacks_and_nothing_else(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=2))
    async with starting(house) as start:
        assert (await start.http.get("/healthz")).status_code == 200
        for method, path in (
            ("GET", "/readyz"),
            ("GET", "/metrics"),
            ("POST", "/v1/challenges"),
            ("POST", "/v1/attestations"),
            ("GET", "/v1/secrets"),
            ("GET", "/console"),
            ("DELETE", "/v1/unseal:confirm/x"),
        ):
            answer = await start.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, BrokerCode.ROOT_SEALED)
        for path in ("/v1/log/consistency?old=1", "/v1/log/consistency?old=1"):
            assert (await start.http.get(path)).json()["code"] == BrokerCode.ROOT_SEALED
        assert (await start.http.get("/v1/log/consistency?old=x")).json()["code"] == "body.field_invalid"


@pytest.mark.asyncio
async def test_a_wrong_share_is_refused_and_the_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path)
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=3))
    async with starting(house) as start:
        await start.bring(house.shares[0])
        bad = Share(set_id=house.shares[1].set_id, index=2, value=bytes(32))
        assert refused(await start.bring(bad)) == BrokerCode.ROOT_SHARE
        stray = await start.http.post("/v1/unseal", json=ShareOffer(sealed=secrets.token_bytes(200)).to_dict())
        assert stray.json()["code"] == BrokerCode.ROOT_SHARE
        assert (await start.status()).given == (1,)
        await start.bring(house.shares[2])
        await asyncio.wait_for(start.opened, TIMEOUT_S)
    assert b64u(house.shares[0].value) not in caplog.text


@pytest.mark.asyncio
async def test_a_holder_sees_where_the_share_goes(tmp_path: Path) -> None:
    """The key to which the share is sealed is bound in a quote over the holder's own nonce."""
    house = House(tmp_path, changes={"trust_file": tmp_path / "trust.json"})
    house.domain = house.machine.launch("broker", image="broker")
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=2))
    async with starting(house) as start:
        status = await start.status()
        assert status.attested
        nonce = secrets.token_bytes(32)
        raw = await start.http.post("/v1/unseal:challenge", json={"client_nonce": b64u(nonce)})
        answer = ChallengeResponse.from_dict(raw.json())
        answer.verify(answer.broker_id, client_nonce=nonce)
        assert answer.evidence is not None
        reference = BrokerReference.from_dict(reference_values(house.domain))
        verdict = judge(
            answer.evidence,
            answer.keys,
            reference=reference,
            verifier=Verifier(house.machine.roots),
            trust_file_digest=answer.evidence.trust_file_digest,
            at=house.machine.clock.now(),
        )
        assert answer.evidence.sealing_key == status.key == verdict.sealing_key


def trust_file(house: House, **changes: Any) -> Path:
    """What a holder believes: the machine's root, and this domain's registers."""
    path = house.folder / "holder.json"
    reference = reference_values(house.domain) | {"trust_files": [hashlib.sha256(house.trust).hexdigest()]} | changes
    members = json.loads(house.trust)
    members["broker"]["reference"] = reference
    path.write_text(json.dumps(members))
    return path


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "ok"),
        ({"mr_td": "00" * 48}, "challenge.not_expected"),
        ({"trust_files": []}, "challenge.evidence_mismatch"),
        ({"platforms": ["00" * 16]}, "challenge.not_expected"),
    ],
    ids=str,
)
@pytest.mark.asyncio
async def test_a_holder_brings_a_share_only_to_the_broker_that_the_trust_file_describes(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    house = House(tmp_path, changes={"trust_file": tmp_path / "trust.json"})
    house.domain = house.machine.launch("broker", image="broker")
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=2))
    share = next((tmp_path / "shares").glob("*-1.json"))
    caller = AdminClient(house.url, house.key)
    async with starting(house) as start:
        trust, at = trust_file(house, **changes), house.machine.clock.now()
        told = "ok"
        try:
            await asyncio.to_thread(bring, caller, share, None, trust, unattested=False, at=at)
        except (AdminError, WireError) as error:
            told = str(error.code)
        assert (told, (await start.status()).given) == (code, (1,) if code == "ok" else ())


@pytest.mark.asyncio
async def test_a_holder_brings_nothing_to_a_broker_that_shows_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=2))
    share = next((tmp_path / "shares").glob("*-1.json"))
    house.domain = house.machine.launch("broker", image="broker")
    trust = trust_file(house)
    house.domain = None
    async with starting(house) as start:
        caller = AdminClient(house.url, house.key)
        with pytest.raises(AdminError) as caught:
            await asyncio.to_thread(bring, caller, share, None, trust, unattested=False, at=house.machine.clock.now())
        assert caught.value.code == "root.unattested"
        assert (await start.status()).given == ()


# ── the newest checkpoint ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
async def test_a_restarted_broker_stays_sealed_until_an_operator_confirms_its_checkpoint(tmp_path: Path) -> None:
    house = House(tmp_path, changes={"confirm_by": "operator"})
    house.keep(Keeping())
    await (await house.built()).close()
    async with starting(house) as start:
        status = await start.status()
        assert status.state == "checkpoint"
        assert (await start.http.get("/readyz")).json()["code"] == BrokerCode.ROOT_SEALED
        assert refused(await start.confirm("another")) == BrokerCode.CHECKPOINT_CONFLICT
        assert refused(await start.confirm(status.checkpoint, by=house.looker)) == BrokerCode.ADMIN_ROLE
        stranger = ec.generate_private_key(ec.SECP256R1())
        assert refused(await start.confirm(status.checkpoint, by=stranger)) == BrokerCode.ADMIN_KEY_UNKNOWN
        unproved = await start.http.post("/v1/unseal:confirm", json={"checkpoint": status.checkpoint})
        assert unproved.json()["code"] == BrokerCode.ADMIN_PROOF_MISSING
        assert not start.opened.done()
        assert (await start.confirm(status.checkpoint))[0] == 200
        broker = await asyncio.wait_for(start.opened, TIMEOUT_S)
        started = json.loads(broker.audit.newest(kind="broker.started", limit=1)[0].entry)
        assert started["witness"] == f"security {thumbprint(house.key.public_key())}"


@pytest.mark.asyncio
async def test_nothing_is_written_before_the_checkpoint_is_confirmed(tmp_path: Path) -> None:
    house = House(tmp_path, changes={"confirm_by": "operator"})
    house.keep(Keeping())
    broker = await house.built()
    note = broker.audit.head().note
    await broker.close()
    async with starting(house) as start:
        assert (await start.status()).checkpoint == note
    async with starting(house) as start:
        assert (await start.status()).checkpoint == note


@pytest.mark.asyncio
async def test_t04_who_remembers_a_newer_checkpoint_sees_that_the_disk_was_set_back(tmp_path: Path) -> None:
    """Restored from a snapshot, the broker shows a log that is shorter than what somebody holds a receipt of."""
    house = House(tmp_path, changes={"confirm_by": "operator"})
    house.keep(Keeping())
    await (await house.built()).close()
    snapshot = (tmp_path / "broker.db").read_bytes()
    broker = await house.built()
    log_key, remembered = broker.audit.log_key, broker.audit.head().note
    await broker.close()
    (tmp_path / "broker.db").write_bytes(snapshot)
    async with starting(house) as start:
        shown = Checkpoint.open((await start.status()).checkpoint, log_key)
        known = Checkpoint.open(remembered, log_key)
        assert shown.size < known.size
        answer = await start.http.get(f"/v1/log/consistency?old={known.size}")
        assert answer.json()["code"] == BrokerCode.LOG_ENTRY_UNKNOWN


@pytest.mark.asyncio
async def test_who_remembers_an_older_checkpoint_gets_proof_that_the_newer_continues_it(tmp_path: Path) -> None:
    house = House(tmp_path, changes={"confirm_by": "operator"})
    house.keep(Keeping())
    broker = await house.built()
    log_key, old = broker.audit.log_key, Checkpoint.open(broker.audit.head().note, broker.audit.log_key)
    await broker.close()
    await (await house.built()).close()
    async with starting(house) as start:
        shown = Checkpoint.open((await start.status()).checkpoint, log_key)
        answer = (await start.http.get(f"/v1/log/consistency?old={old.size}")).json()
        proof = [base64.urlsafe_b64decode(item + "=") for item in answer["proof"]]
        verify_consistency(old.size, old.root, shown.size, shown.root, proof)


@pytest.mark.asyncio
async def test_the_development_profile_says_that_it_skipped_the_confirmation(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.keep(Keeping())
    broker = await house.built()
    assert json.loads(broker.audit.newest(kind="broker.started", limit=1)[0].entry)["witness"] == "skipped"
    await broker.close()


@pytest.mark.asyncio
async def test_a_production_broker_cannot_be_built_past_the_confirmation(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.keep(Keeping())
    settings = replace(house.settings(), confirm_by="operator")
    with pytest.raises(BrokerError) as caught:
        await build(settings, clock=house.machine.clock.now, collateral=house.machine.as_source())
    assert caught.value.code is BrokerCode.ROOT_SEALED


# ── a witness ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Tower:
    """A witness that remembers the longest log it has seen, as C2SP tlog-witness says."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    known: tuple[int, bytes] = (0, b"")
    asked: list[str] = field(default_factory=list)
    answer: Callable[["Tower", str], tuple[int, str]] | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def vkey(self) -> str:
        raw = raw_log_key(self.key.public_key())
        return f"tower+{_key_id('tower', raw).hex()}+{base64.b64encode(COSIGNATURE + raw).decode()}"

    def add(self, body: str) -> tuple[int, str]:
        self.asked.append(body)
        if self.answer is not None:
            return self.answer(self, body)
        head, _, note = body.partition("\n\n")
        old, *lines = head.split("\n")
        text = note.rpartition("\n\n")[0] + "\n"
        _, size_text, root_text, *_ = text.split("\n")
        size, root = int(size_text), base64.b64decode(root_text)
        if int(old.split(" ")[1]) != self.known[0]:
            return 409, f"{self.known[0]}\n"
        if self.known[0]:
            verify_consistency(*self.known, size, root, [base64.b64decode(line) for line in lines])
        self.known = size, root
        return 200, self.cosigned(text)

    def cosigned(self, text: str) -> str:
        now_s = int(self.clock().timestamp())
        stamp = now_s.to_bytes(8, "big")
        raw = raw_log_key(self.key.public_key())
        signature = self.key.sign(f"cosignature/v1\ntime {now_s}\n{text}".encode())
        return f"\u2014 tower {base64.b64encode(_key_id('tower', raw) + stamp + signature).decode()}\n"


@contextlib.contextmanager
def standing(tower: Tower) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = tower.add(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.asyncio
async def test_a_witness_lets_a_broker_start_by_itself_and_stops_one_whose_disk_was_set_back(tmp_path: Path) -> None:
    tower = Tower()
    with standing(tower) as url:
        changes = {"confirm_by": "witness", "witness_url": url, "witness_key": tower.vkey}
        house = House(tmp_path, changes=changes)
        tower.clock = house.machine.clock.now
        house.keep(Keeping())
        await (await house.built()).close()
        async with starting(house) as start:
            broker = await asyncio.wait_for(start.opened, TIMEOUT_S)
            assert (
                json.loads(broker.audit.newest(kind="broker.started", limit=1)[0].entry)["witness"] == "witness tower"
            )
        assert tower.known[0] > 0
        snapshot = (tmp_path / "broker.db").read_bytes()
        async with starting(house) as start:
            await asyncio.wait_for(start.opened, TIMEOUT_S)
        (tmp_path / "broker.db").write_bytes(snapshot)
        tower.known = tower.known[0] + 1, tower.known[1]
        async with starting(house) as start:
            with pytest.raises(BrokerError) as caught:
                await asyncio.wait_for(start.opened, TIMEOUT_S)
            assert caught.value.code is BrokerCode.CHECKPOINT_ROLLED_BACK


def forged(tower: Tower, body: str) -> tuple[int, str]:
    return 200, Tower().cosigned(body.partition("\n\n")[2].rpartition("\n\n")[0] + "\n")


def recorded(tower: Tower, body: str) -> tuple[int, str]:
    """What the witness said when this checkpoint was the newest, played back by whoever sits between."""
    now = tower.clock()
    tower.clock = lambda: now - timedelta(hours=1)
    return 200, tower.cosigned(body.partition("\n\n")[2].rpartition("\n\n")[0] + "\n")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (forged, BrokerCode.STORE_UNAVAILABLE),
        (recorded, BrokerCode.STORE_UNAVAILABLE),
        (lambda *_: (200, ""), BrokerCode.STORE_UNAVAILABLE),
        (lambda *_: (200, "\u2014 tower !!\n"), BrokerCode.STORE_UNAVAILABLE),
        (lambda *_: (500, ""), BrokerCode.STORE_UNAVAILABLE),
        (lambda *_: (409, "many"), BrokerCode.STORE_UNAVAILABLE),
        (lambda *_: (409, "999999"), BrokerCode.CHECKPOINT_ROLLED_BACK),
        (lambda *_: (422, ""), BrokerCode.CHECKPOINT_ROLLED_BACK),
    ],
)
@pytest.mark.asyncio
async def test_a_witness_that_does_not_vouch_confirms_nothing(tmp_path: Path, answer: Any, code: BrokerCode) -> None:
    house = House(tmp_path)
    house.keep(Keeping())
    broker = await house.built()
    tower = Tower(answer=answer, clock=house.machine.clock.now)
    with standing(tower) as url, pytest.raises(BrokerError) as caught:
        await Witness.of(url, tower.vkey).confirm(broker.audit, house.machine.clock.now)
    assert caught.value.code is code
    with pytest.raises(BrokerError) as caught:
        await Witness.of(url, tower.vkey).confirm(broker.audit, house.machine.clock.now)
    assert caught.value.code is BrokerCode.STORE_UNAVAILABLE
    await broker.close()


@pytest.mark.parametrize("key", ["", "a+b+c", "tower+00000000+" + base64.b64encode(bytes(33)).decode()])
def test_a_witness_key_has_its_form(key: str) -> None:
    with pytest.raises(BrokerError) as caught:
        Witness.of("http://w", key)
    assert caught.value.code is BrokerCode.CONFIG_INVALID
