"""Holders of shares: each has a key of his own, and what is written down for him opens with it alone.

Decides the two files of a holder (private, mode 0600, and public), and the file of a share: in the clear, or sealed to
its holder by HPKE, so that whoever sets the broker up hands over nothing that he could use himself.
"""

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from attestation.encoding import b64url, framed, from_b64url, strict_json
from attestation.errors import SealingFailed
from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SEED_SIZE, SealingKey, seal_to
from broker.errors import BrokerCode, BrokerError
from broker.rootkey.root import ROOT_LEN
from broker.rootkey.shares import SET_LEN, Share, ShareSet, share_dict, share_of

MAX_FILE: Final = 8192
_INFO: Final = b"cloister/share-file/v1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Somebody to whom a share can be sealed."""

    name: str
    suite: str
    key: bytes

    @property
    def thumbprint(self) -> str:
        return hashlib.sha256(framed(_INFO, self.suite.encode(), self.key)).hexdigest()[:32]


def create(path: Path) -> Holder:
    """Make a holder's key: `path`, mode 0600, and `path`.pub. Neither may exist."""
    seed = secrets.token_bytes(SEED_SIZE)
    key = SealingKey.from_seed(seed, MLKEM768_X25519)
    public = {"cloister_holder_public": 1, "suite": key.suite, "key": b64url(key.public)}
    write_new(path, {"cloister_holder": 1, "suite": key.suite, "seed": b64url(seed)})
    write_new(path.with_name(path.name + ".pub"), public, mode=0o644)
    return Holder(name=path.name, suite=key.suite, key=key.public)


def load_public(path: Path) -> Holder:
    """Raises BrokerError root.share_wrong."""
    members = read(path, "cloister_holder_public")
    try:
        return Holder(name=path.stem, suite=str(members["suite"]), key=from_b64url(members["key"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path} is not a holder's public key") from None


def load_private(path: Path) -> SealingKey:
    """Raises BrokerError root.share_wrong."""
    members = read(path, "cloister_holder")
    try:
        return SealingKey.from_seed(from_b64url(members["seed"]), str(members["suite"]))
    except (KeyError, TypeError, ValueError, AttributeError, SealingFailed):
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path} is not a holder's key") from None


def write_share(path: Path, share: Share, kept: ShareSet, holder: Holder | None) -> None:
    """The file that a holder gets. Raises BrokerError root.share_wrong for a holder's key that is none; OSError."""
    members = share_dict(share, kept)
    if holder is not None:
        del members["value"]
        try:
            sealed = seal_to(holder.suite, holder.key, packed(share), info=_INFO)
        except SealingFailed as error:
            raise BrokerError(BrokerCode.ROOT_SHARE, f"holder {holder.name}: {error.code}") from None
        members |= {"holder": holder.thumbprint, "suite": holder.suite, "sealed": b64url(sealed.blob)}
    write_new(path, members)


def read_share(path: Path, key: SealingKey | None = None) -> Share:
    """Raises BrokerError root.share_wrong: malformed, or sealed to another key."""
    members = read(path, "cloister_share")
    if "sealed" not in members:
        return share_of(members)
    if key is None:
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path} is sealed to its holder: name the holder's key")
    try:
        clear = key.open(from_b64url(members["sealed"]), _INFO)
        return unpacked(clear)
    except (SealingFailed, ValueError, TypeError, AttributeError):
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path} does not open with this holder's key") from None


def packed(share: Share) -> bytes:
    """A share as the bytes that are sealed: set (16), index (1), value (32)."""
    return bytes.fromhex(share.set_id) + bytes((share.index,)) + share.value


def unpacked(clear: bytes) -> Share:
    """Raises BrokerError root.share_wrong."""
    if len(clear) != SET_LEN + 1 + ROOT_LEN:
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{len(clear)} bytes are no share")
    return Share(set_id=clear[:SET_LEN].hex(), index=clear[SET_LEN], value=clear[SET_LEN + 1 :])


def read(path: Path, kind: str) -> dict[str, Any]:
    """A small JSON object of that kind. Raises BrokerError root.share_wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        members = strict_json(raw) if len(raw) <= MAX_FILE else None
    except OSError as error:
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path}: {error.strerror}") from None
    except ValueError:
        members = None
    if not isinstance(members, dict) or members.get(kind) != 1:
        raise BrokerError(BrokerCode.ROOT_SHARE, f"{path} is not what was expected here ({kind})")
    return members


def write_new(path: Path, members: dict[str, Any], *, mode: int = 0o600) -> None:
    """Durable, and never over something that is there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        json.dump(members, file)
        file.flush()
        os.fsync(file.fileno())
