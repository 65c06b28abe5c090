"""Attacks with collateral: who signs it, CRLs, TCB info, QE identity."""

import json
from collections.abc import Callable

from tests.attack_table import SGX3, Change, attack, put, sets
from tests.pki_factory import (
    AKI,
    AT,
    CA,
    CRL_NUMBER,
    DAY,
    DELTA,
    IDP,
    ROOT,
    SIGNER,
    SVNS,
    TDX_SVNS,
    TRUE,
    UNKNOWN,
    Cert,
    CrlParts,
    World,
    compact,
    integer,
    isv_level,
    level,
    name,
    octets,
    seq,
    stamp,
    time,
    tlv,
)

# -- who signs the collateral


@attack("signer.malformed")
def a_tcb_chain_that_is_no_pem(w: World) -> None:
    w.raw["tcb_info_issuer_chain"] = "nothing"


@attack("signer.malformed")
def a_nul_at_the_end_of_an_issuer_chain(w: World) -> None:
    w.raw["pck_crl_issuer_chain"] = w.pem(w.crl_chain).decode() + "\0"


@attack("signer.length")
def a_tcb_chain_without_root(w: World) -> None:
    w.tcb_chain = ["signer"]


@attack("signer.length")
def a_tcb_chain_with_an_extra_certificate(w: World) -> None:
    w.tcb_chain = ["signer", "ca", "root"]


@attack("signer.names")
def the_root_alone_as_tcb_chain(w: World) -> None:
    w.tcb_chain = ["root", "root"]


@attack("signer.names")
def a_pck_leaf_that_signs_tcb_info(w: World) -> None:
    """It ends in the right root and its key is good for signing: only its role is wrong."""
    w.tcb_chain = ["leaf", "root"]
    w.signed_by["tcb_info"] = w.signed_by["qe_identity"] = "leaf"


@attack("signer.names")
def a_pck_leaf_that_is_called_tcb_signer(w: World) -> None:
    w.certs["posing"] = Cert(SIGNER, CA, "leaf", "ca", False)
    w.tcb_chain = ["posing", "root"]
    w.signed_by["tcb_info"] = w.signed_by["qe_identity"] = "leaf"


@attack("signer.names")
def a_tcb_signer_that_issues_crls(w: World) -> None:
    w.crl_chain = ["signer", "root"]


@attack("signer.root_not_trusted")
def a_tcb_chain_of_another_root(w: World) -> None:
    w.certs["foreign root"] = Cert(ROOT, ROOT, "other_root", "other_root", True, 1)
    w.certs["foreign signer"] = Cert(SIGNER, ROOT, "signer", "other_root", False)
    w.tcb_chain = ["foreign signer", "foreign root"]


@attack("signer.profile")
def a_tcb_signer_that_is_a_ca(w: World) -> None:
    w.certs["signer"].ca = True


@attack("signer.profile")
def a_tcb_signer_with_an_unknown_critical_extension(w: World) -> None:
    w.certs["signer"].extra = [(UNKNOWN, True, seq())]


@attack("signer.signature_invalid")
def a_tcb_signer_signed_by_somebody_else(w: World) -> None:
    w.certs["signer"].signer = "rogue"


@attack("signer.signature_invalid")
def a_qe_identity_chain_signed_by_somebody_else(w: World) -> None:
    w.certs["rogue signer"] = Cert(SIGNER, ROOT, "rogue", "rogue", False)
    w.qe_chain = ["rogue signer", "root"]
    w.signed_by["qe_identity"] = "rogue"


@attack("signer.signature_invalid")
def a_crl_issuer_signed_by_somebody_else(w: World) -> None:
    w.certs["rogue ca"] = Cert(CA, ROOT, "ca", "rogue", True, 0)
    w.crl_chain = ["rogue ca", "root"]


@attack("signer.revoked")
def a_revoked_tcb_signer(w: World) -> None:
    w.root_crl.revoked = [1000 + 4]


@attack("signer.revoked")
def a_revoked_signer_of_qe_identity(w: World) -> None:
    w.certs["later"] = Cert(SIGNER, ROOT, "signer", "root", False, serial=78)
    w.qe_chain = ["later", "root"]
    w.root_crl.revoked = [78]


@attack("signer.revoked")
def a_root_that_revoked_an_edition_of_itself(w: World) -> None:
    w.certs["edition"] = Cert(ROOT, ROOT, "root", "root", True, 1, serial=79)
    w.tcb_chain = ["signer", "edition"]
    w.root_crl.revoked = [79]


# -- revocation


