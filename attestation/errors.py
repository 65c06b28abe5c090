"""What can go wrong, as stable codes, and the exceptions that carry them.

Decides the names: a `Code` is public and stable (add, never rename or reuse) and each has a row in `MEANING` that says
what happened and what to do. Which check raises which code is decided where the check is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from attestation.appraisal import TcbState
    from attestation.checks import Check


class Code(StrEnum):
    """`family.what`. The family says which part of the evidence or of its proof is wrong."""

    # the quote's bytes
    QUOTE_EMPTY = "quote.empty"
    QUOTE_TOO_LARGE = "quote.too_large"
    QUOTE_TRUNCATED = "quote.truncated"
    QUOTE_VERSION = "quote.version_unsupported"
    QUOTE_KEY_TYPE = "quote.key_type_unsupported"
    QUOTE_TEE = "quote.tee_unsupported"
    QUOTE_RESERVED = "quote.reserved_not_zero"
    QUOTE_BODY_TYPE = "quote.body_type_unsupported"
    QUOTE_BODY_SIZE = "quote.body_size_mismatch"
    QUOTE_LENGTH = "quote.length_mismatch"
    QUOTE_CERTIFICATION_TYPE = "quote.certification_type_unsupported"
    QUOTE_CERTIFICATION_SIZE = "quote.certification_size_mismatch"
    QUOTE_TRAILING = "quote.trailing_bytes"
    # the quote's claims and signature
    QUOTE_DEBUG = "quote.debug"
    QUOTE_SEPT_VE_DISABLE = "quote.sept_ve_disable_clear"
    QUOTE_MIGRATABLE = "quote.migratable"
    QUOTE_SERVICE_TD = "quote.service_td"
    QUOTE_NESTED_VM = "quote.nested_vm"
    QUOTE_ATTRIBUTES = "quote.attributes_unknown"
    QUOTE_KEY_INVALID = "quote.key_invalid"
    QUOTE_SIGNATURE = "quote.signature_invalid"
    # the PCK certificate chain inside the quote
    CHAIN_NOT_IN_QUOTE = "chain.not_in_quote"
    CHAIN_MALFORMED = "chain.malformed"
    CHAIN_LENGTH = "chain.length"
    CHAIN_NAMES = "chain.names"
    CHAIN_ROOT = "chain.root_not_trusted"
    CHAIN_PROFILE = "chain.profile"
    CHAIN_SIGNATURE = "chain.signature_invalid"
    CHAIN_PCK_EXTENSION = "chain.pck_extension"
    CHAIN_REVOKED = "chain.revoked"
    CHAIN_NOT_YET_VALID = "chain.not_yet_valid"
    CHAIN_EXPIRED = "chain.expired"
    # the certificates that sign collateral: TCB signing chain, issuer chain of the PCK CRL
    SIGNER_MALFORMED = "signer.malformed"
    SIGNER_LENGTH = "signer.length"
    SIGNER_NAMES = "signer.names"
    SIGNER_ROOT = "signer.root_not_trusted"
    SIGNER_PROFILE = "signer.profile"
    SIGNER_SIGNATURE = "signer.signature_invalid"
    SIGNER_REVOKED = "signer.revoked"
    SIGNER_NOT_YET_VALID = "signer.not_yet_valid"
    SIGNER_EXPIRED = "signer.expired"
    # certificate revocation lists
    CRL_MALFORMED = "crl.malformed"
    CRL_PROFILE = "crl.profile"
    CRL_ISSUER = "crl.issuer_mismatch"
    CRL_SIGNATURE = "crl.signature_invalid"
    CRL_NOT_YET_VALID = "crl.not_yet_valid"
    CRL_EXPIRED = "crl.expired"
    # TCB info and QE identity
    COLLATERAL_TOO_LARGE = "collateral.too_large"
    COLLATERAL_MALFORMED = "collateral.malformed"
    COLLATERAL_SIGNATURE = "collateral.signature_invalid"
    COLLATERAL_VERSION = "collateral.version_unsupported"
    COLLATERAL_TEE = "collateral.tee_mismatch"
    COLLATERAL_TCB_TYPE = "collateral.tcb_type_unsupported"
    COLLATERAL_FMSPC = "collateral.fmspc_mismatch"
    COLLATERAL_PCEID = "collateral.pceid_mismatch"
    COLLATERAL_NOT_YET_VALID = "collateral.not_yet_valid"
    COLLATERAL_EXPIRED = "collateral.expired"
    COLLATERAL_EVALUATION = "collateral.evaluation_numbers_differ"
    # the quoting enclave
    QE_VENDOR = "qe.vendor_unknown"
    QE_SIGNATURE = "qe.report_signature_invalid"
    QE_KEY_NOT_BOUND = "qe.key_not_bound"
    QE_DEBUG = "qe.debug"
    QE_MISCSELECT = "qe.miscselect_mismatch"
    QE_ATTRIBUTES = "qe.attributes_mismatch"
    QE_SIGNER = "qe.signer_mismatch"
    QE_PRODUCT = "qe.product_mismatch"
    # the TDX module
    MODULE_IDENTITY = "module.identity_missing"
    MODULE_SIGNER = "module.signer_mismatch"
    MODULE_ATTRIBUTES = "module.attributes_mismatch"
    # TCB levels
    TCB_NO_MATCH = "tcb.no_match"
    TCB_MODULE_NO_MATCH = "tcb.module_no_match"
    TCB_QE_NO_MATCH = "tcb.qe_no_match"
    TCB_REVOKED = "tcb.revoked"
    TCB_NOT_ACCEPTED = "tcb.not_accepted"
    # REPORT_DATA
    BINDING_REPORT_DATA = "binding.report_data_mismatch"
    BINDING_NOT_COMPARED = "binding.not_compared"
    # trust anchors given by the caller
    ROOTS_MALFORMED = "roots.malformed"
    # event logs
    EVENTLOG_DIGEST = "eventlog.digest_mismatch"
    EVENTLOG_LAUNCH = "eventlog.launch_invalid"
    EVENTLOG_MALFORMED = "eventlog.malformed"
    EVENTLOG_NOT_A_TD = "eventlog.not_a_td"
    EVENTLOG_REPLAY = "eventlog.replay_mismatch"
    EVENTLOG_TOO_LARGE = "eventlog.too_large"
    # what an agent sends beside its quote
    EVIDENCE_FIELD = "evidence.field_invalid"
    EVIDENCE_KEY = "evidence.key_invalid"
    EVIDENCE_MALFORMED = "evidence.malformed"
    EVIDENCE_PROOF = "evidence.proof_invalid"
    EVIDENCE_SUITE = "evidence.suite_unknown"
    EVIDENCE_TOO_LARGE = "evidence.too_large"
    # sealing
    SEALING_KEY = "sealing.key_invalid"
    SEALING_NOT_BOUND = "sealing.not_bound"
    SEALING_OPEN = "sealing.open_failed"
    SEALING_SUITE = "sealing.suite_unknown"
    SEALING_TOO_LARGE = "sealing.too_large"
    SEALING_UNAVAILABLE = "sealing.suite_unavailable"
    # tokens and results
    TOKEN_ALGORITHM = "token.algorithm"
    TOKEN_AUDIENCE = "token.audience"
    TOKEN_CLAIMS = "token.claims_invalid"
    TOKEN_CRITICAL = "token.header_not_allowed"
    TOKEN_EXPIRED = "token.expired"
    TOKEN_ISSUER = "token.issuer"
    TOKEN_KEY = "token.key_unknown"
    TOKEN_LIFETIME = "token.lifetime"
    TOKEN_MALFORMED = "token.malformed"
    TOKEN_NOT_ADMISSIBLE = "token.not_admissible"
    TOKEN_NOT_YET = "token.not_yet_valid"
    TOKEN_SIGNATURE = "token.signature_invalid"
    TOKEN_TOO_LARGE = "token.too_large"
    TOKEN_TYPE = "token.type"
    # collateral that could not be had
    COLLATERAL_ANSWER = "collateral.answer_invalid"
    COLLATERAL_NOT_FOUND = "collateral.not_found"
    COLLATERAL_PLATFORM = "collateral.platform_unknown"
    COLLATERAL_ROLLBACK = "collateral.rollback"
    COLLATERAL_STALE = "collateral.stale"
    COLLATERAL_UNREACHABLE = "collateral.unavailable"
    # TDVF images, for predicting MRTD
    IMAGE_DESCRIPTOR = "image.descriptor_malformed"
    IMAGE_INCOMPLETE = "image.sections_incomplete"
    IMAGE_NOT_TDVF = "image.not_tdvf"
    IMAGE_OVERLAP = "image.sections_overlap"
    IMAGE_SECTION = "image.section_invalid"
    IMAGE_TABLE = "image.table_malformed"
    IMAGE_TOO_LARGE = "image.too_large"


class CloisterError(Exception):
    """What every part raises on purpose. `code` is stable and for machines, `detail` says what was found and `remedy`
    what would help (empty where only the one who refused can know). None of them ever holds a secret."""

    code: str
    detail: str
    remedy: str = ""


class AttestationError(CloisterError):
    """`code` is for machines, `detail` for the operator's log; neither ever holds a secret."""

    code: Code

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.remedy = MEANING[code][1]


