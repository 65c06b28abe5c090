"""Settings of a broker: read once from a TOML file and the environment, checked whole, never read again.

Decides what a valid broker is and what its two profiles may do. Every mistake is found in one go and named with what to
write instead. An environment variable CLOISTER_BROKER_<TABLE>_<KEY> wins over the file. In the production profile a
root other than Intel's must be asked for twice: by naming its file and by saying so.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, final
from urllib.parse import urlsplit

from broker.errors import BrokerCode, BrokerError
from broker.limits import Rates
from broker.ports.mail import Quota
from broker.rights import MARKABLE, ROLES, Admin
from broker.rootkey.tpm import DEFAULT_TCTI

__all__ = ["Admin", "Settings", "load"]
from broker.wire.svid import is_trust_domain

T = TypeVar("T")
PROFILES: Final = ("development", "production")
DOMAINS: Final = ("none", "tdx", "simulated")
CONFIRM: Final = ("operator", "witness", "skipped")
PREFIX: Final = "CLOISTER_BROKER_"
MAX_FILE: Final = 1 << 20
_JKT: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A broker's settings. Paths are absolute, or None for the default named in the comment."""

    public_url: str  # what clients write into proofs, and the issuer of tokens
    bundles: tuple[Path, ...]
    profile: str = "development"
    host: str = "127.0.0.1"
    port: int = 8443
    grpc_host: str | None = None  # the same as `host`
    grpc_port: int | None = None  # no gRPC; 0 takes a free port
    tls_cert: Path | None = None  # PEM, with the chain; without one the broker speaks plain HTTP, for a proxy before it
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # PEM: then clients need a certificate of its, at every door
    database: Path | None = None  # in memory
    root_key_file: Path | None = None  # a fresh root key, with the database in memory only
    roots_file: Path | None = None  # Intel's root
    foreign_roots: bool = False  # the production profile wants this said beside `roots_file`
    trust_domain: str = "none"  # where this broker runs, and proves to its agents that it does
    spiffe_trust_domain: str = ""  # of agents' certificates: the public URL's host, unless named
    trust_file: Path | None = None  # what its agents are given: part of what its quote binds
    pcs_url: str = "https://api.trustedservices.intel.com"
    pcs_cache: Path | None = None  # a folder beside the database
    refresh_s: int = 3600
    early: bool = True  # judge by Intel's early collateral too, and warn
    archive_days: int = 400  # how long evidence is kept that nobody needs any more
    agents_days: int = 90  # an agent that was silent for as long, and owns nothing, has ended
    token_ttl_s: int = 300
    rotate_days: int = 30  # age at which token keys get successors; 0: when an administrator says so
    admins: tuple[Admin, ...] = ()
    console: bool | None = None  # it asks for no credentials: unless said, in the development profile alone
    log_level: str = "INFO"
    quota: Quota = field(default_factory=Quota)
    rates: Rates = field(default_factory=Rates)
    tcti: str = DEFAULT_TCTI  # where the TPM is, in the spelling of tpm2-tss
    confirm_by: str | None = None  # who stands for the newest checkpoint at start: an operator in production
    witness_url: str | None = None
    witness_key: str | None = None
    signers: tuple[Path, ...] = ()  # public keys (PEM); without any, whoever can write the folders makes the policy
    signers_needed: int = 1
    two_person: tuple[str, ...] = ()  # acts that a second administrator has to ask for, too

    @property
    def shows_console(self) -> bool:
        return not self.production if self.console is None else self.console

    def __post_init__(self) -> None:
        """Raises BrokerError config.invalid, naming every mistake."""
        wrong = [text for text in self._mistakes() if text]
        if wrong:
            raise BrokerError(BrokerCode.CONFIG_INVALID, "; ".join(wrong))

    @property
    def confirm(self) -> str:
        """Who stands for the newest checkpoint at start, before anything is served."""
        return self.confirm_by or ("operator" if self.production else "skipped")

    @property
    def production(self) -> bool:
        return self.profile == "production"

    @property
    def log_name(self) -> str:
        """Origin of the audit log's checkpoints: the public URL without its scheme."""
        parts = urlsplit(self.public_url)
        return f"{parts.netloc}{parts.path}/log"

    def _mistakes(self) -> tuple[str, ...]:
        return (
            "" if self.profile in PROFILES else f"profile must be one of {', '.join(PROFILES)}",
            self._url_mistake(),
            ""
            if self.bundles
            else "policy.bundles must name at least one bundle: `cloister policy init DIR` writes one",
            "" if 0 < self.port < 65536 else "server.port must be 1 to 65535",
            "" if self.grpc_port is None or 0 <= self.grpc_port < 65536 else "grpc.port must be 0 to 65535",
            "" if (self.tls_cert is None) == (self.tls_key is None) else "tls.cert and tls.key go together",
            "" if self.tls_cert or not self.tls_client_ca else "tls.client_ca wants tls.cert and tls.key",
            "" if 30 <= self.token_ttl_s <= 300 else "tokens.ttl_s must be 30 to 300",
            "" if 0 <= self.rotate_days <= 3650 else "tokens.rotate_days must be 0 to 3650",
            "" if 1 <= self.refresh_s <= 86_400 else "collateral.refresh_s must be 1 to 86400",
            "" if 1 <= self.archive_days <= 36_500 else "archive.days must be 1 to 36500",
            "" if 10 <= self.agents_days <= 36_500 else "agents.days must be 10 to 36500",
            "" if self.trust_domain in DOMAINS else f"server.trust_domain must be one of {', '.join(DOMAINS)}",
            "" if self.trust_domain == "none" or self.trust_file else "trust.file must be named with a trust domain",
            ""
            if not self.spiffe_trust_domain or is_trust_domain(self.spiffe_trust_domain)
            else "identity.trust_domain has lower-case letters, digits, dots, dashes and underscores only",
            ""
            if min(self.rates.source_per_s, self.rates.agent_per_s, self.rates.tenant_per_s) >= 0
            and min(self.rates.source_burst, self.rates.agent_burst, self.rates.tenant_burst) > 0
            else "limits must not be negative, and bursts not 0; limits.*_per_s = 0 means no limit",
            "" if min(astuple(self.quota)) > 0 else "mail limits must be positive",
            *(self._admin_mistake(admin) for admin in self.admins),
            *self._rights_mistakes(),
            "" if len({admin.jkt for admin in self.admins}) == len(self.admins) else "two admins have one key",
            *(self._production_mistakes() if self.production else ()),
            "" if self.database is None or self.root_key_file else "root.key_file must be named beside store.database",
        )

    def _url_mistake(self) -> str:
        parts = urlsplit(self.public_url)
        plain = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        if plain and not self.public_url.endswith("/") and "@" not in parts.netloc:
            return ""
        return (
            "server.public_url must be like https://broker.example or http://127.0.0.1:8443, without a slash at the end"
        )

    @staticmethod
    def _admin_mistake(admin: Admin) -> str:
        if not _JKT.fullmatch(admin.jkt) or admin.role not in ROLES:
            return f"admin {admin.name!a}: jkt must be an RFC 7638 thumbprint, role one of {', '.join(ROLES)}"
        return ""

    def _rights_mistakes(self) -> tuple[str, ...]:
        unknown = [name for name in self.two_person if name not in set(map(str, MARKABLE))]
        people = sum(admin.role == "security" and not admin.tenants for admin in self.admins)
        named = self.witness_url is not None and self.witness_key is not None
        return (
            f"administration.two_person knows {', '.join(sorted(MARKABLE))}, not {unknown[0]!a}" if unknown else "",
            "administration.two_person needs two administrators of role security without tenants"
            if self.two_person and people < 2
            else "",
            ""
            if 1 <= self.signers_needed <= max(1, len(self.signers))
            else "policy.threshold must be 1 to the number of policy.signers",
            "" if self.confirm in CONFIRM else f"root.confirm must be one of {', '.join(CONFIRM)}",
            'witness.url and witness.key must be named for root.confirm = "witness"'
            if self.confirm == "witness" and not named
            else "",
        )

    def _production_mistakes(self) -> tuple[str, ...]:
        foreign = self.roots_file is not None and not self.foreign_roots
        return (
            "" if self.public_url.startswith("https://") else "in production server.public_url must be https",
            "" if self.database else "in production store.database must name a file",
            "" if self.admins else "in production at least one [[admins]] is needed",
            "in production root.confirm must be operator or witness" if self.confirm == "skipped" else "",
            "in production witness.url must be https: an answer could be played back"
            if self.witness_url is not None and not self.witness_url.startswith("https://")
            else "",
            "trust.roots_file replaces Intel's root: in production say trust.foreign_roots = true as well"
            if foreign
            else "",
        )