@attack("chain.revoked")
def a_root_that_revoked_itself(w: World) -> None:
    w.root_crl.revoked = [1000]


@attack("chain.revoked")
def a_revoked_pck(w: World) -> None:
    w.pck_crl.revoked = [1000 + 5, 12]


@attack("chain.revoked")
def a_revoked_pck_ca(w: World) -> None:
    w.certs["newer ca"] = Cert(CA, ROOT, "ca", "root", True, 0, serial=81)
    w.crl_chain = ["newer ca", "root"]
    w.root_crl.revoked = [1000 + 2]


for _which in ("root_crl", "pck_crl"):
    for _title, _code, _changes in (
        ("without number", "crl.profile", {"number": None}),
        ("with a negative number", "crl.malformed", {"number": integer(-1)}),
        ("with a number of 22 octets", "crl.malformed", {"number": integer(1 << 170)}),
        ("with a number of 161 bits", "crl.malformed", {"number": integer(1 << 160)}),
        ("with a number of 159 bits", "ok", {"number": integer(1 << 158)}),
        ("with a zero before its number", "crl.malformed", {"number": b"\x02\x02\x00\x07"}),
        ("with an empty number", "crl.malformed", {"number": b"\x02\x00"}),
        ("without key id", "crl.profile", {"drop": (AKI,)}),
        ("without extensions", "crl.profile", {"drop": (AKI, CRL_NUMBER)}),
        ("without end", "crl.profile", {"next_update": None}),
        ("that is a delta", "crl.profile", {"extra": [(DELTA, True, integer(1))]}),
        ("that is a delta and hides it", "crl.profile", {"extra": [(DELTA, False, integer(1))]}),
        ("for one distribution point", "crl.profile", {"extra": [(IDP, True, seq())]}),
        ("that is indirect and hides it", "crl.profile", {"extra": [(IDP, False, seq(b"\x84\x01\xff"))]}),
        ("with an unknown critical extension", "crl.profile", {"extra": [(UNKNOWN, True, seq())]}),
        ("with an unknown extension", "ok", {"extra": [(UNKNOWN, False, seq())]}),
        ("with an extension twice", "crl.malformed", {"extra": [(AKI, False, seq())]}),
        ("of version 1", "crl.malformed", {"version": b"\x02\x01\x00"}),
        ("not in force yet", "crl.not_yet_valid", {"this_update": AT + 1}),
        ("that has ended", "crl.expired", {"next_update": AT - 1}),
        ("signed by somebody else", "crl.signature_invalid", {"signer": "rogue"}),
    ):
        put(_code, f"a {_which} {_title}", sets(_which, **_changes))


@attack("crl.malformed")
def an_empty_crl(w: World) -> None:
    w.raw["pck_crl"] = ""


@attack("crl.malformed")
def a_crl_cut_short(w: World) -> None:
    w.raw["root_ca_crl"] = w.root_crl.der()[:-1].hex()


@attack("crl.malformed")
def a_crl_with_a_broken_entry(w: World) -> None:
    w.pck_crl.revoked = [7]
    raw = w.pck_crl.der()
    w.raw["pck_crl"] = raw.replace(integer(7) + b"\x17", integer(7) + b"\x19").hex()


def _entry(which: str, *extensions: bytes, serial: int = 12, since: int = AT - 30 * DAY) -> Change:
    """A list of one entry with these extensions."""

    def change(w: World) -> None:
        crl: CrlParts = getattr(w, which)
        crl.entries = [seq(integer(serial), time(since), seq(*extensions) if extensions else b"")]

    return change


_REASON = bytes.fromhex("0603551d15")
for _which in ("root_crl", "pck_crl"):
    for _title, _code, _extension in (
        ("whose entry has an unknown critical extension", "crl.profile", seq(UNKNOWN, TRUE, octets(seq()))),
        ("whose entry has an unknown extension", "ok", seq(UNKNOWN, octets(seq()))),
        (
            "whose entry names another issuer",
            "crl.profile",
            seq(bytes.fromhex("0603551d1d"), TRUE, octets(seq(tlv(0xA4, name(CA))))),
        ),
        ("whose entry has a critical reason", "ok", seq(_REASON, TRUE, octets(b"\x0a\x01\x01"))),
        ("whose entry has an extension twice", "crl.malformed", seq(_REASON, TRUE, octets(b"\x0a\x01\x01")) * 2),
        ("whose entry has a reason that nobody knows", "ok", seq(_REASON, octets(b"\x0a\x01\x0b"))),
    ):
        put(_code, f"a {_which} {_title}", _entry(_which, _extension))
