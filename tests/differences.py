"""The differences of docs/differences.md, as rules that a test can apply."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "differences.md"


@dataclass(frozen=True)
class Rule:
    """A difference `id` explains that we answer `ours` (a code, or "ok") to a question whose name holds a `word`."""

    id: str
    ours: tuple[str, ...]
    words: tuple[str, ...] = ("",)


# The first rule that fits explains; a narrower one stands before a wider one.
RULES = (
    Rule("trailing-bytes", ("quote.trailing_bytes",)),
    Rule("length-slack", ("quote.length_mismatch",), ("signature_data_length",)),
    Rule("outer-type", ("quote.certification_type_unsupported",), ("outer_cert_data_type",)),
    Rule("pem-text", ("chain.malformed", "signer.malformed"), ("pem ", "nul", "white space", "line", "spelling")),
    Rule("certificate-bytes", ("chain.malformed",), ("leaf:", "critical flag", "certificate", "name ", "attribute ")),
    Rule("certificate-bytes", ("crl.malformed",), ("an extension twice",)),
    Rule("pck-beside", ("chain.not_in_quote",), ("beside the quote",)),
    Rule("chain-length", ("chain.length", "signer.length")),
    Rule("chain-names", ("chain.names", "signer.names")),
    Rule("chain-profile", ("chain.profile",)),
    Rule("root-edition", ("chain.signature_invalid",), ("a root with the right key",)),
    Rule("root-dates", ("chain.not_yet_valid", "chain.expired"), ("root",)),
    Rule("sgx-extension", ("chain.pck_extension",)),
    Rule("crl-issuer-chain", ("signer.signature_invalid",), ("a crl issuer",)),
    Rule("root-revoked", ("signer.revoked",), ("an edition of itself",)),
    Rule("crl-profile", ("crl.profile",)),
    Rule("crl-this-update", ("crl.not_yet_valid",)),
    Rule("qe-identity-version", ("collateral.version_unsupported",), ("QE identity version 3",)),
    Rule("tcb-type", ("collateral.tcb_type_unsupported",)),
    Rule("pceid", ("collateral.pceid_mismatch",)),
    Rule("documents", ("collateral.malformed", "collateral.too_large"), ("signed", "SGX TCB info")),
    Rule("qe-report-tail", ("qe.key_not_bound",), ("tail",)),
    Rule("seam-attributes", ("module.attributes_mismatch",)),
    Rule("nested-vm", ("quote.nested_vm",)),
    Rule("service-td-extended", ("quote.service_td",), ("extended report",)),
    Rule("reserved-attributes", ("quote.attributes_unknown",)),
    Rule("revoked-now", ("tcb.revoked",), ("revoked now",)),
    Rule("crl-last-second", ("ok",), ("last second", "at valid_until")),
    Rule("certificate-order", ("ok",), ("certificates in another order",)),
    Rule("level-order", ("ok",), ("levels in another order",)),
    Rule("auth-data", ("ok",), ("auth data of",)),
    Rule("crl-reason", ("ok",), ("a reason that nobody knows",)),
    Rule("pcesvn-high", ("ok",), ("a pcesvn with its top bit set",)),
    Rule("before-1970", ("ok",), ("before 1970",)),
    Rule("unread-bytes", ("ok",), ("distribution points that are no der",)),
    Rule("sgx-v5", ("ok",), ("sgx v5",)),
)


def explained_by(question: str, ours: str) -> str | None:
    """The id of the difference that explains our answer, or None."""
    return next((rule.id for rule in RULES if ours in rule.ours and any(word in question for word in rule.words)), None)


def documented() -> set[str]:
    """The ids in the tables of the document."""
    return set(re.findall(r"^\| ([a-z0-9-]+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)) - {"id", "---"}
