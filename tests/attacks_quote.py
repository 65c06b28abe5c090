"""Attacks with the quote itself and with time, and changes that must be harmless."""

from hashlib import sha256

from tests.attack_table import SGX3, TDX4, TDX5, TDX5EX, Change, attack, bits, put, sets, updates
from tests.pki_factory import (
    AT,
    DAY,
    OLD_SVNS,
    ROOT,
    SIGNER,
    SVNS,
    Cert,
    World,
    isv_level,
    level,
)

# -- harmless: strict, but not stricter than reality


@attack("ok", TDX4, TDX5, TDX5EX, SGX3, ("sgx", 5, 1))
def nothing_is_wrong(w: World) -> None:
    del w


@attack("ok")
def certificates_in_another_order(w: World) -> None:
    w.pck_chain = ["root", "leaf", "ca"]
    w.tcb_chain = ["root", "signer"]


@attack("ok")
def no_nul_at_the_end_of_the_pem_text(w: World) -> None:
    w.pem_end = b""


@attack("ok")
def known_attributes(w: World) -> None:
    w.td["td_attributes"] = bits(16, 27, 28, 30, 31, 62, 63)


@attack("ok")
def evaluation_numbers_differ(w: World) -> None:
    w.qe_identity["tcbEvaluationDataNumber"] = 18


for _size in (0, 1, 65_535):
    put("ok", f"auth data of {_size} bytes", sets(auth_data=b"\x5a" * _size))


@attack("ok")
def a_pcesvn_with_its_top_bit_set(w: World) -> None:
    w.sgx.pcesvn = 0xFFFF


@attack("ok")
def a_processor_ca(w: World) -> None:
    processor = "Intel SGX PCK Processor CA"
    w.certs["ca"].subject = w.certs["leaf"].issuer = w.pck_crl.issuer = processor
    w.sgx.platform = False


@attack("ok")
def another_edition_of_the_root(w: World) -> None:
    w.certs["edition"] = Cert(ROOT, ROOT, "root", "root", True, 1, serial=77)
    w.pck_chain = ["leaf", "ca", "edition"]


@attack("ok")
def two_editions_of_the_tcb_signer(w: World) -> None:
    w.certs["later"] = Cert(SIGNER, ROOT, "signer", "root", False, serial=78)
    w.qe_chain = ["later", "root"]


@attack("ok")
def a_module_id_in_lower_case(w: World) -> None:
    w.tcb_info["tdxModuleIdentities"][1]["id"] = "tdx_0a"
    w.td["tee_tcb_svn"] = bytes([5, 10, 3]) + bytes(13)


@attack("ok")
def levels_in_another_order(w: World) -> None:
    for found in (w.tcb_info, w.qe_identity, w.tcb_info["tdxModuleIdentities"][0]):
        found["tcbLevels"].reverse()


@attack("ok")
def a_tdx_1_0_module(w: World) -> None:
    w.td["tee_tcb_svn"] = bytes([5, 0, 3]) + bytes(13)
    w.tcb_info["tdxModuleIdentities"] = []


@attack("ok")
def members_that_intel_may_add(w: World) -> None:
    w.tcb_info["later"] = {"anything": [1, {"a": 1}]}
    w.qe_identity["later"] = None


@attack("ok")
def a_version_makes_the_module_components_its_own(w: World) -> None:
    levels = w.tcb_info["tcbLevels"]
    levels[0] = level("UpToDate", SVNS, 13, [9, 9, 3, *[0] * 13])


for _title, _change in (
    ("at the first second of the newest part", sets(at=AT - 5 * DAY)),
    ("at the last second of the oldest part", sets(at=AT + 20 * DAY)),
):
    put("ok", _title, _change)

for _bit, _name in ((28, "sept_ve_disable_clear"), (29, "migratable"), (5, "unknown_attributes")):

    def _allowed(w: World, bit: int = _bit, allowance: str = _name) -> None:
        w.td["td_attributes"] = bits(*({28, bit} if bit != 28 else ()))
        w.allow = (allowance,)

    put("ok", f"{_name} allowed", _allowed)