# table.key → (field of Settings, how to read it)
def _path(value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("a path")
    return Path(value)


def _paths(value: object) -> tuple[Path, ...]:
    items = value.split(":") if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise ValueError("a list of paths")
    return tuple(_path(item) for item in items)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ValueError("a list of texts")
    return tuple(_text(item) for item in items)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number") from None


def _flag(value: object) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ValueError("true or false")
    return found


_QUOTAS: Final = tuple(item.name for item in fields(Quota))
_RATES: Final = tuple(item.name for item in fields(Rates))
_KEYS: Final[dict[str, tuple[str, Callable[[object], Any]]]] = {
    "server.profile": ("profile", _text),
    "server.public_url": ("public_url", _text),
    "server.host": ("host", _text),
    "server.port": ("port", _number),
    "server.console": ("console", _flag),
    "server.log_level": ("log_level", _text),
    "server.trust_domain": ("trust_domain", _text),
    "grpc.host": ("grpc_host", _text),
    "grpc.port": ("grpc_port", _number),
    "tls.cert": ("tls_cert", _path),
    "tls.key": ("tls_key", _path),
    "tls.client_ca": ("tls_client_ca", _path),
    "store.database": ("database", _path),
    "root.key_file": ("root_key_file", _path),
    "root.tcti": ("tcti", _text),
    "root.confirm": ("confirm_by", _text),
    "witness.url": ("witness_url", _text),
    "witness.key": ("witness_key", _text),
    "administration.two_person": ("two_person", _texts),
    "policy.bundles": ("bundles", _paths),
    "policy.signers": ("signers", _paths),
    "policy.threshold": ("signers_needed", _number),
    "trust.roots_file": ("roots_file", _path),
    "trust.file": ("trust_file", _path),
    "identity.trust_domain": ("spiffe_trust_domain", _text),
    "trust.foreign_roots": ("foreign_roots", _flag),
    "collateral.pcs_url": ("pcs_url", _text),
    "collateral.cache": ("pcs_cache", _path),
    "collateral.refresh_s": ("refresh_s", _number),
    "collateral.early": ("early", _flag),
    "archive.days": ("archive_days", _number),
    "agents.days": ("agents_days", _number),
    "tokens.ttl_s": ("token_ttl_s", _number),
    "tokens.rotate_days": ("rotate_days", _number),
    **{f"limits.{name}": (name, _number) for name in _RATES},
    **{f"mail.{name}": (name, _number) for name in _QUOTAS},
}
_TLS: Final = ("tls_cert", "tls_key", "tls_client_ca")
_RELATIVE: Final = (*_TLS, "database", "root_key_file", "roots_file", "trust_file", "pcs_cache")


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Settings from a file; relative paths start at its folder. Raises BrokerError config.invalid."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        document = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise BrokerError(
            BrokerCode.CONFIG_INVALID, f"{path}: {error.strerror}; `cloister broker init DIR` writes one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{path}: {error}") from None
    values, wrong = _read(document, environ)
    admins = _admins(document.get("admins", []), wrong)
    for name in ("public_url", "bundles"):
        if name not in values:
            key = next(key for key, (found, _) in _KEYS.items() if found == name)
            wrong.append(f"{key} is missing")
    if wrong:
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{path}: " + "; ".join(wrong))
    home = path.resolve().parent
    values |= {name: home / values[name] for name in _RELATIVE if name in values}
    values |= {name: tuple(home / path for path in values[name]) for name in ("bundles", "signers") if name in values}
    quota = {name: values.pop(name) for name in _QUOTAS if name in values}
    rates = {name: values.pop(name) for name in _RATES if name in values}
    return Settings(**values, admins=admins, quota=Quota(**quota), rates=Rates(**rates))


