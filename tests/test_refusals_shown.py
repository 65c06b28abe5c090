"""What a broker says of a refusal cannot reach beyond its line."""

import pytest

from enclave.errors import BrokerRefused

ODD = "\x1b[2J\r\nall is well"


@pytest.mark.parametrize("member", ["code", "detail", "remedy", "correlation_id", "reasons"])
def test_a_refusal_moves_no_cursor_and_begins_no_line(member: str) -> None:
    told = {"code": "a", "detail": "b", "remedy": "c", "correlation_id": "d"}
    refused = (
        BrokerRefused(status=403, **told, reasons=("e", ODD))
        if member == "reasons"
        else BrokerRefused(status=403, **{**told, member: ODD}, reasons=("e",))
    )
    assert len(str(refused).splitlines()) == 4
    assert all(line.isprintable() for line in str(refused).splitlines())


def test_a_refusal_is_shown_as_it_was_said() -> None:
    refused = BrokerRefused(status=403, code="policy.refused", detail="größer als 5", remedy="Ask.", reasons=("tcb",))
    assert str(refused).splitlines() == [
        "policy.refused (HTTP 403): größer als 5",
        "  because: tcb",
        "  what to do: Ask.",
    ]