put("ok", "a pck_crl with a revocation dated before 1970", _entry("pck_crl", since=-DAY))
put("ok", "a pck_crl whose entry's serial looks like a critical flag", _entry("pck_crl", serial=0x010101FF01))
put(
    "chain.revoked",
    "a pck that is listed to be removed from the list",
    _entry("pck_crl", seq(_REASON, octets(b"\x0a\x01\x08")), serial=1000 + 5),
)


@attack("crl.issuer_mismatch")
def the_crl_of_another_ca(w: World) -> None:
    w.certs["processor"] = Cert("Intel SGX PCK Processor CA", ROOT, "other_ca", "root", True, 0)
    w.crl_chain = ["processor", "root"]
    w.pck_crl = CrlParts("Intel SGX PCK Processor CA", "other_ca")


@attack("crl.issuer_mismatch")
def the_crl_of_a_ca_with_the_same_name_and_another_key(w: World) -> None:
    w.certs["twin"] = Cert(CA, ROOT, "other_ca", "root", True, 0, serial=91)
    w.crl_chain = ["twin", "root"]
    w.pck_crl = CrlParts(CA, "other_ca")


@attack("crl.issuer_mismatch")
def the_crl_of_a_ca_with_the_same_key_and_another_name(w: World) -> None:
    processor = "Intel SGX PCK Processor CA"
    w.certs["twin"] = Cert(processor, ROOT, "ca", "root", True, 0, serial=92)
    w.crl_chain = ["twin", "root"]
    w.pck_crl = CrlParts(processor, "ca")


@attack("crl.issuer_mismatch")
def the_root_crl_in_place_of_the_pck_crl(w: World) -> None:
    w.raw["pck_crl"] = w.root_crl.der().hex()


@attack("crl.issuer_mismatch")
def the_pck_crl_in_place_of_the_root_crl(w: World) -> None:
    w.raw["root_ca_crl"] = w.pck_crl.der().hex()


@attack("crl.issuer_mismatch")
def a_crl_that_names_another_issuer(w: World) -> None:
    w.pck_crl.issuer = ROOT


def _second_root(w: World) -> None:
    w.certs["second"] = Cert(ROOT, ROOT, "other_root", "other_root", True, 1, serial=93)
    w.certs["second signer"] = Cert(SIGNER, ROOT, "signer", "other_root", False, serial=94)
    w.certs["second ca"] = Cert(CA, ROOT, "ca", "other_root", True, 0, serial=95)
    w.trusted = ["root", "second"]


@attack("crl.signature_invalid")
def collateral_of_two_trusted_roots(w: World) -> None:
    _second_root(w)
    w.tcb_chain = ["second signer", "second"]


@attack("crl.issuer_mismatch")
def a_quote_of_one_trusted_root_and_collateral_of_another(w: World) -> None:
    """The PCK CA's key is certified by both roots, so that only the roots tell the two worlds apart."""
    _second_root(w)
    w.tcb_chain, w.crl_chain = ["second signer", "second"], ["second ca", "second"]
    w.root_crl.signer = "other_root"


# -- TCB info and QE identity


@attack("collateral.signature_invalid")
def tcb_info_signed_by_somebody_else(w: World) -> None:
    w.signed_by["tcb_info"] = "rogue"


@attack("collateral.signature_invalid")
def qe_identity_signed_by_somebody_else(w: World) -> None:
    w.signed_by["qe_identity"] = "rogue"


@attack("collateral.signature_invalid")
def tcb_info_re_serialised(w: World) -> None:
    w.signature_over["tcb_info"] = compact(w.tcb_info).encode()
    w.tcb_text = json.dumps(w.tcb_info)


@attack("collateral.signature_invalid")
def a_signature_of_zeros(w: World) -> None:
    w.raw["tcb_info"] = bytes(64)


@attack("collateral.signature_invalid")
def the_two_signatures_swapped(w: World) -> None:
    w.signature_over = {
        "tcb_info": compact(w.qe_identity).encode(),
        "qe_identity": compact(w.tcb_info).encode(),
    }


def _tcb(**changes: object) -> Change:
    return lambda w: w.tcb_info.update(changes)


def _qe_id(**changes: object) -> Change:
    return lambda w: w.qe_identity.update(changes)


def _without(document: str, member: str) -> Change:
    def change(w: World) -> None:
        del getattr(w, document)[member]

    return change


