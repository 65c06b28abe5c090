"""The ways to keep a root key while the broker is off, under one door: key file, passphrase, TPM, shares.

Decides which method a file names, how a new file is written for each, and how a root key moves from one to another
without changing: what was encrypted under it stays as it is. Shares cannot be read from a file; they are brought.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, final

from broker.errors import BrokerCode, BrokerError
from broker.rootkey import holders, keyfile, shares, tpm
from broker.rootkey.holders import Holder
from broker.rootkey.root import ROOT_LEN, RootKey
from broker.rootkey.shares import Share, ShareSet

SHARE_FOLDER: Final = "shares"


class Method(StrEnum):
    """How a root key is kept."""

    KEY_FILE = "key-file"
    PASSPHRASE = "passphrase"
    TPM = "tpm"
    SHARES = "shares"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How somebody wants a root key kept. Shares are sealed to the holders in order, or lie in the clear."""

    method: Method = Method.KEY_FILE
    passphrase: bytes | None = field(repr=False, default=None)
    tcti: str = tpm.DEFAULT_TCTI
    pcrs: str = tpm.DEFAULT_PCRS
    threshold: int = 0
    count: int = 0
    holders: tuple[Holder, ...] = ()

    def __post_init__(self) -> None:
        """Raises BrokerError config.invalid."""
        if (self.method is Method.PASSPHRASE) != bool(self.passphrase):
            raise BrokerError(BrokerCode.CONFIG_INVALID, "a passphrase goes with the method passphrase alone")
        if self.holders and len(self.holders) != self.count:
            raise BrokerError(BrokerCode.CONFIG_INVALID, f"{len(self.holders)} holders for {self.count} shares")
        if len({holder.thumbprint for holder in self.holders}) != len(self.holders):
            raise BrokerError(BrokerCode.CONFIG_INVALID, "one holder stands there twice")


def method_of(path: Path) -> Method:
    """Raises BrokerError root.file_invalid."""
    try:
        return Method(str(keyfile.read(path).get("method")))
    except ValueError:
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path}: unknown method") from None


def share_set(path: Path) -> ShareSet:
    """What the file of a shared root key says about its shares. Raises BrokerError root.file_invalid."""
    try:
        return ShareSet.from_dict(keyfile.read(path))
    except (KeyError, TypeError, ValueError):
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path}: not a set of shares") from None


def create(path: Path, keeping: Keeping) -> tuple[RootKey, tuple[Path, ...]]:
    """Draw a root key and write its file, which must not exist; the files of its shares, when it has some.

    Raises BrokerError config.invalid, root.*; OSError.
    """
    raw = secrets.token_bytes(ROOT_LEN)
    return RootKey(raw), _keep(path, raw, keeping, replace=False)


def load(
    path: Path, *, passphrase: bytes | None = None, tcti: str = tpm.DEFAULT_TCTI, brought: Sequence[Share] = ()
) -> RootKey:
    """Raises BrokerError root.*; root.sealed while there are too few shares."""
    return RootKey(_opened(path, passphrase, tcti, brought))


def migrate(
    path: Path,
    keeping: Keeping,
    *,
    passphrase: bytes | None = None,
    tcti: str = tpm.DEFAULT_TCTI,
    brought: Sequence[Share] = (),
) -> tuple[RootKey, tuple[Path, ...]]:
    """Keep the same root key another way. The old way is gone from the file, and nowhere else.

    Raises BrokerError root.*, config.invalid; OSError.
    """
    raw = _opened(path, passphrase, tcti, brought)
    return RootKey(raw), _keep(path, raw, keeping, replace=True)


def _opened(path: Path, passphrase: bytes | None, tcti: str, brought: Sequence[Share]) -> bytes:
    members = keyfile.read(path)
    match method_of(path):
        case Method.SHARES:
            return share_set(path).combine(brought)
        case Method.TPM:
            raw = tpm.open_sealed(members, tcti=tcti)
            if len(raw) != ROOT_LEN:
                raise BrokerError(BrokerCode.ROOT_FILE, f"{path}: the TPM opened {len(raw)} bytes")
            return raw
        case _:
            return keyfile.opened(path, members, passphrase)


def _keep(path: Path, raw: bytes, keeping: Keeping, *, replace: bool) -> tuple[Path, ...]:
    members: dict[str, Any]
    match keeping.method:
        case Method.SHARES:
            return _keep_shares(path, raw, keeping, replace=replace)
        case Method.TPM:
            members = {"method": Method.TPM} | tpm.seal(raw, tcti=keeping.tcti, pcrs=keeping.pcrs)
        case _:
            members = keyfile.sealed(raw, keeping.passphrase)
    keyfile.write(path, members, replace=replace)
    return ()


def _keep_shares(path: Path, raw: bytes, keeping: Keeping, *, replace: bool) -> tuple[Path, ...]:
    """The shares are durable before the file that needs them."""
    kept, cut = shares.split(raw, keeping.threshold, keeping.count)
    folder = path.parent / SHARE_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    written = tuple(folder / f"{kept.set_id[:8]}-{share.index}.json" for share in cut)
    for place, share in zip(written, cut, strict=True):
        holder = keeping.holders[share.index - 1] if keeping.holders else None
        holders.write_share(place, share, kept, holder)
    keyfile.write(path, {"method": Method.SHARES} | kept.to_dict(), replace=replace)
    return written
