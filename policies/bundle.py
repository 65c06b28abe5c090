"""A directory → Bundle: one immutable value with a digest, or every mistake with file and line.

Decides which files make a bundle, what is hashed, and when an older or unsigned one is refused. What the settings mean
is decided in `appraisal`, what the rules mean by Cedar.

Digest: SHA-256 over "cloister/policy-files/v1\\0", then for each file in order of its path: u32 big-endian length and
bytes of the path (UTF-8, '/' between folders), u32 length and bytes of the content. `signatures.toml` is left out.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from policies import signing
from policies.appraisal import Ageless, Appraised
from policies.authorisation import Answer, RuleSet
from policies.codes import BundleCode
from policies.errors import BundleError, raise_all
from policies.model import Facts
from policies.never import check_rules
from policies.readsettings import read_settings
from policies.reference import FILE as REFERENCES
from policies.rules import read_rules
from policies.settings import Settings
from policies.signing import Signers
from policies.store import Bounded
from policies.tables import read_text, read_toml, suggest
from policies.vocabulary import SCHEMA_FILE, same_schema, schema

if TYPE_CHECKING:
    import cedarpy

    from attestation.verdict import Verdict
    from attestation.verifier import Allowance

MAIN: Final = "bundle.toml"
MAX_FILE: Final = 1 << 20
MAX_FILES: Final = 512
TAG: Final = b"cloister/policy-files/v1\0"
LAST: Final = datetime.max.replace(tzinfo=UTC)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was found, and in what time nothing can have changed."""

    since: datetime
    until: datetime
    found: Ageless


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """By which rules something was permitted, and the appraisal that it rested on."""

    rules: tuple[str, ...]
    kept: Kept


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """What a bundle remembers of its own decisions. Entries keep what their id names alive; an answer without an owner
    is kept by what the rules read of the agent."""

    facts: Bounded[int, tuple[Verdict, Facts]] = field(default_factory=lambda: Bounded(16_384))
    appraised: Bounded[int, tuple[Facts, Appraised]] = field(default_factory=lambda: Bounded(16_384))
    ageless: Bounded[Any, Kept] = field(default_factory=lambda: Bounded(1_024))
    clean: Bounded[Any, Clean] = field(default_factory=lambda: Bounded(4_096))
    entities: Bounded[Any, tuple[Facts, cedarpy.Entities]] = field(default_factory=lambda: Bounded(4_096))
    answers: Bounded[Any, tuple[Facts | None, Answer]] = field(default_factory=lambda: Bounded(16_384))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A loaded policy. `digest` is hex SHA-256 over its files; `signed_by` are the trusted keys that signed it."""

    settings: Settings
    rules: RuleSet
    digest: str
    files: Mapping[str, bytes] = field(repr=False)
    signed_by: tuple[str, ...] = ()
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def tenant(self) -> str:
        return self.settings.tenant

    @property
    def version(self) -> int:
        return self.settings.version

    @property
    def max_age_s(self) -> int:
        """For how many seconds evidence counts as fresh (grace not included)."""
        return self.settings.max_age_s

    def allowances(self, at: datetime) -> frozenset[Allowance]:
        """What `verify_quote` may be told to allow at a moment."""
        from attestation.verifier import Allowance

        return frozenset(Allowance(grant.name) for grant in self.settings.grants if at < grant.until)

    def ends(self) -> tuple[tuple[datetime, str, str, int], ...]:
        """Every end date in the bundle: moment, what ends, file, line; earliest first."""
        settings = self.settings
        found: list[tuple[datetime, str, str, int]] = []
        if settings.platforms.any_until:
            key = "platforms_until" if any(name == "platforms_until" for name, _ in settings.lines) else "platforms"
            found.append((settings.platforms.any_until, "platforms = any", MAIN, settings.place(key).line))
        if settings.grace:
            found.append((settings.grace.until, "tcb.grace", MAIN, settings.place("tcb.grace.until").line))
        found += [(grant.until, f"allowance {grant.name}", MAIN, grant.line) for grant in settings.grants]
        found += [
            (value.until, f"workload {workload.name} ({value.source})", REFERENCES, value.line_of("until"))
            for workload in settings.workloads
            for value in workload.values
            if value.until
        ]
        return tuple(sorted(found))


def load_bundle(
    path: str | Path,
    *,
    signers: Signers | None = None,
    newest_version: int | None = None,
    newest_digest: str | None = None,
    at: datetime | None = None,
) -> Bundle:
    """Read and check a bundle. Raises BundleError, whose `all` lists every mistake.

    signers         refuse it unless enough of these keys signed
    newest_version  the highest version seen so far: an older one is refused, and with `newest_digest` so is another
                    content under the same version
    at              refuse what has ended by then: end dates that have passed can never apply again
    """
    root = Path(path)
    return bundle_of(
        read_files(root), signers=signers, newest_version=newest_version, newest_digest=newest_digest, at=at
    )


def read_files(root: Path) -> dict[str, bytes]:
    """Every file of a bundle by its path inside it. Hidden files are no part of one. Raises BundleError."""
    if not root.is_dir():
        raise BundleError(BundleCode.MISSING_FILE, str(root), 0, "no such directory", "cloister policy init DIR")
    files: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        name = relative.as_posix()
        if any(part.startswith(".") for part in relative.parts) or path.is_dir():
            continue
        if len(files) >= MAX_FILES:
            raise BundleError(BundleCode.TOO_LARGE, str(root), 0, f"more than {MAX_FILES} files")
        files[name] = _read(path, name)
    return files


def _read(path: Path, name: str) -> bytes:
    """A file's content. A pipe or device is none: it would not end, or would give something else each time."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BundleError(BundleCode.UNKNOWN_FILE, name, 0, "a pipe, socket or device", "put a file in its place")
    with path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise BundleError(BundleCode.TOO_LARGE, name, 0, f"more than {MAX_FILE} bytes")
    return content