put("collateral.version_unsupported", "TCB info version 2", _tcb(version=2))
put("collateral.version_unsupported", "QE identity version 3", _qe_id(version=3))
put("collateral.malformed", "a version that is a truth value", _qe_id(version=True))
put("collateral.malformed", "a version that is a fraction", _tcb(version=3.0))
put("collateral.tee_mismatch", "TCB info for SGX", lambda w: _sgx_tcb_info(w))
put("collateral.tee_mismatch", "QE identity for SGX", _qe_id(id="QE"))
put("collateral.tee_mismatch", "TDX collateral for an SGX quote", lambda w: _tdx_collateral(w), SGX3)
put("collateral.tee_mismatch", "SGX collateral for a TDX quote", lambda w: _sgx_collateral(w))
put("collateral.malformed", "the identity of a quote verification enclave", _qe_id(id="QVE"))
put("collateral.malformed", "TCB info of an unknown kind", _tcb(id="TPM"))
put("collateral.tcb_type_unsupported", "tcbType 1", _tcb(tcbType=1))
put("collateral.fmspc_mismatch", "TCB info of another FMSPC", _tcb(fmspc="90C06F000001"))
put("ok", "an FMSPC in lower case", _tcb(fmspc="90c06f000000"))
put("collateral.pceid_mismatch", "TCB info of another PCEID", _tcb(pceId="0001"))
put("collateral.not_yet_valid", "TCB info issued one second later", _tcb(issueDate=stamp(AT + 1)))
put("collateral.not_yet_valid", "QE identity issued one second later", _qe_id(issueDate=stamp(AT + 1)))
put("collateral.expired", "TCB info that ended one second ago", _tcb(nextUpdate=stamp(AT - 1)))
put("collateral.expired", "QE identity that ended one second ago", _qe_id(nextUpdate=stamp(AT - 1)))


def _sgx_collateral(w: World) -> None:
    _sgx_tcb_info(w)
    w.qe_identity["id"] = "QE"


def _sgx_tcb_info(w: World) -> None:
    w.tcb_info = World("sgx", 3, 1).tcb_info


def _tdx_collateral(w: World) -> None:
    other = World()
    w.tcb_info, w.qe_identity = other.tcb_info, other.qe_identity


for _document, _members in (
    (
        "tcb_info",
        (
            "id",
            "version",
            "issueDate",
            "nextUpdate",
            "fmspc",
            "pceId",
            "tcbType",
            "tcbEvaluationDataNumber",
            "tdxModule",
            "tcbLevels",
        ),
    ),
    (
        "qe_identity",
        (
            "id",
            "version",
            "issueDate",
            "nextUpdate",
            "tcbEvaluationDataNumber",
            "miscselect",
            "miscselectMask",
            "attributes",
            "attributesMask",
            "mrsigner",
            "isvprodid",
            "tcbLevels",
        ),
    ),
):
    for _member in _members:
        put("collateral.malformed", f"{_document} without {_member}", _without(_document, _member))

_LEVEL = level("UpToDate", SVNS, 13, TDX_SVNS)


def _levels(*levels: object) -> Change:
    return _tcb(tcbLevels=list(levels))


def _with(**changes: object) -> dict[str, object]:
    return {**_LEVEL, **changes}


def _in_tcb(**changes: object) -> dict[str, object]:
    return {**_LEVEL, "tcb": {**_LEVEL["tcb"], **changes}}


