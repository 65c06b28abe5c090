"""Recorded evidence: its format, replay under bundles and times, the forecast, and real platforms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.quote import Quote
from policies.bundle import bundle_of
from policies.engine import appraise_verdict, judge
from policies.errors import BundleError
from policies.forecast import forecast
from policies.model import Action, Admit, Context, Facts, ReleaseSecret
from policies.recording import Recording, collateral_file, read_recordings, verdict_of
from policies.replay import answer, replay
from policies.scaffold import measurements_of, starter
from tests.policy_world import AT, VECTORS, bundle, codes, files, machine, recorded, recording

ACTIONS: list[tuple[str, Action]] = [("Admit", Admit()), ("secret", ReleaseSecret("dev/secrets/k"))]


# The format


def test_a_recording_of_a_bound_domain_is_permitted() -> None:
    assert answer(bundle(), recorded(), Admit(), at=AT).permitted


def test_a_recording_without_a_binding_is_appraised_and_not_admitted() -> None:
    found = answer(bundle(), recorded(tenant=None), Admit(), at=AT)
    assert found.codes == ("policy.floor_not_admitted",)


def test_nothing_to_compare_with_is_refused() -> None:
    members = {key: value for key, value in recording(tenant=None).items() if key != "report_data"}
    found = answer(bundle(), Recording.from_members("x", members), Admit(), at=AT)
    assert found.codes == ("policy.floor_not_compared",)


def test_without_its_root_simulated_evidence_is_refused_by_the_verifier() -> None:
    members = {key: value for key, value in recording().items() if key != "root"}
    assert answer(bundle(), Recording.from_members("x", members), Admit(), at=AT).codes == ("chain.root_not_trusted",)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"quote": None}, "quote"),
        ({"quote": "***"}, "base64"),
        ({"collateral": "{}"}, "collateral"),
        ({"at": "yesterday"}, "yesterday"),
        ({"report_data": "zz"}, "hex"),
        ({"binding": {"version": 1}}, "binding"),
        ({"evnt_log": ""}, "evnt_log"),
    ],
)
def test_a_bad_member_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(BundleError) as error:
        Recording.from_members("r.json", {**recording(), **change})
    assert error.value.code == "bundle.recording"
    assert word in error.value.detail


def test_a_missing_member_and_no_json_are_refused() -> None:
    for text in (b"", b"[]", b"{}", b'{"quote": "", "collateral": {}}', b"\xff", b"[" * 100_000):
        with pytest.raises(BundleError) as error:
            Recording.from_json("r.json", text)
        assert error.value.code == "bundle.recording"


def test_a_directory_is_read_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(recording()))
    assert [item.name for item in read_recordings(tmp_path)] == ["a.json", "b.json"]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(BundleError):
            list(read_recordings(nothing))


def test_a_collateral_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{}")
    with pytest.raises(BundleError):
        collateral_file(path)


# Replay


@settings(max_examples=25)
@given(hours=st.integers(-1000, 5000))
def test_replay_under_the_same_bundle_never_differs(hours: int) -> None:
    recordings = [recorded("good"), recorded("other", image="another")]
    again = bundle_of(dict(bundle().files))
    at = AT + timedelta(hours=hours)
    for item in replay(bundle(), again, recordings, ACTIONS, at=at):
        assert not item.changed
        assert item.old == item.new


def test_replay_lists_the_decisions_that_change() -> None:
    stricter = bundle("dev", bundle=("min_evaluation_number = 1 ", "min_evaluation_number = 99 "))
    (item,) = replay(bundle(), stricter, [recorded()], ACTIONS[:1])
    assert (item.changed, item.old.permitted, item.new.codes) == (True, True, ("policy.evaluation_number_too_low",))
    assert json.dumps(item.to_dict())


def test_replay_at_a_later_time_needs_collateral_of_that_time() -> None:
    (item,) = replay(bundle(), bundle(), [recorded()], ACTIONS[:1], at=AT + timedelta(days=60))
    assert item.new.codes[0].endswith(".expired")


def test_bundles_with_other_allowances_verify_for_themselves() -> None:
    granted = '[[allowance]]\nname = "migratable"\nuntil = "2027-01-01"\n'
    wider = bundle("dev", bundle=("[tcb]\n", f"{granted}\n[tcb]\n"))
    (item,) = replay(bundle(), wider, [recorded(attributes=0x30000000)], ACTIONS[:1])
    assert (item.old.codes, item.new.permitted) == (("quote.migratable",), True)


# Forecast


def test_a_forecast_names_each_end_in_order_and_what_changes() -> None:
    found = forecast(bundle(), recorded(), Admit(), at=AT)
    assert found.now.permitted
    assert [event.at for event in found.events] == sorted(event.at for event in found.events)
    first = found.change
    assert first
    assert (first.renewable, first.decision) == (True, "refuse")
    assert first.codes[0].endswith(".expired")
    assert {"TCB info ends", "QE identity ends", "PCK CRL ends", "platforms = any ends"} <= {
        e.what for e in found.events
    }
    assert json.dumps(found.to_dict())


def test_the_decision_holds_until_the_second_that_the_forecast_names() -> None:
    first = forecast(bundle(), recorded(), Admit(), at=AT).change
    assert first
    assert answer(bundle(), recorded(), Admit(), at=first.at - timedelta(seconds=1)).permitted
    assert not answer(bundle(), recorded(), Admit(), at=first.at).permitted


def test_dates_of_the_bundle_are_forecast_with_file_and_line() -> None:
    soon = bundle("dev", bundle=('"2027-12-31"', '"2026-12-03"'))
    first = forecast(soon, recorded(), Admit(), at=AT).change
    assert first
    assert (first.what, first.codes) == ("platforms = any ends", ("policy.platform_any_ended",))
    assert first.where.startswith("bundle.toml:")
    assert not first.renewable


def test_the_end_of_collateral_does_not_hide_a_date_of_the_bundle() -> None:
    found = forecast(bundle(), recorded(), Admit(), at=AT)
    event = next(item for item in found.events if item.what == "platforms = any ends")
    assert (event.changes, event.codes) == (True, ("policy.platform_any_ended",))


def test_the_early_channel_tells_which_svn_will_be_missing() -> None:
    later = machine().fork(AT)
    later.recover("publish", advisories=["INTEL-SA-01313"])
    early = later.collateral(update="early")
    found = forecast(bundle(), recorded(), Admit(), at=AT, early=early)
    event = next(item for item in found.events if "early channel" in item.what)
    assert event.changes
    assert "policy.tcb_not_accepted" in event.codes
    assert event.missing
    assert all("needs" in short for short in event.missing)
    same = forecast(bundle(), recorded(), Admit(), at=AT, early=machine().collateral())
    assert not any("early channel" in item.what for item in same.events)


# Real platforms


def real() -> Iterator[dict[str, Any]]:
    if (VECTORS / "index.json").is_file():
        yield from (
            {**vector, "case": case}
            for vector in json.loads((VECTORS / "index.json").read_text())["vectors"]
            if vector["kind"].startswith("tdx") and vector["class"] == "verified"
            for case in vector["cases"][:1]
        )


def tenant_bundle(at: datetime, quote: Quote, rtmr3: str) -> dict[str, bytes]:
    """The tenant starter as its comments say for a fixed image: measured, RTMR3 pinned in place of launches."""
    made = starter("tenant", at=at, measurements=measurements_of(quote))
    lines = made["reference-values.toml"].decode().splitlines()
    kept = [f'rtmr3 = "{rtmr3}"' if line.startswith("launches") else line for line in lines]
    return {**made, "reference-values.toml": "\n".join(kept).encode(), "tests/starter.toml": b""}


@pytest.mark.skipif(not (VECTORS / "index.json").is_file(), reason="the real vectors are not on this machine")
def test_the_tenant_starter_passes_every_real_up_to_date_platform_and_no_other() -> None:
    judged = {True: 0, False: 0}
    for vector in real():
        raw = (VECTORS / vector["file"]).read_bytes()[: vector["quote_length"]]
        quote, at = Quote.parse(raw), datetime.fromtimestamp(vector["case"]["now"], UTC)
        collateral = Collateral.from_json((VECTORS / vector["case"]["collateral"]).read_text())
        made = tenant_bundle(at, quote, quote.td.rtmrs[3].hex())
        loaded = bundle_of(made)
        try:
            verdict = verdict_of(Recording(name=vector["id"], quote=raw, collateral=collateral, at=at), at=at)
        except AttestationError:
            continue
        objections = appraise_verdict(loaded, verdict, context=Context(at=at))
        up_to_date = verdict.tcb_status == "UpToDate"
        assert (objections == ()) is up_to_date, (vector["id"], codes(objections))
        judged[up_to_date] += 1
        if up_to_date:
            for register in ("mr_td", "rtmr1", "rtmr2", "rtmr3"):
                other = replace(Facts.of(verdict), **{register: "0" * 95 + "1"})  # type: ignore[arg-type]
                assert "policy.measurement_mismatch" in codes(
                    judge(loaded, other, Admit(), context=Context(at=at)).reasons
                )
    assert judged[True] > 50
    assert judged[False] > 10


def test_the_starter_for_the_simulator_admits_its_default_image() -> None:
    assert answer(bundle_of(files()), recorded(), ReleaseSecret("dev/secrets/k"), at=AT).permitted
