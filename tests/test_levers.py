"""What somebody without credentials can make a broker do by asking often: nothing that costs more than the answer."""

import asyncio
from pathlib import Path

import pytest

from broker.errors import BrokerCode
from broker.limits import Rates
from broker.readiness import Readiness
from broker.rootkey.methods import Keeping, Method
from broker.store.sql import SqlStore
from broker.wire.errors import WireCode
from tests.broker_world import World, outcome
from tests.test_broker_http import serving
from tests.test_broker_sealed import TIMEOUT_S, House, starting

FEW = Rates(source_per_s=1, source_burst=5)


@pytest.mark.asyncio
async def test_asking_whether_the_broker_is_ready_does_not_make_it_write(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    commits: list[int] = []
    world.broker.store.before_commit(lambda tx: commits.append(tx.log.size()))
    async with serving(world) as door:
        answers = await asyncio.gather(*(door.call("GET", "/readyz") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(commits) <= 5  # one a second
    await world.broker.close()


@pytest.mark.asyncio
async def test_a_store_that_fails_is_seen_again_when_the_answer_has_aged(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "a.db", mac_key=bytes(32))
    patient, eager = Readiness(stands_s=3600), Readiness(stands_s=-1)
    for readiness in (patient, eager):
        assert await outcome(readiness.writes(store)) == "ok"
    store.close()
    assert await outcome(patient.writes(store)) == "ok"
    assert await outcome(eager.writes(store)) == BrokerCode.STORE_UNAVAILABLE


# ── a broker that is still sealed ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.asyncio
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/unseal"), ("POST", "/v1/unseal:challenge")])
async def test_a_sealed_broker_reads_no_more_garbage_of_an_address_than_an_open_one(
    tmp_path: Path, method: str, path: str
) -> None:
    house = House(tmp_path, changes={"rates": FEW})
    house.keep(Keeping(method=Method.SHARES, threshold=2, count=3))
    async with starting(house) as start:
        answers = [await start.http.request(method, path, content=b"garbage") for _ in range(7)]
        assert [answer.json()["code"] for answer in answers[:5]] == [WireCode.BODY_NOT_JSON] * 5
        assert answers[6].json()["code"] == BrokerCode.LIMIT_SOURCE
        assert int(answers[6].headers["retry-after"]) >= 1
        assert (await start.http.get("/healthz")).status_code == 200


@pytest.mark.asyncio
async def test_who_brings_shares_to_a_sealed_broker_is_not_held_up(tmp_path: Path) -> None:
    house = House(tmp_path, changes={"rates": Rates(source_per_s=1, source_burst=10)})
    house.keep(Keeping(method=Method.SHARES, threshold=6, count=6))
    async with starting(house) as start:
        for share in house.shares:
            assert (await start.bring(share))[0] == 200
        await asyncio.wait_for(start.opened, TIMEOUT_S)