@attack("ok", TDX5, TDX5EX)
def a_service_td_allowed(w: World) -> None:
    w.td["mr_service_td"] = b"\x38" * 48
    w.allow = ("service_td",)


@attack("ok", TDX5EX)
def a_nested_vm_allowed(w: World) -> None:
    w.td["extended"] = b"\x01" + bytes(236)
    w.allow = ("nested_vm",)


# -- the floor


@attack("quote.debug", TDX4, TDX5)
def a_debug_td(w: World) -> None:
    w.td["td_attributes"] = bits(0, 28)
    w.allow = ("sept_ve_disable_clear", "migratable", "service_td", "unknown_attributes")
    w.accept = "any"


@attack("quote.debug", SGX3)
def a_debug_enclave(w: World) -> None:
    enclave = bytearray(w.enclave)
    enclave[48] |= 2
    w.enclave = bytes(enclave)


@attack("qe.vendor_unknown")
def another_qe_vendor(w: World) -> None:
    w.vendor = bytes(16)


# -- time, for certificates

for _which, _family in (("root", "chain"), ("ca", "chain"), ("leaf", "chain"), ("signer", "signer")):
    put(
        f"{_family}.not_yet_valid",
        f"a {_which} certificate of tomorrow",
        sets("certs", _which, not_before=AT + 1),
    )
    put(
        f"{_family}.expired",
        f"a {_which} certificate of yesterday",
        sets("certs", _which, not_after=AT - 1),
    )
put("chain.not_yet_valid", "before everything", sets(at=0))
put("chain.expired", "after everything", sets(at=AT + 9000 * DAY))
put("collateral.not_yet_valid", "half a second too early", sets(at=AT - 5 * DAY - 0.5))
put("crl.expired", "half a second too late", sets(at=AT + 20 * DAY + 0.5))


@attack("chain.expired")
def a_trusted_root_that_has_expired_shown_in_a_newer_edition(w: World) -> None:
    w.certs["edition"] = Cert(ROOT, ROOT, "root", "root", True, 1, serial=77)
    w.certs["root"].not_after = AT - 1
    w.pck_chain = ["leaf", "ca", "edition"]
    w.tcb_chain, w.crl_chain = ["signer", "edition"], ["ca", "edition"]


# -- from the PCK key to the body


@attack("qe.report_signature_invalid")
def a_qe_report_signed_by_somebody_else(w: World) -> None:
    w.signed_by["qe_report"] = "rogue"


@attack("qe.report_signature_invalid")
def a_qe_report_signature_of_zeros(w: World) -> None:
    w.raw["qe_report"] = bytes(64)


@attack("qe.key_not_bound")
def another_attestation_key(w: World) -> None:
    w.qe["report_data"] = b"\x01" * 32 + bytes(32)


@attack("qe.key_not_bound")
def a_tail_after_the_key_hash(w: World) -> None:
    w.qe["report_data"] = sha256(w.attestation_key + w.auth_data).digest() + b"\x01" * 32


@attack("quote.key_invalid")
def an_attestation_key_that_is_no_point(w: World) -> None:
    w.attestation_key = b"\x07" * 64


@attack("quote.key_invalid")
def an_attestation_key_of_zeros(w: World) -> None:
    w.attestation_key = bytes(64)


@attack("quote.signature_invalid", TDX4, TDX5, TDX5EX, SGX3)
def a_quote_signed_by_somebody_else(w: World) -> None:
    w.signed_by["quote"] = "rogue"


for _title, _signature in (
    ("r = 0", bytes(32) + b"\x01" * 32),
    ("s = 0", b"\x01" * 32 + bytes(32)),
    ("r and s above the order", b"\xff" * 64),
):
    put("quote.signature_invalid", f"a signature with {_title}", updates("raw", quote=_signature))


