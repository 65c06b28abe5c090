"""The trust domain that a broker runs in, and the trust file under which it runs there.

Decides how a domain is found by name (the entry points `cloister.trust_domain`: this package knows neither hardware nor
a simulator), that a trust file which contradicts the broker's own settings stops the start, and what a domain's
reference values are. A simulated domain is used only when it is asked for by name.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.chains import claimed_platform
from attestation.errors import AttestationError
from attestation.pki import TrustRoots
from attestation.ports import TrustDomain
from attestation.quote import Quote
from broker.config import DOMAINS, Admin
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity
from policies.signing import Signers

GROUP: Final = "cloister.trust_domain"
LABEL: Final = "broker"
MAX_TRUST_FILE: Final = 256 * 1024


def open_domain(kind: str, machine: str = "") -> TrustDomain | None:
    """The domain called `kind`; None for "none". `machine` is a simulated machine's folder.

    Raises BrokerError config.invalid, and what the domain raises when it is not there.
    """
    if kind not in DOMAINS:
        raise _invalid(f"a trust domain is one of {', '.join(DOMAINS)}, not {kind!a}")
    if kind == "none":
        return None
    module, _, attribute = _entry_points().get(kind, "").partition(":")
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


def _entry_points() -> dict[str, str]:
    """name → reference; from pyproject.toml where the project runs from a checkout."""
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    try:
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    except (OSError, ValueError, KeyError):
        declared = {}
    return {**declared, **found}


def trust_file_digest(
    path: Path, identity: Identity, roots: Sequence[str], admins: Sequence[Admin], signers: Signers | None = None
) -> bytes:
    """SHA-256 of the trust file, if it speaks of this broker, of these roots (SHA-256), of these administrators and,
    where it names policy signers, of those whose signatures this broker demands.

    Raises BrokerError config.invalid.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TRUST_FILE + 1)
        text = raw.decode("utf-8")
        found = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        wrong = [*_contradictions(found, identity, roots, admins), *_unsigned(found, signers)]
    except OSError as error:
        raise _invalid(f"trust.file {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(f"trust.file {path} cannot be read: {type(error).__name__}") from None
    if len(raw) > MAX_TRUST_FILE or wrong:
        raise _invalid(f"trust.file {path}: {'; '.join(wrong) or 'too large'}")
    return hashlib.sha256(raw).digest()


def _contradictions(
    found: dict[str, Any], identity: Identity, roots: Sequence[str], admins: Sequence[Admin]
) -> list[str]:
    told = TrustRoots.intel() if found["roots"].get("intel") else _pem_roots(found["roots"]["pem"])
    named = set(found.get("administrators", {}).get("keys", ()))
    strangers = [admin.name for admin in admins if admin.jkt not in named]
    return [
        text
        for wrong, text in (
            (found["broker"]["id"] != identity.broker_id.hex(), "it names another broker's id"),
            (set(told.sha256) != set(roots), "it names other roots than this broker trusts"),
            (bool(strangers), f"it does not name the administrators {', '.join(strangers)}"),
        )
        if wrong
    ]


def _unsigned(found: dict[str, Any], signers: Signers | None) -> list[str]:
    """Whoever keeps the disk of an attested broker must not be able to write its policies."""
    named = set(found.get("policies", {}).get("signers", ()))
    keys = signers.keys if signers else ()
    demanded = {key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex() for key in keys}
    if not named or (demanded and demanded <= named):
        return []
    return ["it names policy signers, and policy.signers demands no signature of them alone"]


def _pem_roots(texts: list[str]) -> TrustRoots:
    try:
        return TrustRoots.from_pem("\n".join(texts).encode("ascii"))
    except AttestationError as error:
        raise ValueError(error.detail) from None


def reference_values(domain: TrustDomain) -> dict[str, Any]:
    """What this domain shows now, in the form of [broker.reference]: to be compared with what was meant, then pinned.

    Nothing here has been verified. Raises AttestationError for a quote that cannot be read.
    """
    quote = Quote.parse(domain.quote(hashlib.sha512(b"reference values").digest()))
    registers = {f"rtmr{index}": rtmr.hex() for index, rtmr in enumerate(quote.td.rtmrs)}
    return {"mr_td": quote.td.mr_td.hex(), **registers, "platforms": [claimed_platform(quote).ppid.hex()]}


def _invalid(detail: str) -> BrokerError:
    return BrokerError(BrokerCode.CONFIG_INVALID, detail)
