"""What the log says of guests, and what it does not say of strangers."""

from simulator.broker_fixture import BrokerUnderTest
from simulator.machine import Machine
from tests.kbs_world import NAME, SECRET, attested, entries, guest, refused
from tests.kbs_world import own as own


def test_admissions_refusals_and_releases_over_kbs_are_in_the_log(own: BrokerUnderTest) -> None:
    client = attested(own)
    client.resource(NAME)
    client.resource("acme/shut/a")
    (admitted,) = entries(own, "guest.admitted")
    (released,) = entries(own, "secret.released")
    (refusal,) = entries(own, "secret.refused")
    assert {entry["via"] for entry in (admitted, released, refusal)} == {"kbs"}
    assert {entry["evidence"] for entry in (admitted, released, refusal)} == {admitted["evidence"]}
    assert (released["resource"], released["version"]) == (NAME, 1)
    assert refusal["codes"] == ["policy.no_rule"]
    assert SECRET not in b"".join(row.entry for row in own.broker.audit.page(start=0, limit=1000))


def test_strangers_earn_no_entry_and_refused_platforms_do(own: BrokerUnderTest) -> None:
    stranger = guest(own, td=Machine.create(seed="a stranger").launch("guest"))
    stranger.auth()
    refused(stranger.attest(), 403, "AttestationError", "chain.")
    assert entries(own, "guest.refused") == []
    debug = guest(own, td=own.machine.launch("debug", attributes=0x1000_0001))
    debug.auth()
    refused(debug.attest(), 403, "AttestationError", "quote.debug")
    (entry,) = entries(own, "guest.refused")
    assert entry["codes"][0] == "quote.debug"