def _read(document: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    given: dict[str, object] = {}
    wrong: list[str] = []
    for table, members in document.items():
        if table == "admins":
            continue
        for key, value in (members if isinstance(members, dict) else {"": members}).items():
            name = f"{table}.{key}".rstrip(".")
            given[name] = value
            if name not in _KEYS:
                wrong.append(f"{name} is unknown; there are {', '.join(_KEYS)}")
    for key in _KEYS:
        variable = PREFIX + key.upper().replace(".", "_")
        if variable in environ:
            given[key] = environ[variable]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in _KEYS:
            name, read = _KEYS[key]
            try:
                values[name] = read(value)
            except ValueError as error:
                wrong.append(f"{key} must be {error}")
    return values, wrong


def _admins(items: object, wrong: list[str]) -> tuple[Admin, ...]:
    found: list[Admin] = []
    try:
        if not isinstance(items, list):
            raise TypeError("one table is no list of them")
        for item in items:
            members: dict[str, Any] = {
                name: _texts(value) if name == "tenants" else _text(value) for name, value in item.items()
            }
            found.append(Admin(**members))
    except (TypeError, ValueError, AttributeError):
        wrong.append(
            'each [[admins]] has name = "…", jkt = "…", role = "…" and, for some tenants alone, tenants = ["…"]'
        )
    return tuple(found)
