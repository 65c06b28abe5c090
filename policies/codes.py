"""Why a policy refuses, and what is wrong with a bundle, as stable codes.

Decides the names: add, never rename or reuse. Which check raises which code is decided where the check is. `MEANING`
says in one line each what happened and what to do, for people who read only the code.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class PolicyCode(StrEnum):
    """Why a decision went against the agent. `policy.floor_*` is what no policy can allow."""

    FLOOR_DEBUG = "policy.floor_debug"
    FLOOR_NOT_COMPARED = "policy.floor_not_compared"
    FLOOR_NOT_ADMITTED = "policy.floor_not_admitted"
    FLOOR_REVOKED = "policy.floor_revoked"
    FLOOR_TEE = "policy.floor_tee"
    FLOOR_TIME = "policy.floor_time"
    TENANT = "policy.tenant_mismatch"
    RESOURCE_TENANT = "policy.resource_of_another_tenant"
    RESOURCE_NAME = "policy.resource_name_invalid"
    TCB_STATUS = "policy.tcb_not_accepted"
    TCB_DATE = "policy.tcb_date_too_old"
    EVALUATION_NUMBER = "policy.evaluation_number_too_low"
    ADVISORY_DENIED = "policy.advisory_denied"
    ADVISORY_NOT_ALLOWED = "policy.advisory_not_allowed"
    PLATFORM = "policy.platform_not_allowed"
    PLATFORM_ANY_ENDED = "policy.platform_any_ended"
    PLATFORM_CONFIGURATION = "policy.platform_configuration"
    PLATFORM_ADDRESSES = "policy.platform_seen_elsewhere"
    ALLOWANCE = "policy.allowance_not_granted"
    ALLOWANCE_ENDED = "policy.allowance_ended"
    MEASUREMENT = "policy.measurement_mismatch"
    REFERENCE_ENDED = "policy.reference_value_ended"
    LAUNCHES = "policy.launches_mismatch"
    EVENT_LOG = "policy.event_log_missing"
    EVENT = "policy.event_missing"
    STALE = "policy.verdict_stale"
    SUITE = "policy.suite_not_accepted"
    ROLE = "policy.role_not_accepted"
    NO_RULE = "policy.no_rule"
    CONDITION = "policy.condition_not_met"
    FORBIDDEN = "policy.forbidden"
    RULE_ERROR = "policy.rule_error"
    LABEL = "policy.label_not_taken"


class BundleCode(StrEnum):
    """What is wrong with a bundle. `bundle.*` is found while loading, before anything is judged; `manifest.*` when a
    CoRIM is imported into one."""

    MISSING_FILE = "bundle.file_missing"
    UNKNOWN_FILE = "bundle.file_unknown"
    TOO_LARGE = "bundle.too_large"
    SYNTAX = "bundle.syntax"
    KEY_UNKNOWN = "bundle.key_unknown"
    KEY_MISSING = "bundle.key_missing"
    TYPE = "bundle.type"
    VALUE = "bundle.value"
    DUPLICATE = "bundle.duplicate"
    SCHEMA = "bundle.schema"
    RULE_ID = "bundle.rule_id"
    RULE_INVALID = "bundle.rule_invalid"
    RULE_NEVER_FIRES = "bundle.rule_never_fires"
    RULE_UNCONDITIONAL = "bundle.rule_unconditional"
    LAUNCH_NOT_PINNED = "bundle.launch_not_pinned"
    ENDED = "bundle.ended"
    OLDER = "bundle.older"
    SAME_VERSION = "bundle.same_version"
    UNSIGNED = "bundle.unsigned"
    SIGNATURE = "bundle.signature_invalid"
    TEST_CASE = "bundle.test_case"
    RECORDING = "bundle.recording"
    MANIFEST_UNSIGNED = "manifest.unsigned"
    MANIFEST_SIGNATURE = "manifest.signature_invalid"
    MANIFEST_HEADER = "manifest.header_not_understood"
    MANIFEST_VALIDITY = "manifest.not_in_force"
    MANIFEST_PROFILE = "manifest.profile_unknown"
    MANIFEST_ENVIRONMENT = "manifest.environment_not_meant"


# code → (what happened, what to do)
class DecisionCode(StrEnum):
    """What is wrong with a decision that somebody handed on in a file."""

    MALFORMED = "decision.malformed"
    TOO_LARGE = "decision.too_large"
    LOG_PROOF = "decision.log_proof"
    LOG_KEY = "decision.log_key"
    PART = "decision.part_mismatch"
    EVIDENCE = "decision.evidence_invalid"
    KIND = "decision.kind_unsupported"
    DIFFERS = "decision.differs"


MEANING: Final[dict[str, tuple[str, str]]] = {
    PolicyCode.FLOOR_DEBUG: (
        "The trust domain runs in debug mode: its host reads its memory.",
        "Launch it without DEBUG. No policy can allow this.",
    ),
    PolicyCode.FLOOR_NOT_COMPARED: (
        "REPORT_DATA was compared with nothing, so the quote may be somebody else's.",
        "Verify again with the expected REPORT_DATA or Binding.",
    ),
    PolicyCode.FLOOR_NOT_ADMITTED: (
        "The evidence is not bound to an agent's keys, nonce and tenant.",
        "Only an admission (a Binding in REPORT_DATA) can ask for this; attest with the broker first.",
    ),
    PolicyCode.FLOOR_REVOKED: ("Part of the platform is revoked.", "Replace the platform. No policy can allow this."),
    PolicyCode.FLOOR_TEE: ("This is not a TDX trust domain.", "Agents run in trust domains; send a TDX quote."),
    PolicyCode.FLOOR_TIME: (
        "The moment of the decision lies outside the time for which the evidence was proved.",
        "Attest again with collateral that is in force.",
    ),
    PolicyCode.TENANT: ("The agent belongs to another tenant.", "Ask the broker of the agent's own tenant."),
    PolicyCode.RESOURCE_TENANT: (
        "The thing asked for belongs to another tenant. No rule can reach it.",
        "Use a name that starts with the bundle's own tenant.",
    ),
    PolicyCode.RESOURCE_NAME: (
        "The name is not tenant/path/name.",
        "Use 2 to 8 segments of letters, digits, '_', '.', '-', none starting with a dot.",
    ),
    PolicyCode.TCB_STATUS: ("The TCB state is not an accepted one.", "Update the platform, or accept the state."),
    PolicyCode.TCB_DATE: ("The TCB level is older than the policy wants.", "Update the platform, or lower the date."),
    PolicyCode.EVALUATION_NUMBER: (
        "The collateral belongs to an older TCB evaluation than the policy wants.",
        "Fetch newer collateral (the `early` update channel has it first), or lower the number.",
    ),
    PolicyCode.ADVISORY_DENIED: ("An advisory that the policy denies applies.", "Mend what the advisory names."),
    PolicyCode.ADVISORY_NOT_ALLOWED: ("An advisory applies that the policy does not list.", "Mend it, or allow it."),
    PolicyCode.PLATFORM: ("The platform is not listed.", "Add its PPID, PIID or FMSPC after checking who owns it."),
    PolicyCode.PLATFORM_ANY_ENDED: ("The dated `any` for platforms has ended.", "List the platforms, or set a date."),
    PolicyCode.PLATFORM_CONFIGURATION: (
        "The platform's configuration flags (dynamic, cached keys, SMT) differ from the policy.",
        "Use another platform, or change the flag in [platforms].",
    ),
    PolicyCode.PLATFORM_ADDRESSES: (
        "The same platform id was seen at more addresses than allowed: its key may have been extracted.",
        "Find out who uses the platform; raise max_addresses only if it really moves.",
    ),
    PolicyCode.ALLOWANCE: ("The evidence needs an allowance that is not granted.", "Mend the TD, or grant it dated."),
    PolicyCode.ALLOWANCE_ENDED: ("The allowance that the evidence needs has ended.", "Mend the TD, or renew it."),
    PolicyCode.MEASUREMENT: ("No reference value matches what runs.", "Run a known image, or add its value."),
    PolicyCode.REFERENCE_ENDED: ("The reference value that matches has ended.", "Run a newer image, or extend it."),
    PolicyCode.LAUNCHES: (
        "The programs launched in the TD are not the listed ones.",
        "Launch exactly the listed code.",
    ),
    PolicyCode.EVENT_LOG: ("The policy reads the event log and none came.", "Send the event log with the quote."),
    PolicyCode.EVENT: ("An event that the policy wants is not in the log.", "Run an image that measures it."),
    PolicyCode.STALE: ("The evidence is older than the policy allows.", "Attest again."),
    PolicyCode.SUITE: ("The sealing suite is not accepted.", "Use an accepted suite, or name this one in `suites`."),
    PolicyCode.ROLE: ("The role in the binding is not accepted.", "Bind the evidence for an accepted role."),
    PolicyCode.NO_RULE: ("No permit is about this action and resource.", "Write one, or ask for another resource."),
    PolicyCode.CONDITION: ("A permit is about this, but one of its conditions does not hold.", "See `passes_if`."),
    PolicyCode.LABEL: (
        "A message bears a label that the bundle does not list for where it goes.",
        "Leave the label off, or add it to `labels` in `[mail]` or the mailbox's table.",
    ),
    PolicyCode.FORBIDDEN: ("A forbid applies, and a forbid wins.", "See `passes_if` of the forbid."),
    PolicyCode.RULE_ERROR: ("A rule could not be evaluated, which denies.", "Mend the rule (see `found`)."),
    BundleCode.MISSING_FILE: ("A file of the bundle is missing.", "Write it; `cloister policy init` shows each."),
    BundleCode.UNKNOWN_FILE: ("A file does not belong into a bundle.", "Move or rename it."),
    BundleCode.TOO_LARGE: ("A file or the bundle is too large.", "Split the bundle by tenant."),
    BundleCode.SYNTAX: ("A file is not well formed.", "See file and line."),
    BundleCode.KEY_UNKNOWN: ("A key is not known here.", "Mend the spelling; the nearest known key is named."),
    BundleCode.KEY_MISSING: ("A key that must be there is missing.", "Add it."),
    BundleCode.TYPE: ("A value has the wrong type.", "See the hint."),
    BundleCode.VALUE: ("A value is not one of those possible here.", "See the hint."),
    BundleCode.DUPLICATE: ("Something is defined twice.", "Remove or rename one."),
    BundleCode.SCHEMA: ("The schema is not the one of this version.", "Write it again from the starter."),
    BundleCode.RULE_ID: ("A rule has no usable @id.", 'Put @id("a-name") before it.'),
    BundleCode.RULE_INVALID: ("A rule does not fit the schema.", "See the hint."),
    BundleCode.RULE_NEVER_FIRES: ("A rule can never apply.", "Mend or remove it."),
    BundleCode.RULE_UNCONDITIONAL: ("A permit has no condition at all.", "Say for whom and when it holds."),
    BundleCode.LAUNCH_NOT_PINNED: (
        "Launch digests are listed where the image is not pinned: any image could claim them.",
        "Pin mr_td, rtmr1 and rtmr2 in the same value.",
    ),
    BundleCode.ENDED: ("An end date has passed, so what it dates can never apply.", "Remove or renew it."),
    BundleCode.OLDER: ("The bundle is older than one already seen.", "Deploy a newer version."),
    BundleCode.SAME_VERSION: ("The content differs under the same version.", "Raise `version`."),
    BundleCode.UNSIGNED: ("Too few trusted keys have signed the bundle.", "`cloister policy sign` with more keys."),
    BundleCode.SIGNATURE: ("A signature is not one over this bundle.", "Sign again after the last change."),
    BundleCode.TEST_CASE: ("A test case is not usable.", "See the hint."),
    BundleCode.RECORDING: ("Recorded evidence is not readable.", "See docs/policies.md for the format."),
    BundleCode.MANIFEST_UNSIGNED: (
        "Nobody signed the CoRIM.",
        "Ask for the signed file; `--unsigned` takes this one as it is.",
    ),
    BundleCode.MANIFEST_SIGNATURE: (
        "The CoRIM's signature is not one of the named key, or no key is named.",
        "Name the signer's key or certificate with `--signer`; if it is the right one, the file was changed.",
    ),
    BundleCode.MANIFEST_HEADER: (
        "What the CoRIM's signer wrote about the signature can't be understood, is missing, or contradicts itself.",
        "See the detail; ask the signer for a COSE_Sign1 with the manifest in it.",
    ),
    BundleCode.MANIFEST_VALIDITY: (
        "The CoRIM, its signature or the signer's certificate is not in force.",
        "Ask for a newer one.",
    ),
    BundleCode.MANIFEST_PROFILE: (
        "The CoRIM is of a profile that is not known here, so what it means is not known either.",
        "Ask for one of Intel's profile, or of none.",
    ),
    BundleCode.MANIFEST_ENVIRONMENT: (
        "No environment of the CoRIM is the one that was named, or it is no trust domain.",
        "Name the one that is your trust domain with `--environment`; the hint lists those that are there.",
    ),
    DecisionCode.MALFORMED: ("The file is not a decision.", "Ask for it again: `cloister audit bundle INDEX`."),
    DecisionCode.TOO_LARGE: (
        "The decision does not fit into a file of 64 KiB.",
        "Take the evidence from the broker's archive: event logs of that size are rare.",
    ),
    DecisionCode.LOG_PROOF: (
        "The entry does not stand in the log that the file shows.",
        "Do not believe the decision, and keep the file: it was changed, or the log was.",
    ),
    DecisionCode.LOG_KEY: (
        "The log is not that of the broker in question.",
        "Compare with the broker's log key: the file log.vkey, or the trust file.",
    ),
    DecisionCode.PART: (
        "Collateral or policy in the file are not those that the log entry names.",
        "Do not believe the decision: a part was exchanged.",
    ),
    DecisionCode.EVIDENCE: (
        "The evidence is not whole, not the entry's, or its sender did not hold the key.",
        "Do not believe the decision: it was taken on something else, or on nothing.",
    ),
    DecisionCode.KIND: ("The log entry records no decision on evidence.", "Name an admission, a release or a refusal."),
    DecisionCode.DIFFERS: (
        "The parts lead to another decision than the one in the log.",
        "Find out what that broker runs: it decided against its own policy, or judged by another root.",
    ),
}
