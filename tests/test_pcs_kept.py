"""What a PCS client keeps: files that are whole, used again, refreshed in time, and never handed out past their end."""

import json
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import Code
from attestation.net.pcs import PcsClient
from attestation.net.store import CollateralFiles
from simulator.machine import Machine
from tests.pcs_world import AT, DAY, FMSPC, PLATFORM, Clock, Service, Stuck, code_of, made_client, whole
from tests.pcs_world import client as client
from tests.pcs_world import clock as clock
from tests.pcs_world import service as service
from tests.pcs_world import world as world

# Keeping


def test_what_was_fetched_is_used_again_and_by_the_next_process(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    assert client.fetch_for(PLATFORM) == service.collateral
    assert made_client(service, world, tmp_path, clock).fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == 4


def test_files_are_private_and_written_whole(client: PcsClient, tmp_path: Path) -> None:
    client.fetch_for(PLATFORM)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["marks.json", "marks.lock", "tdx-90c06f000000-platform-standard.json"]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap", "junk", "directory"])
def test_a_damaged_file_is_as_good_as_none(
    damage: str, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    raw = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        edits = {
            "flip": raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
            "cut": raw[:-1],
            "empty": b"",
            "swap": raw.partition(b"\n")[0] + b"\n{}",
            "junk": b"\xff" * 100,
        }
        path.write_bytes(edits[damage])
    before = len(service.asked)
    again = made_client(service, world, tmp_path, clock)
    if damage == "directory":
        assert code_of(lambda: again.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
    else:
        assert again.fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == before + 4


@pytest.mark.parametrize("fetched_at", [float("nan"), float("inf"), float("-inf"), "soon", True, None, "future"])
def test_a_file_that_was_fetched_at_no_time_or_in_the_future_is_as_good_as_none(
    fetched_at: object, client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    path = tmp_path / "tdx-90c06f000000-platform-standard.json"
    kept = json.loads(path.read_bytes().partition(b"\n")[2])
    path.write_bytes(whole(kept | {"fetched_at": AT.timestamp() + 3600 if fetched_at == "future" else fetched_at}))
    before = len(service.asked)
    assert made_client(service, world, tmp_path, clock).fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) == before + 4


def test_a_clock_that_was_set_back_does_not_stop_refreshes(client: PcsClient, service: Service, clock: Clock) -> None:
    clock.now = AT + timedelta(hours=2)
    client.fetch_for(PLATFORM)
    asked = len(service.asked)
    clock.now = AT + timedelta(hours=1)
    service.statuses = [404] * 3
    assert client.fetch_for(PLATFORM) == service.collateral
    assert len(service.asked) > asked
    clock.now = AT + timedelta(minutes=30)  # before the failure, and the pause after it
    asked = len(service.asked)
    client.fetch_for(PLATFORM)
    assert len(service.asked) > asked


def test_a_set_that_ends_while_its_refresh_hangs_is_not_handed_out(
    service: Service, world: Machine, clock: Clock
) -> None:
    end = datetime.fromisoformat(json.loads(service.collateral.tcb_info)["nextUpdate"])

    def too_late() -> None:
        clock.now = end + timedelta(seconds=25)

    stuck = Stuck(too_late)
    stuck.go.set()
    client = made_client(service, world, None, clock)
    client.fetch_for(PLATFORM)
    clock.now = end - timedelta(seconds=1)
    assert client._at_hand(PLATFORM.key("standard")), "still in force, and due"
    client._transport = stuck
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE


def test_a_set_that_ends_while_it_is_kept_is_not_handed_out(
    service: Service, world: Machine, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CollateralFiles.save

    def slowly(*arguments: Any) -> None:
        save(*arguments)
        clock.now = AT + 31 * DAY

    monkeypatch.setattr(CollateralFiles, "save", slowly)
    client = made_client(service, world, tmp_path, clock)
    assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_STALE


def test_a_file_of_another_root_is_not_used(client: PcsClient, service: Service, tmp_path: Path, clock: Clock) -> None:
    client.fetch_for(PLATFORM)
    other = Machine.create(seed=10)
    service.collateral = other.collateral("tdx", FMSPC, at=AT)
    assert made_client(service, other, tmp_path, clock).fetch_for(PLATFORM) == service.collateral


def test_a_day_old_set_is_refreshed_and_kept_if_that_fails(
    client: PcsClient, service: Service, world: Machine, clock: Clock
) -> None:
    first = client.fetch_for(PLATFORM)
    clock.now = AT + DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    second = client.fetch_for(PLATFORM)
    assert second != first
    clock.now = AT + 2 * DAY
    service.statuses = [500] * 1000
    assert client.fetch_for(PLATFORM) == second
    asked = len(service.asked)
    assert client.fetch_for(PLATFORM) == second
    assert len(service.asked) == asked, "a failed refresh is not repeated at once"
    clock.now += timedelta(seconds=61)
    client.fetch_for(PLATFORM)
    assert len(service.asked) > asked


def test_a_set_near_its_end_is_refreshed_whatever_its_age(service: Service, world: Machine, clock: Clock) -> None:
    patient = made_client(service, world, None, clock, max_age_s=1e9)
    patient.fetch_for(PLATFORM)
    asked = len(service.asked)
    clock.now = AT + 20 * DAY
    patient.fetch_for(PLATFORM)
    assert len(service.asked) == asked
    clock.now = AT + 27 * DAY
    service.collateral = world.collateral("tdx", FMSPC, at=clock.now)
    assert patient.fetch_for(PLATFORM) == service.collateral


def test_nothing_is_handed_out_past_its_end_or_before_it_begins(
    client: PcsClient, service: Service, world: Machine, tmp_path: Path, clock: Clock
) -> None:
    client.fetch_for(PLATFORM)
    for moment in (AT + 40 * DAY, AT - 2 * DAY):
        clock.now = moment
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_STALE
        service.statuses = [500] * 12
        assert code_of(lambda: client.fetch_for(PLATFORM)) == Code.COLLATERAL_UNREACHABLE
        service.statuses.clear()
        assert (
            code_of(lambda: made_client(service, world, tmp_path, clock).fetch_for(PLATFORM)) == Code.COLLATERAL_STALE
        )