def digest_of(files: Mapping[str, bytes]) -> bytes:
    """32 bytes; see the module's docstring."""
    return hashlib.sha256(bundle_bytes(files)).digest()


def bundle_bytes(files: Mapping[str, bytes]) -> bytes:
    """What the digest is of: every file but the signatures, in one piece."""
    parts = [part for name in sorted(files) if name != signing.FILE for part in (name.encode(), files[name])]
    return TAG + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def files_of(raw: bytes) -> dict[str, bytes]:
    """The inverse of `bundle_bytes`. ValueError for anything else."""
    parts: list[bytes] = []
    at = len(TAG)
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "big")
        parts.append(raw[at + 4 : end])
        at = end
    files = {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}
    if bundle_bytes(files) != raw:
        raise ValueError("not the bytes of a bundle")
    return files


def bundle_of(
    files: Mapping[str, bytes],
    *,
    signers: Signers | None = None,
    newest_version: int | None = None,
    newest_digest: str | None = None,
    at: datetime | None = None,
) -> Bundle:
    """The same as `load_bundle`, from files in memory."""
    problems: list[BundleError] = []
    _check_names(files, problems)
    before = len(problems)
    tables = [read_toml(name, files.get(name, b""), problems) for name in (MAIN, REFERENCES)]
    unread = len(problems) > before or not {MAIN, REFERENCES} <= files.keys()
    settings = read_settings(*tables)
    rules = [
        rule
        for name in sorted(files)
        if name.endswith(".cedar")
        for rule in read_rules(name, read_text(name, files[name], problems) or "", schema(), problems)
    ]
    if not unread:  # else every name in the rules would be a stranger's
        problems += check_rules(rules, settings)
    digest = digest_of(files)
    signed_by: tuple[str, ...] = ()
    if signers:
        signed_by = signing.check_signatures(files.get(signing.FILE), digest, signers, problems)
    elif signing.FILE in files:
        signing.read_signatures(files[signing.FILE], problems)
    bundle = Bundle(
        settings=settings, rules=RuleSet(rules), digest=digest.hex(), files=dict(files), signed_by=signed_by
    )
    problems += _version_problems(bundle, newest_version, newest_digest)
    problems += _ended(bundle, at) if at else ()
    raise_all(_missing_first(files, problems))
    return bundle


def _check_names(files: Mapping[str, bytes], problems: list[BundleError]) -> None:
    known = {MAIN, REFERENCES, SCHEMA_FILE, signing.FILE}
    for name in (MAIN, REFERENCES, SCHEMA_FILE):
        if name not in files:
            hint = "cloister policy init writes an example of each"
            problems.append(BundleError(BundleCode.MISSING_FILE, name, 0, "the file is missing", hint))
    for name in files:
        folder, _, base = name.rpartition("/")
        fine = name in known or (not folder and (name.endswith(".cedar") or base.upper().startswith("README")))
        if not fine and not name.startswith("tests/"):
            hint = suggest(name, known) or "rules end in .cedar"
            problems.append(BundleError(BundleCode.UNKNOWN_FILE, name, 0, "not a file of a bundle", hint))
    text = files.get(SCHEMA_FILE)
    if text is not None and not same_schema(text.decode(errors="replace")):
        detail = "this is not the schema that this version of cloister judges by"
        hint = "take the file from a fresh `cloister policy init`, then check the rules again"
        problems.append(BundleError(BundleCode.SCHEMA, SCHEMA_FILE, 1, detail, hint))
    if not any(name.endswith(".cedar") for name in files):
        hint = "without a permit nothing is ever allowed"
        problems.append(BundleError(BundleCode.MISSING_FILE, "policy.cedar", 0, "there is no .cedar file", hint))


def _missing_first(files: Mapping[str, bytes], problems: Iterable[BundleError]) -> list[BundleError]:
    """A file that is not there is one mistake, not one for every key that it lacks."""
    gone = {name for name in (MAIN, REFERENCES) if name not in files}
    return [item for item in problems if item.file not in gone or item.code is BundleCode.MISSING_FILE]


def _version_problems(bundle: Bundle, version: int | None, digest: str | None) -> list[BundleError]:
    line = bundle.settings.place("version").line
    if version is not None and bundle.version < version:
        detail = f"version {bundle.version} is older than {version}, which was already seen"
        return [BundleError(BundleCode.OLDER, MAIN, line, detail, f"deploy version {version + 1} or later")]
    if version is not None and bundle.version == version and digest and digest != bundle.digest:
        detail = f"version {version} was already seen with other content"
        return [BundleError(BundleCode.SAME_VERSION, MAIN, line, detail, f"write version = {version + 1}")]
    return []


def _ended(bundle: Bundle, at: datetime) -> list[BundleError]:
    return [
        BundleError(BundleCode.ENDED, file, line, f"{what} ended at {moment.isoformat()}", "remove or renew it")
        for moment, what, file, line in bundle.ends()
        if moment <= at
    ]
