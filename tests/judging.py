"""One way to ask the verifier about an `Input`, and to say in one word what came of it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.tcb import ANY_TCB, UP_TO_DATE, TcbStates, TcbStatus
from attestation.verifier import NOT_COMPARED, Allowance, VerifiedQuote, verify_quote
from tests.pki_factory import Input

ACCEPT: dict[str, TcbStates] = {"up_to_date": UP_TO_DATE, "any": ANY_TCB, "everything": frozenset(TcbStatus)}


def moment(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def judge(given: Input) -> VerifiedQuote:
    return verify_quote(
        Quote.parse(given.raw),
        Collateral.from_json(given.collateral_text),
        report_data=NOT_COMPARED if given.report_data is None else given.report_data,
        roots=TrustRoots.from_pem(given.root_pem),
        at=moment(given.at),
        accept=ACCEPT[given.accept],
        allow=frozenset(Allowance(name) for name in given.allow),
    )


def outcome(ask: Callable[[], object]) -> str:
    """ "ok", or the code of the refusal. Anything without a code is not caught."""
    try:
        ask()
    except AttestationError as error:
        return str(error.code)
    return "ok"
