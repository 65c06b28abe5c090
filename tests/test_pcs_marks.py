"""What a PCS client remembers of the newest that it saw, so that nothing older is taken again."""

import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from attestation.collateral import Collateral
from attestation.errors import Code, CollateralUnavailable
from attestation.net import store
from attestation.net.pcs import PcsClient
from attestation.net.store import CollateralFiles, Mark, Marks
from simulator.machine import Machine
from simulator.pcs_server import PcsServer
from tests.pcs_world import AT, DAY, FMSPC, PLATFORM, Clock, Service, code_of, made_client, replace_set, whole
from tests.pcs_world import client as client
from tests.pcs_world import clock as clock
from tests.pcs_world import service as service
from tests.pcs_world import world as world


def test_one_request_per_platform_is_under_way(client: PcsClient, service: Service) -> None:
    service.delay_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.fetch_for(PLATFORM), range(8)))
    assert found == [service.collateral] * 8
    assert len(service.asked) == 4


def test_while_one_refreshes_others_use_the_set_at_hand(
    client: PcsClient, service: Service, world: Machine, clock: Clock
) -> None:
    old = client.fetch_for(PLATFORM)
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    service.delay_s = 0.3
    with ThreadPoolExecutor(2) as pool:
        refreshing = pool.submit(client.fetch_for, PLATFORM)
        time.sleep(0.1)
        assert client.fetch_for(PLATFORM) == old
        assert refreshing.result() == service.collateral


# Rollback


def older_and_newer(world: Machine, what: str) -> tuple[Collateral, Collateral]:
    """Two sets that are both in force at AT + 2 days, the second newer in one part."""
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    parts = {
        "tcb_info": ("tcb_info", "tcb_info_signature"),
        "qe_identity": ("qe_identity", "qe_identity_signature"),
        "pck_crl": ("pck_crl",),
        "root_crl": ("root_ca_crl",),
    }
    return old, replace_set(old, **{name: getattr(new, name) for name in parts[what]})


@pytest.mark.parametrize("what", ["tcb_info", "qe_identity", "pck_crl", "root_crl"])
def test_an_older_part_than_seen_is_refused_by_this_process_and_the_next(
    what: str, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    old, new = older_and_newer(world, what)
    clock.now = AT + 2 * DAY
    service.collateral = new
    made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)
    (tmp_path / "tdx-90c06f000000-platform-standard.json").unlink()
    service.collateral = old
    fresh = made_client(service, world, tmp_path, clock)
    with pytest.raises(CollateralUnavailable) as caught:
        fresh.fetch_for(PLATFORM)
    assert caught.value.code == Code.COLLATERAL_ROLLBACK
    assert what in caught.value.detail


def test_a_restored_file_is_not_used_and_the_set_at_hand_outlives_a_rollback(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client = made_client(service, world, tmp_path, clock)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    client.fetch_for(PLATFORM)
    old_file, old = path.read_bytes(), service.collateral
    clock.now = AT + DAY
    service.collateral = new = world.collateral("tdx", FMSPC, at=clock.now)
    client.fetch_for(PLATFORM)
    path.write_bytes(old_file)
    service.collateral = old
    assert code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)) == Code.COLLATERAL_ROLLBACK
    clock.now = AT + 2 * DAY
    assert client.fetch_for(PLATFORM) == new


def test_without_a_folder_an_older_set_than_seen_is_refused_too(service: Service, world: Machine, clock: Clock) -> None:
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    clock.now = AT + 2 * DAY
    client = made_client(service, world, None, clock, max_age_s=0)
    service.collateral = new
    assert client.fetch_for(PLATFORM) == new
    service.collateral = old
    assert client.fetch_for(PLATFORM) == new
    clock.now = AT - timedelta(minutes=1)  # before the newer one begins
    assert code_of(lambda: client.fetch_for(PLATFORM)) in (Code.COLLATERAL_ROLLBACK, Code.COLLATERAL_STALE)
    marks = Marks(None)
    marks.raise_to({"a": Mark(5, 100)})
    assert code_of(lambda: marks.raise_to({"a": Mark(4, 100)})) == Code.COLLATERAL_ROLLBACK
    assert code_of(lambda: marks.check({"a": Mark(5, 99)})) == Code.COLLATERAL_ROLLBACK