@attack("quote.signature_invalid")
def a_signature_over_another_body(w: World) -> None:
    w.signature_over["quote"] = b"another body"


@attack("binding.report_data_mismatch", TDX4, SGX3)
def another_report_data(w: World) -> None:
    w.report_data = b"\x09" * 64


@attack("binding.report_data_mismatch")
def a_zero_report_data(w: World) -> None:
    w.td["report_data"] = bytes(64)


@attack("ok")
def report_data_that_is_not_compared(w: World) -> None:
    w.report_data = None


@attack("qe.debug")
def a_debug_quoting_enclave_whose_mask_hides_it(w: World) -> None:
    w.qe_identity["attributesMask"] = "F9" + "FF" * 7 + "00" * 8
    w.qe["attributes"] = bytes.fromhex("1300000000000000e700000000000000")


put("qe.miscselect_mismatch", "a quoting enclave of another MISCSELECT", updates("qe", misc_select=1))


@attack("ok")
def a_published_miscselect_is_in_memory_order(w: World) -> None:
    w.qe["misc_select"] = 1
    w.qe_identity["miscselect"] = "01000000"


put(
    "qe.attributes_mismatch",
    "a quoting enclave of other ATTRIBUTES",
    updates("qe", attributes=bytes.fromhex("9500000000000000e700000000000000")),
)
put(
    "qe.attributes_mismatch",
    "a quoting enclave without INIT",
    updates("qe", attributes=bytes.fromhex("1400000000000000e700000000000000")),
)
put(
    "ok",
    "a quoting enclave with masked XFRM bits",
    updates("qe", attributes=bytes.fromhex("1500000000000000ff00000000000000")),
)
put("qe.signer_mismatch", "a quoting enclave of another signer", updates("qe", mr_signer=bytes(32)))
put("qe.product_mismatch", "another enclave of the same signer", updates("qe", isv_prod_id=1))
put("tcb.qe_no_match", "a quoting enclave below every level", updates("qe", isv_svn=1))

# -- the TDX module and the TD


@attack("module.identity_missing")
def a_module_version_that_nobody_knows(w: World) -> None:
    w.td["tee_tcb_svn"] = bytes([5, 3, 3]) + bytes(13)


@attack("module.identity_missing")
def no_module_identities_at_all(w: World) -> None:
    del w.tcb_info["tdxModuleIdentities"]


@attack("module.signer_mismatch")
def a_module_of_another_signer(w: World) -> None:
    w.td["mr_signer_seam"] = b"\x01" * 48


@attack("module.signer_mismatch")
def a_module_whose_identity_has_another_signer(w: World) -> None:
    w.tcb_info["tdxModuleIdentities"][0]["mrsigner"] = "01" * 48


@attack("module.attributes_mismatch")
def seam_attributes_that_are_not_zero(w: World) -> None:
    """Published and equal, and still refused: nobody knows what they mean."""
    w.td["seam_attributes"] = bits(3)
    w.tcb_info["tdxModuleIdentities"][0]["attributes"] = bits(3).hex()


@attack("module.attributes_mismatch")
def seam_attributes_that_are_not_published(w: World) -> None:
    w.tcb_info["tdxModuleIdentities"][0]["attributes"] = bits(3).hex()


put("quote.sept_ve_disable_clear", "SEPT_VE_DISABLE is clear", updates("td", td_attributes=bits()))
put("quote.migratable", "a migratable TD", updates("td", td_attributes=bits(28, 29)))
put("quote.service_td", "a service TD is bound", updates("td", mr_service_td=bytes(47) + b"\x01"), TDX5)
for _vm in (1, 3, 200):
    put("quote.nested_vm", f"nested VM {_vm}", updates("td", extended=bytes((_vm,)) + bytes(236)), TDX5EX)
