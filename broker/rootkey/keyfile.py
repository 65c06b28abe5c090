"""The root key's file: JSON, mode 0600, either the bare key (development) or the key under a passphrase.

Decides the file's form and that nobody else may read it. The passphrase form is scrypt (RFC 7914) over AES-256-GCM, its
parameters in the file and bounded when read, so that a forged file cannot ask for a terabyte of memory. Which methods
there are is decided in methods.py.
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

MAX_FILE: Final = 16_384
SCRYPT_N: Final = 1 << 16  # 64 MiB with r = 8
SCRYPT_R: Final = 8
SCRYPT_P: Final = 2
MAX_SCRYPT_N: Final = 1 << 18
_AAD: Final = b"cloister/root-file/v1"


def create(path: Path, *, passphrase: bytes | None = None) -> RootKey:
    """Draw a root key and write its file, which must not exist. Without a passphrase the file *is* the key."""
    raw = secrets.token_bytes(ROOT_LEN)
    write(path, sealed(raw, passphrase))
    return RootKey(raw)


def sealed(raw: bytes, passphrase: bytes | None) -> dict[str, Any]:
    """Members of the file for these two methods."""
    if passphrase is None:
        return {"method": "key-file", "key": b64url(raw)}
    salt = secrets.token_bytes(16)
    key = _stretch(passphrase, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)
    members: dict[str, Any] = {"method": "passphrase", "n": SCRYPT_N, "r": SCRYPT_R, "p": SCRYPT_P}
    return members | {"salt": b64url(salt), "wrapped": b64url(seal(key, raw, _AAD))}


def write(path: Path, members: dict[str, Any], *, replace: bool = False) -> None:
    """Durable before it counts: with `replace` the old file stays whole until the new one has taken its name."""
    target = path.with_name(path.name + ".new") if replace else path
    if replace:
        target.unlink(missing_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"cloister_root": 1} | members, file)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        target.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def needs_passphrase(path: Path) -> bool:
    """Whether `load` will want one."""
    return read(path).get("method") == "passphrase"


def load(path: Path, *, passphrase: bytes | None = None) -> RootKey:
    """Raises BrokerError: root.file_invalid, root.passphrase_wrong."""
    return RootKey(opened(path, read(path), passphrase))


def opened(path: Path, members: dict[str, Any], passphrase: bytes | None) -> bytes:
    """The root key's bytes. Raises BrokerError: root.file_invalid, root.passphrase_wrong."""
    try:
        if members.get("method") == "key-file":
            raw = from_b64url(members["key"])
            if len(raw) != ROOT_LEN:
                raise ValueError("length")
            return raw
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
        return unseal(_stretch(passphrase, salt, n, r, p), wrapped, _AAD)
    except BrokerError:
        raise BrokerError(BrokerCode.ROOT_PASSPHRASE, f"{path} does not open with this passphrase") from None


def read(path: Path) -> dict[str, Any]:
    """The file's members. Raises BrokerError root.file_invalid: malformed, too large, or readable by others."""
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
