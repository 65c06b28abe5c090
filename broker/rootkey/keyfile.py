"""The root key's file: JSON, mode 0600, either the bare key (development) or the key under a passphrase.

Decides the file's form and that nobody else may read it. The passphrase form is scrypt (RFC 7914) over AES-256-GCM, its
parameters in the file and bounded when read, so that a forged file cannot ask for a terabyte of memory.
"""

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from attestation.encoding import b64url, from_b64url, strict_json
from broker.errors import BrokerCode, BrokerError
from broker.rootkey.root import ROOT_LEN, RootKey, seal, unseal

MAX_FILE: Final = 4096
SCRYPT_N: Final = 1 << 16  # 64 MiB with r = 8
SCRYPT_R: Final = 8
SCRYPT_P: Final = 2
MAX_SCRYPT_N: Final = 1 << 18
_AAD: Final = b"cloister/root-file/v1"


def create(path: Path, *, passphrase: bytes | None = None) -> RootKey:
    """Draw a root key and write its file, which must not exist. Without a passphrase the file *is* the key."""
    raw = secrets.token_bytes(ROOT_LEN)
    members: dict[str, Any] = {"cloister_root": 1}
    if passphrase is None:
        members |= {"method": "key-file", "key": b64url(raw)}
    else:
        salt = secrets.token_bytes(16)
        key = _stretch(passphrase, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)
        members |= {"method": "passphrase", "n": SCRYPT_N, "r": SCRYPT_R, "p": SCRYPT_P, "salt": b64url(salt)}
        members |= {"wrapped": b64url(seal(key, raw, _AAD))}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(members, file)
        file.flush()
        os.fsync(file.fileno())
    return RootKey(raw)


def needs_passphrase(path: Path) -> bool:
    """Whether `load` will want one."""
    return _read(path).get("method") == "passphrase"


def load(path: Path, *, passphrase: bytes | None = None) -> RootKey:
    """Raises BrokerError: root.file_invalid, root.passphrase_wrong."""
    members = _read(path)
    try:
        if members.get("method") == "key-file":
            return RootKey(from_b64url(members["key"]))
        if members.get("method") != "passphrase":
            raise ValueError("unknown method")
        n, r, p = (int(members[name]) for name in "nrp")
        salt, wrapped = from_b64url(members["salt"]), from_b64url(members["wrapped"])
        if not (1 < n <= MAX_SCRYPT_N and n & (n - 1) == 0 and r == SCRYPT_R and 1 <= p <= 4):
            raise ValueError("scrypt parameters")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path}: {type(error).__name__}") from None
    if passphrase is None:
        raise BrokerError(BrokerCode.ROOT_PASSPHRASE, f"{path} needs a passphrase")
    try:
        return RootKey(unseal(_stretch(passphrase, salt, n, r, p), wrapped, _AAD))
    except BrokerError:
        raise BrokerError(BrokerCode.ROOT_PASSPHRASE, f"{path} does not open with this passphrase") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path} can be read by others; chmod 600 it")
    try:
        members = strict_json(raw)
    except ValueError:
        members = None
    if len(raw) > MAX_FILE or not isinstance(members, dict) or members.get("cloister_root") != 1:
        raise BrokerError(BrokerCode.ROOT_FILE, f"{path} is not a root key file")
    return members


def _stretch(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)