for _at, _title in (
    (829 - 648, "now"),
    (729 - 648, "at the start"),
    (777 - 648, "with attributes at the start"),
    (877 - 648, "with attributes now"),
):
    put(
        "quote.service_td",
        f"a service TD is bound {_title}, says the extended report",
        updates("td", extended=bytes(_at) + b"\x01" + bytes(236 - _at)),
        TDX5EX,
    )
put("quote.service_td", "a TD that may bind service TDs later", updates("td", td_attributes=bits(17, 28)))
for _bit in (1, 2, 3, 4, 5, 6, 7, 8, 15, 18, 26, 32, 61):
    put(
        "quote.attributes_unknown",
        f"ATTRIBUTES bit {_bit}",
        updates("td", td_attributes=bits(28, _bit)),
    )

# -- TCB states


def _svn(index: int, value: int) -> Change:
    def change(w: World) -> None:
        w.sgx.svns = [*SVNS[:index], value, *SVNS[index + 1 :]]

    return change


put("tcb.not_accepted", "microcode of an older level", sets("sgx", svns=OLD_SVNS))
for _index, _value in ((0, 2), (7, 4), (9, 199)):
    put(
        "tcb.no_match" if _index == 9 else "tcb.not_accepted",
        f"component {_index} one short",
        _svn(_index, _value),
    )
put("tcb.not_accepted", "a PCESVN one short", sets("sgx", pcesvn=12))
put("tcb.no_match", "a PCESVN below every level", sets("sgx", pcesvn=1))
put("tcb.not_accepted", "a TDX component one short", updates("td", tee_tcb_svn=bytes([5, 1, 2]) + bytes(13)))
put("tcb.no_match", "a TDX component below every level", updates("td", tee_tcb_svn=bytes([5, 1, 0]) + bytes(13)))
put("tcb.not_accepted", "an older TDX module", updates("td", tee_tcb_svn=bytes([4, 1, 3]) + bytes(13)))
put(
    "tcb.module_no_match",
    "a TDX module below every level",
    updates("td", tee_tcb_svn=bytes([2, 1, 3]) + bytes(13)),
)
put("tcb.not_accepted", "an older TDX 1.0 module", updates("td", tee_tcb_svn=bytes([4, 0, 3]) + bytes(13)))
put("tcb.not_accepted", "an older quoting enclave", updates("qe", isv_svn=3))
put("tcb.not_accepted", "SGX: an older level", sets("sgx", svns=OLD_SVNS), SGX3)


@attack("tcb.revoked")
def a_revoked_level(w: World) -> None:
    w.tcb_info["tcbLevels"][0]["tcbStatus"] = "Revoked"
    w.accept = "everything"


@attack("tcb.revoked")
def a_revoked_module(w: World) -> None:
    w.tcb_info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = "Revoked"
    w.accept = "everything"


@attack("tcb.revoked", TDX4, SGX3)
def a_revoked_quoting_enclave(w: World) -> None:
    w.qe_identity["tcbLevels"][0]["tcbStatus"] = "Revoked"
    w.accept = "everything"


@attack("tcb.revoked", TDX5, TDX5EX)
def a_module_that_is_revoked_now(w: World) -> None:
    w.tcb_info["tdxModuleIdentities"][0]["tcbLevels"].append(isv_level(9, "Revoked"))
    w.td["tee_tcb_svn_2"] = bytes([9, 1, 3]) + bytes(13)
    w.accept = "everything"


@attack("tcb.not_accepted", TDX5)
def a_td_that_should_be_started_again(w: World) -> None:
    w.td["tee_tcb_svn"] = bytes([4, 1, 3]) + bytes(13)


@attack("tcb.no_match", TDX5)
def a_module_now_below_every_level(w: World) -> None:
    w.td["tee_tcb_svn_2"] = bytes([5, 1, 0]) + bytes(13)


@attack("tcb.module_no_match", TDX5)
def a_module_now_that_nobody_knows(w: World) -> None:
    w.td["tee_tcb_svn_2"] = bytes([5, 4, 3]) + bytes(13)