class MalformedEvidence(AttestationError):
    """Not well formed. The sender's fault; do not retry."""


class VerificationFailed(AttestationError):
    """Well formed, not trustworthy. Refuse.

    `checks` holds every check that ran, passed or failed, in step order; `state` is the TCB state where that alone was
    the reason.
    """

    def __init__(self, code: Code, detail: str, checks: tuple[Check, ...] = (), state: TcbState | None = None) -> None:
        super().__init__(code, detail)
        self.checks = checks
        self.state = state


class CollateralUnavailable(AttestationError):
    """We could not judge. Refuse now, retry later; never a pass."""


class TokenRefused(AttestationError):
    """A token or result that is not what the reader demands. Ask for a new one."""


class SealingFailed(AttestationError):
    """Sealing or opening did not work. One code for every cause of a failed opening, on purpose."""


# code → (what happened, what to do)
MEANING: Final[dict[Code, tuple[str, str]]] = {
    Code.QUOTE_EMPTY: ("There is no quote: zero bytes were given.", "Send the quote that the trust domain produced."),
    Code.QUOTE_TOO_LARGE: ("The quote is larger than 1 MiB.", "Send the quote alone; real ones have 4 to 16 KiB."),
    Code.QUOTE_TRUNCATED: ("The bytes end inside a field.", "Send the whole quote; check how it was read and encoded."),
    Code.QUOTE_VERSION: ("The version is not 3, 4 or 5.", "Send an SGX v3 or a TDX v4 or v5 quote in raw bytes."),
    Code.QUOTE_KEY_TYPE: (
        "The attestation key is not ECDSA P-256 (type 2).",
        "Use Intel's ECDSA P-256 quoting enclave.",
    ),
    Code.QUOTE_TEE: (
        "The TEE type is not SGX (v3, v5) or TDX (v4, v5).",
        "Check that these are the raw bytes of an Intel quote.",
    ),
    Code.QUOTE_RESERVED: (
        "A reserved field that Intel defines as zero is not.",
        "Get a fresh quote from the platform.",
    ),
    Code.QUOTE_BODY_TYPE: (
        "The v5 body type is unknown.",
        "Known are 1 (SGX) and 2, 3, 4 (TD report 1.0, 1.5, 1.5Ex).",
    ),
    Code.QUOTE_BODY_SIZE: ("The v5 body size is not the size of its type.", "Get a fresh quote from the platform."),
    Code.QUOTE_LENGTH: (
        "The parts of the signature data do not fill its declared length exactly.",
        "Get a fresh quote; these bytes were altered or cut.",
    ),
    Code.QUOTE_CERTIFICATION_TYPE: (
        "The certification data type is not one that this quote version carries.",
        "v3 carries 1 to 5; v4 and v5 carry 6 with 1 to 5 inside.",
    ),
    Code.QUOTE_CERTIFICATION_SIZE: (
        "The certification data has not the size of its type.",
        "Get a fresh quote; these bytes were altered or cut.",
    ),
    Code.QUOTE_TRAILING: (
        "Bytes other than zeros follow the quote.",
        "Send the quote alone; zero padding is dropped, anything else is refused.",
    ),
    Code.QUOTE_DEBUG: (
        "The trust domain or enclave runs in debug mode: its host can read its memory.",
        "Launch it without the DEBUG attribute. Nothing can allow this.",
    ),
    Code.QUOTE_SEPT_VE_DISABLE: (
        "SEPT_VE_DISABLE is clear: the host may inject #VE by removing pages.",
        "Launch with SEPT_VE_DISABLE, or name the allowance sept_ve_disable_clear (paravisor clouds need it).",
    ),
    Code.QUOTE_MIGRATABLE: (
        "The trust domain may be migrated by a migration TD.",
        "Launch it without MIGRATABLE, or name the allowance migratable and pin MRSERVICETD.",
    ),
    Code.QUOTE_SERVICE_TD: (
        "A service TD is bound to the trust domain (MRSERVICETD is not zero).",
        "Launch it without service TDs, or name the allowance service_td and pin MRSERVICETD.",
    ),
    Code.QUOTE_NESTED_VM: (
        "A VM inside the trust domain asked for the quote, and nothing in it measures that VM.",
        "Ask from the trust domain itself, or name the allowance nested_vm if its L1 may speak for its VMs.",
    ),
    Code.QUOTE_ATTRIBUTES: (
        "Reserved or unknown ATTRIBUTES bits are set.",
        "Clear them, or name the allowance unknown_attributes once you know what they mean.",
    ),
    Code.QUOTE_KEY_INVALID: ("The attestation key is not a point on P-256.", "Get a fresh quote from the platform."),
    Code.QUOTE_SIGNATURE: (
        "The attestation key did not sign this header and body.",
        "The quote was altered after it was made; get a fresh one.",
    ),
    Code.CHAIN_NOT_IN_QUOTE: (
        "The quote carries no PCK certificate chain (its certification data is not of type 5).",
        "Have the platform's quoting service embed the chain: set up its PCK cache (PCCS), then quote again.",
    ),
    Code.CHAIN_MALFORMED: (
        "The certificates in the quote are not well-formed PEM and DER.",
        "Get a fresh quote; these bytes were altered, or the platform's PCK cache holds rubbish.",
    ),
    Code.CHAIN_LENGTH: (
        "The PCK chain has not exactly three certificates.",
        "It must be leaf, PCK CA and root; refresh the platform's PCK cache and quote again.",
    ),
    Code.CHAIN_NAMES: (
        "Names in the PCK chain are not Intel's, or do not link leaf to CA to root.",
        "Refresh the platform's PCK cache and quote again.",
    ),
    Code.CHAIN_ROOT: (
        "The PCK chain ends in a root that is not among the trusted ones.",
        "Check which root you trust; a simulated quote is only accepted under its own machine's root.",
    ),
    Code.CHAIN_PROFILE: (
        "A certificate of the PCK chain breaks Intel's profile (extensions, CA flag, key usage, algorithm).",
        "Refresh the platform's PCK cache and quote again.",
    ),
    Code.CHAIN_SIGNATURE: (
        "A certificate of the PCK chain is not signed by the one above it.",
        "Refuse: the chain was forged or altered.",
    ),
    Code.CHAIN_PCK_EXTENSION: (
        "The PCK certificate's SGX extension is malformed or contradicts itself.",
        "Refresh the platform's PCK cache and quote again.",
    ),
    Code.CHAIN_REVOKED: (
        "Intel has revoked the PCK certificate or its CA.",
        "Refuse for good: keys of this platform are known to be lost. Use another platform.",
    ),
    Code.CHAIN_NOT_YET_VALID: ("A certificate of the PCK chain is not valid yet.", "Check the verifier's clock."),
    Code.CHAIN_EXPIRED: (
        "A certificate of the PCK chain has expired.",
        "Fetch a new PCK certificate for the platform; check the verifier's clock.",
    ),
    Code.SIGNER_MALFORMED: (
        "An issuer chain in the collateral is not well-formed PEM and DER.",
        "Fetch the collateral again.",
    ),
    Code.SIGNER_LENGTH: (
        "An issuer chain in the collateral has not exactly two certificates.",
        "It must be signer and root; fetch the collateral again.",
    ),
    Code.SIGNER_NAMES: (
        "Names in an issuer chain are not Intel's for that role, or do not link signer to root.",
        "Fetch the collateral again; TCB info is signed by the TCB signer alone.",
    ),
    Code.SIGNER_ROOT: (
        "An issuer chain ends in a root that is not among the trusted ones.",
        "Take collateral and quote from the same world: Intel's, or one simulated machine's.",
    ),
    Code.SIGNER_PROFILE: ("A certificate that signs collateral breaks Intel's profile.", "Fetch the collateral again."),
    Code.SIGNER_SIGNATURE: (
        "A certificate that signs collateral is not signed by the root.",
        "Refuse: the chain was forged or altered.",
    ),
    Code.SIGNER_REVOKED: (
        "A certificate that signs collateral is revoked.",
        "Fetch the collateral again; it must come from a signer in good standing.",
    ),
    Code.SIGNER_NOT_YET_VALID: ("A certificate that signs collateral is not valid yet.", "Check the verifier's clock."),
    Code.SIGNER_EXPIRED: (
        "A certificate that signs collateral has expired.",
        "Fetch the collateral again; check the verifier's clock.",
    ),
    Code.CRL_MALFORMED: (
        "A revocation list is not well-formed DER.",
        "Fetch the collateral again (CRLs in DER, not PEM).",
    ),
    Code.CRL_PROFILE: (
        "A revocation list breaks Intel's profile: number, key id or end missing, or partial, delta or indirect.",
        "Fetch the full CRL again.",
    ),
    Code.CRL_ISSUER: (
        "A revocation list is not issued by the CA whose certificates it should cover.",
        "Fetch the CRL of the quote's own CA (platform or processor).",
    ),
    Code.CRL_SIGNATURE: ("A revocation list is not signed by its issuer.", "Refuse: the list was forged or altered."),
    Code.CRL_NOT_YET_VALID: ("A revocation list is not in force yet.", "Check the verifier's clock."),
    Code.CRL_EXPIRED: ("A revocation list has expired.", "Fetch the collateral again; check the verifier's clock."),
    Code.COLLATERAL_TOO_LARGE: (
        "The collateral is larger than 4 MiB, or has more parts than any real one.",
        "Fetch the collateral again; real sets have 15 to 40 KiB.",
    ),
    Code.COLLATERAL_MALFORMED: (
        "The collateral, or a document in it, is not what Intel's format says.",
        "Fetch the collateral again; keep signed texts byte for byte.",
    ),
    Code.COLLATERAL_SIGNATURE: (
        "TCB info or QE identity is not signed by the TCB signer.",
        "Fetch it again and keep its exact bytes; a re-serialised document no longer verifies.",
    ),
    Code.COLLATERAL_VERSION: (
        "TCB info is not version 3, or QE identity not version 2.",
        "Fetch collateral from version 4 of Intel's API.",
    ),
    Code.COLLATERAL_TEE: (
        "TCB info or QE identity is made for the other kind of TEE.",
        "Fetch TDX collateral for TDX quotes, SGX collateral for SGX quotes.",
    ),
    Code.COLLATERAL_TCB_TYPE: (
        "TCB info has a tcbType other than 0.",
        "Update cloister: a new way to compare TCB levels is unknown to it.",
    ),
    Code.COLLATERAL_FMSPC: (
        "TCB info is made for another platform family (FMSPC).",
        "Fetch TCB info for the FMSPC of the quote's PCK certificate.",
    ),
    Code.COLLATERAL_PCEID: (
        "TCB info is made for another provisioning enclave (PCEID).",
        "Fetch TCB info for the PCEID of the quote's PCK certificate.",
    ),
    Code.COLLATERAL_NOT_YET_VALID: (
        "TCB info or QE identity was issued after the moment of judgement.",
        "Check the verifier's clock.",
    ),
    Code.COLLATERAL_EXPIRED: (
        "TCB info or QE identity is past its nextUpdate.",
        "Fetch the collateral again; check the verifier's clock.",
    ),
    Code.COLLATERAL_EVALUATION: (
        "TCB info and QE identity come from different evaluation sets. A warning.",
        "It happens for hours when Intel promotes a set; fetch again later, or set a floor by policy.",
    ),
    Code.QE_VENDOR: ("The quote names a quoting enclave vendor other than Intel.", "Use Intel's quoting enclave."),
    Code.QE_SIGNATURE: (
        "The PCK key did not sign the quoting enclave's report.",
        "Refuse: the quote was forged or altered.",
    ),
    Code.QE_KEY_NOT_BOUND: (
        "The quoting enclave's report does not commit to the attestation key.",
        "Refuse: the attestation key was swapped.",
    ),
    Code.QE_DEBUG: (
        "The quoting enclave runs in debug mode.",
        "Refuse: its keys can be read. Reinstall Intel's signed quoting enclave.",
    ),
    Code.QE_MISCSELECT: (
        "The quoting enclave's MISCSELECT is not the one Intel published.",
        "Reinstall Intel's signed quoting enclave.",
    ),
    Code.QE_ATTRIBUTES: (
        "The quoting enclave's ATTRIBUTES are not the ones Intel published.",
        "Reinstall Intel's signed quoting enclave.",
    ),
    Code.QE_SIGNER: (
        "The quoting enclave is not signed by Intel (MRSIGNER).",
        "Refuse: this is somebody else's enclave.",
    ),
    Code.QE_PRODUCT: (
        "The enclave is Intel's but not the quoting enclave for this TEE (ISVPRODID).",
        "Refuse: another enclave posed as the quoting enclave.",
    ),
    Code.MODULE_IDENTITY: (
        "TCB info knows no TDX module of the version that the quote names.",
        "Fetch newer TCB info, or update the platform's TDX module to a version that Intel lists.",
    ),
    Code.MODULE_SIGNER: (
        "The TDX module is not signed by Intel (MRSIGNERSEAM).",
        "Refuse: an unknown module runs the platform.",
    ),
    Code.MODULE_ATTRIBUTES: (
        "The TDX module's SEAMATTRIBUTES are not zero or not the published ones.",
        "Refuse: the module runs in a mode that Intel does not list.",
    ),
    Code.TCB_NO_MATCH: (
        "The platform is below every TCB level that Intel lists.",
        "Update BIOS, microcode and TDX module; the detail names each SVN that is short.",
    ),
    Code.TCB_MODULE_NO_MATCH: (
        "The TDX module is below every level that Intel lists for its version.",
        "Update the TDX module.",
    ),
    Code.TCB_QE_NO_MATCH: (
        "The quoting enclave is below every level that Intel lists.",
        "Update the quoting enclave (DCAP packages).",
    ),
    Code.TCB_REVOKED: (
        "The TCB level of platform, TDX module or quoting enclave is Revoked.",
        "Refuse. Update what the detail names; nothing can accept this state.",
    ),
    Code.TCB_NOT_ACCEPTED: (
        "The TCB state is not among those that the caller accepts.",
        "Update what the detail names, or accept the state on purpose (accept=, --accept, policy).",
    ),
    Code.BINDING_REPORT_DATA: (
        "REPORT_DATA is not what was expected: this quote answers somebody else, or another question.",
        "Ask for a new challenge and quote again; refuse if it happens twice.",
    ),
    Code.BINDING_NOT_COMPARED: (
        "REPORT_DATA was not compared, because the caller said so.",
        "Give the expected 64 bytes before you trust the sender with anything.",
    ),
    Code.ROOTS_MALFORMED: (
        "The trusted roots are not self-signed P-256 certificates in PEM.",
        "Give the root's own certificate, for example the machine's root.pem.",
    ),
    Code.EVENTLOG_DIGEST: (
        "An event's data does not hash to the digest that was measured: its text cannot be believed.",
        "Send the log as the trust domain recorded it; data and digest belong together.",
    ),
    Code.EVENTLOG_LAUNCH: (
        "A launch event's data is not tag, 48-byte code digest and UTF-8 name of at most 255 bytes.",
        "Launch through `cloister run`, which writes the event.",
    ),
    Code.EVENTLOG_MALFORMED: (
        "The event log is neither a TCG2 crypto-agile log (CCEL) nor the dstack JSON form.",
        "Send the raw bytes of the CCEL data table, or the guest agent's event_log text.",
    ),
    Code.EVENTLOG_NOT_A_TD: (
        "An event log came with the quote of an SGX enclave, which has no run-time registers.",
        "Leave the event log out.",
    ),
    Code.EVENTLOG_REPLAY: (
        "Replaying the event log does not give the RTMRs of the quote.",
        "Send the whole log, taken after the last extension that the quote covers and before the next.",
    ),
    Code.EVENTLOG_TOO_LARGE: (
        "The event log, one of its events, or their number exceeds its bound.",
        "Send at most 1 MiB and 4,096 events.",
    ),
    Code.EVIDENCE_FIELD: (
        "A field of the binding has the wrong length or form.",
        "Compare with the table of the Binding; nonces, ids and file digests have 32 bytes.",
    ),
    Code.EVIDENCE_KEY: (
        "The identity key is not the SPKI of a P-256 point, or the sealing key has not its suite's length.",
        "Make the keys as the suite asks, inside the trust domain.",
    ),
    Code.EVIDENCE_MALFORMED: (
        "The evidence is not a JSON object with exactly the members it should have.",
        "Send quote, event_log, binding and proof; binary members in base64url without padding.",
    ),
    Code.EVIDENCE_PROOF: (
        "The proof of possession does not verify under the identity key.",
        "Sign this exchange's nonces, quote and log with the identity key that the quote binds.",
    ),
    Code.EVIDENCE_SUITE: ("The sealing suite is unknown.", "Known are mlkem768-x25519 and x25519."),
    Code.EVIDENCE_TOO_LARGE: ("A member of the evidence exceeds its bound.", "Quote and event log have 1 MiB each."),
    Code.SEALING_KEY: ("The bytes are not a key of the suite.", "Take the public key out of a verified verdict."),
    Code.SEALING_NOT_BOUND: (
        "The verdict carries no sealing key, so there is nothing to seal to.",
        "Seal only to a verdict that was admitted with a binding.",
    ),
    Code.SEALING_OPEN: (
        "The sealed bytes do not open: another key, context or suite, or altered bytes.",
        "Ask for a new one; the cause is not told apart on purpose.",
    ),
    Code.SEALING_SUITE: ("The sealing suite is unknown.", "Known are mlkem768-x25519 and x25519."),
    Code.SEALING_TOO_LARGE: ("The plaintext or sealed message exceeds 16 MiB.", "Seal a key, and the data under it."),
    Code.SEALING_UNAVAILABLE: (
        "This build of the cryptography library cannot do ML-KEM-768.",
        "Install the official wheel of cryptography; the suite is never replaced silently.",
    ),
    Code.TOKEN_ALGORITHM: ("The token is not signed with ES256.", "Only ES256 is read here, whatever the header asks."),
    Code.TOKEN_AUDIENCE: (
        "The token is for another audience.",
        "Ask for a token whose aud is this service's own string.",
    ),
    Code.TOKEN_CLAIMS: (
        "A claim is missing, of the wrong type, or contradicts another.",
        "Ask for a new token; if it repeats, issuer and reader differ in version.",
    ),
    Code.TOKEN_CRITICAL: (
        "The header holds a member that may not be there (crit, jku, jwk, x5u, x5c, …).",
        "Keys come from configuration, never from the token.",
    ),
    Code.TOKEN_EXPIRED: ("The token, or the verdict in it, has ended.", "Attest again."),
    Code.TOKEN_ISSUER: (
        "The token is from another issuer.",
        "Configure the issuer string exactly as the token has it.",
    ),
    Code.TOKEN_KEY: ("The token names a key that is not among the issuer's.", "Refresh the issuer's key set once."),
    Code.TOKEN_LIFETIME: ("The token lives longer than five minutes.", "Ask for a token of at most 300 s."),
    Code.TOKEN_MALFORMED: (
        "The bytes are not a compact JWS with canonical base64url and unambiguous JSON.",
        "Send the token exactly as it was issued.",
    ),
    Code.TOKEN_NOT_ADMISSIBLE: (
        "The verdict was not made from a Binding, so it can't become an admission.",
        "Verify the quote against the Binding of the exchange.",
    ),
    Code.TOKEN_NOT_YET: ("The token is from the future.", "Check the clocks of issuer and reader."),
    Code.TOKEN_SIGNATURE: ("The signature does not verify.", "Ask for a new token."),
    Code.TOKEN_TOO_LARGE: ("The token exceeds 64 KiB, or its header 8 KiB.", "Attest with a shorter event log."),
    Code.TOKEN_TYPE: (
        "The token is of another kind: a verification result is no admission, and the other way round.",
        "Send the kind of token that this door reads.",
    ),
    Code.COLLATERAL_ANSWER: (
        "The collateral service answered something that is not collateral, or too much of it.",
        "Check the address; it must speak the v4 interface of Intel's PCS.",
    ),
    Code.COLLATERAL_NOT_FOUND: (
        "The collateral service knows no collateral for this platform.",
        "Check the FMSPC; the platform may be too new or out of service.",
    ),
    Code.COLLATERAL_PLATFORM: (
        "The quote does not carry its PCK chain, so its platform is unknown.",
        "Use certification data of type 5, or give the collateral as a file.",
    ),
    Code.COLLATERAL_ROLLBACK: (
        "The collateral is older than collateral that was seen before.",
        "Find out who served the old set; empty the folder of kept collateral only if its history is wrong.",
    ),
    Code.COLLATERAL_STALE: (
        "The only collateral at hand is not in force at this time.",
        "Check the clock and the collateral service.",
    ),
    Code.COLLATERAL_UNREACHABLE: (
        "The collateral service could not be reached, or did not answer in time.",
        "Try again later, or give the collateral as a file.",
    ),
    Code.IMAGE_DESCRIPTOR: (
        "The TDVF descriptor has a wrong signature, version, length or number of sections.",
        "Check that the file is complete; rebuild the firmware.",
    ),
    Code.IMAGE_INCOMPLETE: (
        "The image has not exactly one TD_HOB section, no BFV, or volumes that do not fill the file.",
        "Give the whole image (code and variables in one file), not its code part alone.",
    ),
    Code.IMAGE_NOT_TDVF: (
        "The file holds no TDVF metadata.",
        "Use firmware built for TDX: edk2's IntelTdx or OvmfPkgX64 platform, or td-shim.",
    ),
    Code.IMAGE_OVERLAP: ("Two sections share memory or bytes of the file.", "Do not use this image; rebuild it."),
    Code.IMAGE_SECTION: (
        "A section's type, attributes, alignment or extent is impossible.",
        "Give the whole image, code and variables in one file; if it is whole, rebuild it.",
    ),
    Code.IMAGE_TABLE: ("A length in the firmware's GUID table is wrong.", "Check that the file is complete."),
    Code.IMAGE_TOO_LARGE: (
        "The image is larger than 64 MiB or asks for more than 256 MiB of initial memory.",
        "Check that this is a firmware image and not a disk.",
    ),
}
