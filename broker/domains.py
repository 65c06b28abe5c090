"""The trust domain that a broker runs in, and the trust file under which it runs there.

Decides how a domain is found by name (the entry points `cloister.trust_domain`: this package knows neither hardware nor
a simulator), that a trust file which contradicts the broker's own settings stops the start, and what a domain's
reference values are. A simulated domain is used only when it is asked for by name.
"""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.chains import claimed_platform
from attestation.ports import TrustDomain
from attestation.provided import provided
from attestation.quote import Quote
from broker.config import DOMAINS, Admin
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity
from broker.wire.trustfile import TrustFile, TrustFileFault
from policies.signing import Signers

GROUP: Final = "cloister.trust_domain"
LABEL: Final = "broker"


def open_domain(kind: str, machine: str = "") -> TrustDomain | None:
    """The domain called `kind`; None for "none". `machine` is a simulated machine's folder.

    Raises BrokerError config.invalid, and what the domain raises when it is not there.
    """
    if kind not in DOMAINS:
        raise _invalid(f"a trust domain is one of {', '.join(DOMAINS)}, not {kind!a}")
    if kind == "none":
        return None
    module, _, attribute = provided(GROUP).get(kind, "").partition(":")
    if not module:
        raise _invalid(f"nothing installed provides the trust domain {kind!a}")
    if kind == "simulated" and not machine:
        raise _invalid("a simulated trust domain needs --machine DIR")
    try:
        make = getattr(import_module(module), attribute)
        domain: TrustDomain = make(machine, label=LABEL, image=LABEL) if kind == "simulated" else make()
    except ModuleNotFoundError as error:
        raise _invalid(f"the trust domain {kind!a} needs {error.name}, which is not installed") from None
    except Exception as error:  # noqa: BLE001  # whoever provides the domain says in words of its own what is missing
        said = str(error).partition("\n")[0] or type(error).__name__
        raise _invalid(f"no trust domain {kind!a} here: {said}") from None
    return domain


def trust_file_digest(
    path: Path, identity: Identity, roots: Sequence[str], admins: Sequence[Admin], signers: Signers | None = None
) -> bytes:
    """SHA-256 of the trust file, if it speaks of this broker, of these roots (SHA-256), of these administrators and,
    where it names policy signers, of those whose signatures this broker demands.

    Raises BrokerError config.invalid.
    """
    found = trust_file(path)
    wrong = [*_contradictions(found, identity, roots, admins), *_unsigned(found, signers)]
    if wrong:
        raise _invalid(f"trust.file {path}: {'; '.join(wrong)}")
    return found.digest


def trust_file(path: Path) -> TrustFile:
    """The trust file that agents of this broker are given. Raises BrokerError config.invalid."""
    try:
        return TrustFile.load(path)
    except OSError as error:
        raise _invalid(f"trust.file {path}: {error.strerror}") from None
    except TrustFileFault as fault:
        raise _invalid(f"trust.file {path}: {fault}") from None


def _contradictions(found: TrustFile, identity: Identity, roots: Sequence[str], admins: Sequence[Admin]) -> list[str]:
    strangers = [admin.name for admin in admins if admin.jkt not in found.administrators]
    return [
        text
        for wrong, text in (
            (found.broker_id != identity.broker_id, "it names another broker's id"),
            (set(found.roots.sha256) != set(roots), "it names other roots than this broker trusts"),
            (bool(strangers), f"it does not name the administrators {', '.join(strangers)}"),
        )
        if wrong
    ]


def _unsigned(found: TrustFile, signers: Signers | None) -> list[str]:
    """Whoever keeps the disk of an attested broker must not be able to write its policies."""
    named = set(found.policy_signers)
    keys = signers.keys if signers else ()
    demanded = {key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys}
    if not named or (demanded and demanded <= named):
        return []
    return ["it names policy signers, and policy.signers demands no signature of them alone"]


def reference_values(domain: TrustDomain) -> dict[str, Any]:
    """What this domain shows now, in the form of [broker.reference]: to be compared with what was meant, then pinned.

    Nothing here has been verified. Raises AttestationError for a quote that cannot be read.
    """
    quote = Quote.parse(domain.quote(hashlib.sha512(b"reference values").digest()))
    registers = {f"rtmr{index}": rtmr.hex() for index, rtmr in enumerate(quote.td.rtmrs)}
    return {"mr_td": quote.td.mr_td.hex(), **registers, "platforms": [claimed_platform(quote).ppid.hex()]}


def _invalid(detail: str) -> BrokerError:
    return BrokerError(BrokerCode.CONFIG_INVALID, detail)