@pytest.mark.parametrize("restarted", [False, True])
def test_marks_that_are_gone_are_made_again(
    restarted: bool, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    old, new = world.collateral("tdx", FMSPC, at=AT), world.collateral("tdx", FMSPC, at=AT + DAY)
    clock.now = AT + 2 * DAY
    service.collateral = new
    client.fetch_for(PLATFORM)
    (tmp_path / "marks.json").unlink()
    service.collateral = old
    if restarted:
        clock.now = AT + 3 * DAY  # so that the set on disk is due
        client = made_client(service, world, tmp_path, clock)
        assert client.fetch_for(PLATFORM) == new
        clock.now = AT + 5 * DAY
    else:
        (tmp_path / "tdx-90c06f000000-platform-standard.json").unlink()
        clock.now = AT + 4 * DAY
    assert client.fetch_for(PLATFORM) == new
    assert any("/tcb?" in target for target in service.asked[4:]), "the older set was offered"


def test_marks_are_made_again_of_ended_sets_and_of_every_channel_but_not_of_unsigned_ones(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)
    made_client(service, world, tmp_path, clock, channel="early").fetch_for(PLATFORM)
    before = json.loads((tmp_path / "marks.json").read_bytes().partition(b"\n")[2])["marks"]
    forged = replace_set(
        service.collateral,
        tcb_info=service.collateral.tcb_info.replace('"tcbEvaluationDataNumber":', '"tcbEvaluationDataNumber":9'),
    )
    CollateralFiles(tmp_path).save("tdx-90c06f000000-processor-standard", forged, AT)
    CollateralFiles(tmp_path).save("tdx-000000000000-platform-standard", service.collateral, AT)
    CollateralFiles(tmp_path).save("notes", service.collateral, AT)
    (tmp_path / "marks.json").unlink()
    clock.now = AT + 60 * DAY
    made = made_client(service, world, tmp_path, clock)
    assert made._marks_of_files() == {key: Mark(*mark) for key, mark in before.items()}


def test_a_lock_that_is_never_let_go_ends_in_a_code(
    client: PcsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_PATIENCE_S", 0.1)
    with (tmp_path / "marks.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    assert code_of(lambda: client.fetch_for(PLATFORM)) == "ok"


def test_a_newer_evaluation_set_of_one_channel_says_nothing_about_the_other(tmp_path: Path, clock: Clock) -> None:
    world = Machine.create(seed=12)
    world.clock.set(AT)
    world.recover("publish", at=AT)
    with PcsServer(world) as server:
        for channel in ("early", "standard", "early"):
            client = PcsClient(server.url, tmp_path, roots=world.roots, now=clock, channel=channel)
            numbers = json.loads(client.fetch_for(PLATFORM).tcb_info)["tcbEvaluationDataNumber"]
            assert numbers == world.ledger(AT).current(channel).number


def test_unsigned_collateral_leaves_no_mark(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path
) -> None:
    good = service.collateral
    service.collateral = replace_set(
        good, tcb_info=good.tcb_info.replace('"tcbEvaluationDataNumber":', '"tcbEvaluationDataNumber":9')
    )
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ANSWER
    assert not (tmp_path / "marks.json").exists()
    service.collateral = good
    assert client.fetch_for(PLATFORM) == good


def test_marks_only_rise_and_number_and_date_count_by_themselves(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.raise_to({"a": Mark(5, 100)})
    marks.raise_to({"a": Mark(6, 100), "b": Mark(1, 1)})
    for older in (Mark(5, 200), Mark(7, 99), Mark(0, 0)):
        assert code_of(lambda older=older: marks.raise_to({"a": older})) == Code.COLLATERAL_ROLLBACK  # type: ignore[misc]
        assert code_of(lambda older=older: Marks(tmp_path).check({"a": older})) == Code.COLLATERAL_ROLLBACK  # type: ignore[misc]
    Marks(tmp_path).check({"a": Mark(6, 100), "b": Mark(1, 1), "c": Mark(0, 0)})


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"junk",
        b"\xff\xfe\n{}",
        b"0" * 64 + b"\n{}",
        whole({}),
        whole({"marks": []}),
        whole({"marks": {"a": [float("inf"), 1]}}),
        whole({"marks": {"a": [float("nan"), 1]}}),
        whole({"marks": {"a": [1.5, 1]}}),
        whole({"marks": {"a": ["1", 1]}}),
        whole({"marks": {"a": [True, 1]}}),
        whole({"marks": {"a": [1]}}),
        whole({"marks": {"a": 1}}),
    ],
    ids=repr,
)
def test_damaged_marks_refuse_until_somebody_has_looked(damage: bytes, client: PcsClient, tmp_path: Path) -> None:
    (tmp_path / "marks.json").write_bytes(damage)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_ROLLBACK


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error_with_a_code(
    service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    tmp_path.chmod(0o500)
    assert code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)).startswith("collateral.")
    tmp_path.chmod(0o700)
