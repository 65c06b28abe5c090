"""Questions to single parts of the verifier that no quote can ask, each with the answer that is right.

Every probe takes the modules to ask (the real ones, or those of a mutant) by name.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

from attestation.errors import AttestationError
from attestation.quote import Quote
from tests.attack_table import Attack, sets
from tests.judging import moment
from tests.pki_factory import AT, CA, DAY, REPORT_DATA, ROOT, Cert, World
from tests.policy_world import binding

Modules = dict[str, ModuleType]
PROBES: dict[str, tuple[Callable[[Modules], object], str]] = {}

_GOOD = World().input()
_GOOD_QUOTE = Quote.parse(_GOOD.raw)


def probe(answer: str) -> Callable[[Callable[[Modules], object]], Callable[[Modules], object]]:
    def add(ask: Callable[[Modules], object]) -> Callable[[Modules], object]:
        PROBES[ask.__name__.replace("_", " ")] = (ask, answer)
        return ask

    return add


def put(answer: str, title: str, ask: Callable[[Modules], object]) -> None:
    PROBES[title] = (ask, answer)


def answer(ask: Callable[[Modules], object], modules: Modules) -> str:
    """ "ok", a code, or the name of another exception."""
    try:
        ask(modules)
    except AttestationError as error:
        return str(error.code)
    except Exception as error:  # noqa: BLE001  # whatever a mutant raises is an answer
        return type(error).__name__
    return "ok"


def judge(modules: Modules, given: Any = _GOOD, quote: Quote = _GOOD_QUOTE, **changes: Any) -> Any:
    """A judgement by these modules."""
    verifier, tcb = modules["verifier"], modules["tcb"]
    accept = {"up_to_date": tcb.UP_TO_DATE, "any": tcb.ANY_TCB, "everything": frozenset(tcb.TcbStatus)}
    arguments: dict[str, Any] = {
        "report_data": verifier.NOT_COMPARED if given.report_data is None else given.report_data,
        "roots": modules["pki"].TrustRoots.from_pem(given.root_pem),
        "at": moment(given.at),
        "accept": accept[given.accept],
        "allow": frozenset(verifier.Allowance(name) for name in given.allow),
    }
    collateral = modules["collateral"].Collateral.from_json(given.collateral_text)
    return verifier.verify_quote(quote, collateral, **{**arguments, **changes})


def _ask_with(modules: Modules, quote: object, collateral: object) -> object:
    verifier, roots = modules["verifier"], modules["pki"].TrustRoots.from_pem(_GOOD.root_pem)
    return verifier.verify_quote(quote, collateral, report_data=verifier.NOT_COMPARED, roots=roots, at=moment(AT))


# -- DER


def _record(data: bytes, end: int) -> Callable[[Modules], object]:
    return lambda m: m["der"].record(data, 0, end, 4)


for _title, _data, _end, _answer in (
    ("a record that passes its container but not the data", b"\x04\x03abc", 4, "Unmet"),
    ("a record whose length passes its container but not the data", b"\x04\x81\x80" + b"a" * 128, 2, "Unmet"),
    ("a record of which only the tag is in the container", b"\x04\x00", 1, "Unmet"),
    ("a record whose length octets are missing", b"\x04\x82", 2, "Unmet"),
    ("a good record", b"\x04\x03abc", 5, "ok"),
):
    put(_answer, f"der: {_title}", _record(_data, _end))


@probe("Unmet")
def der_a_record_that_is_not_there(m: Modules) -> None:
    m["der"].skip(b"", 0, 0)


@probe("Unmet")
def der_an_empty_integer(m: Modules) -> None:
    m["der"].integer(b"\x01", (0, 0))


@probe("Unmet")
def der_an_integer_of_six_bytes(m: Modules) -> None:
    m["der"].integer(b"\x01" * 6, (0, 6))


# -- roots


def _roots(*certificates: Cert) -> Callable[[Modules], object]:
    def ask(m: Modules) -> None:
        world = World()
        world.certs = {str(at): certificate for at, certificate in enumerate(certificates)}
        m["pki"].TrustRoots.from_pem(world.pem(list(world.certs)))

    return ask


_ROOT = Cert(ROOT, ROOT, "root", "root", True, 1)
put("ok", "roots: two of them", _roots(_ROOT, Cert(ROOT, ROOT, "other_root", "other_root", True, 1)))
put("roots.malformed", "roots: a CA that somebody else issued", _roots(Cert(CA, ROOT, "ca", "root", True, 0)))
put("roots.malformed", "roots: a certificate that is no CA", _roots(Cert(ROOT, ROOT, "root", "root", False)))
put("roots.malformed", "roots: one signed by somebody else", _roots(Cert(ROOT, ROOT, "root", "rogue", True, 1)))


@probe("roots.malformed")
def roots_that_are_no_pem(m: Modules) -> None:
    m["pki"].TrustRoots.from_pem(b"")


@probe("roots.malformed")
def roots_in_a_huge_file(m: Modules) -> None:
    m["pki"].TrustRoots.from_pem(_GOOD.root_pem + b"\n" * 70_000)


# -- the claimed platform and the chain alone


def _claimed(attack: Callable[[World], None]) -> Callable[[Modules], object]:
    def ask(m: Modules) -> None:
        m["chains"].claimed_platform(Quote.parse(Attack("", attack, "").world().input().raw))

    return ask


def _no_change(w: World) -> None:
    del w


put("ok", "claimed platform: a good quote", _claimed(_no_change))
put("chain.not_in_quote", "claimed platform: no chain", _claimed(sets(certification=(4, b"x"))))
put("chain.malformed", "claimed platform: rubbish", _claimed(sets(certification=(5, b"x"))))
put("chain.length", "claimed platform: two certificates", _claimed(sets(pck_chain=["leaf", "ca"])))
put(
    "chain.names",
    "claimed platform: other roles",
    _claimed(sets(pck_chain=["leaf", "signer", "root"])),
)
put("chain.pck_extension", "claimed platform: other items", _claimed(sets("sgx", platform=False)))


def _good_roots(m: Modules) -> Any:
    return m["pki"].TrustRoots.from_pem(_GOOD.root_pem)


def _chain_alone(change: Callable[[World], None], at: float = AT) -> Callable[[Modules], object]:
    def ask(m: Modules) -> None:
        given = Attack("", change, "").world().input()
        verifier = m["verifier"].Verifier(_good_roots(m))
        verifier.check_chain(Quote.parse(given.raw), at=moment(at))

    return ask


put("ok", "chain alone: a good one", _chain_alone(_no_change))
put(
    "chain.signature_invalid",
    "chain alone: a forged one",
    _chain_alone(sets("certs", "leaf", signer="rogue")),
)
put("chain.expired", "chain alone: an old one", _chain_alone(_no_change, AT + 3000 * DAY))

# -- collateral files


MISSING = object()


def _file(**changes: object) -> Callable[[Modules], object]:
    def ask(m: Modules) -> None:
        members = {name: value for name, value in {**_GOOD.collateral, **changes}.items() if value is not MISSING}
        m["collateral"].Collateral.from_json(json.dumps(members))

    return ask


def _text(text: str | bytes) -> Callable[[Modules], object]:
    return lambda m: m["collateral"].Collateral.from_json(text)


put("ok", "collateral file: a good one", _file())
put("ok", "collateral file: a member that nobody knows", _file(more={"a": [1]}))
put("collateral.malformed", "collateral file: a member is missing", _file(pck_crl=MISSING))
put("collateral.malformed", "collateral file: a member is a number", _file(tcb_info=5))
put("collateral.malformed", "collateral file: a member is null", _file(pck_crl=None))
put("collateral.malformed", "collateral file: a CRL is no hex", _file(pck_crl="zz"))
put(
    "collateral.malformed",
    "collateral file: a CRL in PEM",
    _file(pck_crl="-----BEGIN X509 CRL-----"),
)
put("collateral.malformed", "collateral file: half a signature", _file(tcb_info_signature="00" * 32))
put(
    "collateral.malformed",
    "collateral file: a long signature",
    _file(qe_identity_signature="00" * 65),
)
put("collateral.malformed", "collateral file: a lone surrogate", _file(tcb_info="\ud800"))
put("collateral.too_large", "collateral file: many containers", _file(more=[[]] * 140_000))

for _title, _found, _answer in (
    ("empty", "", "collateral.malformed"),
    ("no UTF-8", b"\xff{}", "collateral.malformed"),
    ("a list", "[]", "collateral.malformed"),
    ("a name twice", '{"a":1,"a":1}', "collateral.malformed"),
    ("NaN", '{"a":NaN}', "collateral.malformed"),
    ("an absurd number", '{"a":' + "9" * 10_000 + "}", "collateral.malformed"),
    ("deep nesting", '{"a":' + "[" * 45_000 + "]" * 45_000 + "}", "collateral.malformed"),
    ("a long line of spaces", "{" + " " * (4 << 20) + "}", "collateral.too_large"),
    ("a large text of braces", '{"a":"' + "{" * 300_000 + '"}', "collateral.too_large"),
    ("a large list of numbers", '{"a":[' + "0," * 200_000 + "0]}", "collateral.too_large"),
    ("a large object", "{" + ",".join(f'"{n}":0' for n in range(60_000)) + "}", "collateral.too_large"),
    ("long numbers", '{"a":[' + ",".join(["9" * 4_000] * 100) + "]}", "collateral.too_large"),
    ("a long number after white space", '{"a":   ' + "9" * 20 + "}" + " " * 300_000, "collateral.too_large"),
    ("a long text of nothing much", '{"a":"' + "x" * 60_000 + '"}', "collateral.malformed"),
):
    put(_answer, f"collateral text: {_title}", _text(_found))


def _made(**changes: Any) -> Callable[[Modules], object]:
    def ask(m: Modules) -> None:
        good = m["collateral"].Collateral.from_json(_GOOD.collateral_text)
        members = {name: getattr(good, name) for name in m["collateral"].MEMBERS}
        m["collateral"].Collateral(**{**members, **changes})

    return ask


put("ok", "collateral made: as it was", _made())
put("collateral.malformed", "collateral made: bytes for text", _made(tcb_info=b"{}"))
put("collateral.malformed", "collateral made: text for bytes", _made(pck_crl="00"))
put("collateral.malformed", "collateral made: a mutable CRL", _made(pck_crl=bytearray(b"00")))
put("collateral.too_large", "collateral made: of 5 MiB", _made(tcb_info="x" * (5 << 20)))

# -- arguments that no caller should pass

put("ValueError", "an all-zero expected REPORT_DATA", lambda m: judge(m, report_data=bytes(64)))
put("ValueError", "an expected REPORT_DATA of 63 bytes", lambda m: judge(m, report_data=REPORT_DATA[:63]))
put("ValueError", "an empty expected REPORT_DATA", lambda m: judge(m, report_data=b""))
put("TypeError", "an expected REPORT_DATA that is text", lambda m: judge(m, report_data="00" * 64))
put("TypeError", "no expected REPORT_DATA", lambda m: judge(m, report_data=None))
put("TypeError", "a naive time", lambda m: judge(m, at=moment(AT).replace(tzinfo=None)))
put("TypeError", "a tampered binding", lambda m: judge(m, report_data=type("B", (), {"report_data": "x" * 64})()))
put(
    "TypeError",
    "a binding that may change",
    lambda m: judge(m, report_data=type("B", (), {"report_data": bytearray(REPORT_DATA)})()),
)
put("TypeError", "a time that is a number", lambda m: judge(m, at=AT))
put("TypeError", "states as a text", lambda m: judge(m, accept="UpToDate"))
put("TypeError", "allowances as a text", lambda m: judge(m, allow="migratable"))
put("TypeError", "roots as PEM", lambda m: judge(m, roots=_GOOD.root_pem))
put("TypeError", "a PEM of roots that may change", lambda m: m["pki"].TrustRoots.from_pem(bytearray(_GOOD.root_pem)))
put(
    "TypeError",
    "a quote as bytes",
    lambda m: _ask_with(m, _GOOD.raw, m["collateral"].Collateral.from_json(_GOOD.collateral_text)),
)
put(
    "TypeError",
    "a chain of bytes",
    lambda m: m["verifier"].Verifier(_good_roots(m)).check_chain(_GOOD.raw, at=moment(AT)),
)
put("TypeError", "collateral as a dict", lambda m: _ask_with(m, _GOOD_QUOTE, _GOOD.collateral))
put(
    "TypeError",
    "a collateral file that may change",
    lambda m: m["collateral"].Collateral.from_json(bytearray(_GOOD.collateral_text.encode())),
)
put("TypeError", "what looks like a binding", lambda m: judge(m, report_data=type("B", (), vars(World()))()))
put("TypeError", "the quote itself", lambda m: judge(m, report_data=_GOOD_QUOTE))


@probe("ok")
def a_binding(m: Modules) -> None:
    bound = binding()
    world = World()
    world.td["report_data"] = bound.report_data
    given = world.input()
    judge(m, given, Quote.parse(given.raw), report_data=bound)


@probe("ok")
def an_enclave_never_reaches_a_td_level(m: Modules) -> None:
    tcb = m["tcb"]
    level = tcb.TcbLevel(bytes(16), 0, bytes(16), tcb.TcbStatus.UP_TO_DATE, "2025-05-14T00:00:00Z", (), {})
    assert tcb.reaches(tcb.PlatformSvns(bytes(16), 0, bytes(16)), level)
    assert not tcb.reaches(tcb.PlatformSvns(bytes(16), 0, b""), level)


@probe("binding.report_data_mismatch")
def a_binding_of_another_tenant(m: Modules) -> None:
    world = World()
    world.td["report_data"] = binding("blue").report_data
    given = world.input()
    judge(m, given, Quote.parse(given.raw), report_data=binding("red"))


put("ok", "the good world", judge)
put("chain.not_yet_valid", "year 1", lambda m: judge(m, at=datetime.min.replace(tzinfo=UTC)))
put("chain.expired", "year 9999", lambda m: judge(m, at=datetime.max.replace(tzinfo=UTC) - timedelta(days=1)))


@probe("TypeError")
def a_verified_quote_made_by_hand(m: Modules) -> None:
    verified = judge(m)
    fields = {name: getattr(verified, name) for name in ("quote", "compared", "verified_at", "pck", "_state", "_case")}
    m["verifier"].VerifiedQuote(**fields, seal=object())