_COMPONENTS = _LEVEL["tcb"]["sgxtcbcomponents"]
for _title, _change in (
    ("an empty mrsigner of the QE", _qe_id(mrsigner="")),
    ("a short mrsigner of the QE", _qe_id(mrsigner="AB" * 31)),
    ("an mrsigner that is not hex", _qe_id(mrsigner="XY" * 32)),
    ("an mrsigner that is a number", _qe_id(mrsigner=5)),
    ("white space in hex", _tcb(fmspc=" 90C06F00000")),
    ("a negative evaluation number", _tcb(tcbEvaluationDataNumber=-1)),
    ("an evaluation number above 32 bits", _tcb(tcbEvaluationDataNumber=1 << 32)),
    ("an evaluation number that is text", _tcb(tcbEvaluationDataNumber="19")),
    ("a date without zone", _tcb(issueDate="2026-06-10T12:00:00")),
    ("a date with an offset", _tcb(issueDate="2026-06-10T12:00:00+00:00")),
    ("a 31st of June", _tcb(nextUpdate="2026-06-31T12:00:00Z")),
    ("a date that is a number", _tcb(issueDate=5)),
    ("no level", _levels()),
    ("levels that are an object", _tcb(tcbLevels={"a": 1})),
    ("two hundred and one levels", _levels(*[_LEVEL] * 201)),
    ("two equal levels", _levels(_LEVEL, _with(tcbStatus="OutOfDate"))),
    ("an advisory with half a character", _levels(_with(advisoryIDs=["\ud800"]))),
    ("a level without status", _levels({"tcb": _LEVEL["tcb"], "tcbDate": _LEVEL["tcbDate"]})),
    ("a level of an unknown status", _levels(_with(tcbStatus="Fine"))),
    ("a level with a relaunch status", _levels(_with(tcbStatus="TDRelaunchAdvised"))),
    ("a level with a broken date", _levels(_with(tcbDate="yesterday"))),
    ("a level of the 30th of February", _levels(_with(tcbDate="2025-02-30T00:00:00Z"))),
    ("a level that is text", _levels("UpToDate")),
    ("a level without components", _levels(_with(tcb={"pcesvn": 13}))),
    ("fifteen components", _levels(_in_tcb(sgxtcbcomponents=_COMPONENTS[:15]))),
    ("seventeen components", _levels(_in_tcb(tdxtcbcomponents=[*_COMPONENTS, {"svn": 0}]))),
    ("a component without svn", _levels(_in_tcb(sgxtcbcomponents=[{}, *_COMPONENTS[1:]]))),
    ("a component of 256", _levels(_in_tcb(sgxtcbcomponents=[{"svn": 256}, *_COMPONENTS[1:]]))),
    ("a component that is a truth value", _levels(_in_tcb(sgxtcbcomponents=[{"svn": True}, *_COMPONENTS[1:]]))),
    ("a component that is a fraction", _levels(_in_tcb(sgxtcbcomponents=[{"svn": 3.0}, *_COMPONENTS[1:]]))),
    ("a pcesvn above 16 bits", _levels(_in_tcb(pcesvn=65_536))),
    ("advisories that are text", _levels(_with(advisoryIDs="INTEL-SA-1"))),
    ("an advisory that is a number", _levels(_with(advisoryIDs=[1]))),
    ("an advisory of 65 characters", _levels(_with(advisoryIDs=["x" * 65]))),
    ("a TDX level without TDX components", _levels(level("UpToDate", SVNS, 13, None))),
    ("a module identity twice", lambda w: w.tcb_info["tdxModuleIdentities"][1].update(id="tdx_01")),
    ("a module id that is a number", lambda w: w.tcb_info["tdxModuleIdentities"][1].update(id=10)),
    ("a module without mask", lambda w: w.tcb_info["tdxModule"].pop("attributesMask")),
    (
        "a module level twice",
        lambda w: w.tcb_info["tdxModuleIdentities"][0]["tcbLevels"].append(isv_level(5, "OutOfDate")),
    ),
    (
        "a module level of an unknown status",
        lambda w: w.tcb_info["tdxModuleIdentities"][0]["tcbLevels"].append(isv_level(1, "ConfigurationNeeded")),
    ),
    ("a QE level twice", lambda w: w.qe_identity["tcbLevels"].append(isv_level(4, "OutOfDate"))),
    ("a QE without level", _qe_id(tcbLevels=[])),
    (
        "a QE level without isvsvn",
        _qe_id(tcbLevels=[{"tcb": {}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": "UpToDate"}]),
    ),
):
    put("collateral.malformed", f"signed, but with {_title}", _change)

put("collateral.malformed", "SGX TCB info with a TDX module", lambda w: w.tcb_info.update(tdxModule={}), SGX3)
put(
    "collateral.malformed",
    "SGX TCB info with TDX components",
    lambda w: w.tcb_info["tcbLevels"][0]["tcb"].update(tdxtcbcomponents=_COMPONENTS),
    SGX3,
)

for _title, _text in (
    ("a name that occurs twice", lambda text: text.replace('"tcbType":0', '"tcbType":0,"tcbType":0')),
    ("a component's name that occurs twice", lambda text: text.replace('{"svn":0}', '{"svn":0,"svn":0}', 1)),
    ("NaN", lambda text: text.replace('"tcbType":0', '"tcbType":NaN')),
    ("Infinity", lambda text: text.replace('"tcbType":0', '"tcbType":-Infinity')),
    ("a number of 5000 digits", lambda text: text.replace('"tcbType":0', '"tcbType":' + "9" * 5000)),
    ("100,000 open brackets", lambda text: "[" * 40_000),
    ("a list", lambda text: "[" + text + "]"),
    ("nothing", lambda text: " "),
    ("more than one document", lambda text: text + text),
):

    def _signed_text(w: World, change: Callable[[str], str] = _text) -> None:
        w.tcb_text = change(compact(w.tcb_info))

    put("collateral.malformed", f"TCB info, signed, that holds {_title}", _signed_text)
