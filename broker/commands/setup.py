"""`cloister broker init`: a folder from which a broker can be served.

Decides what such a folder holds and that nothing in it is overwritten:

    broker.toml      settings         root.json    root key (mode 0600)      admin.pem   administrator's key (mode 0600)
    shares/          one for each holder (not kept here)
    broker.sqlite    records, log     policy/      the starter bundle        trust.json  what agents are given
    log.vkey         the log's public key, for `audit verify` and other tools
"""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.config import Settings, load
from broker.errors import BrokerCode, BrokerError
from broker.identity import Identity
from broker.keyring import Keyring
from broker.rootkey.methods import Keeping, Method, create
from broker.rootkey.root import RootKey
from broker.store.sql import SqlStore
from broker.wire.jose import thumbprint
from broker.wire.log import verifier_key
from broker.wire.trustfile import render
from policies.scaffold import starter, write

SETTINGS: Final = "broker.toml"
DATABASE: Final = "broker.sqlite"
VKEY: Final = "log.vkey"
_TOML: Final = """\
# A Cloister broker. Every key may also come from the environment: CLOISTER_BROKER_SERVER_PORT and so on.

[server]
profile = "{profile}"          # "production" wants https, a database, administrators, and Intel's root
public_url = "{public_url}"    # what clients call; proofs are compared with it, never with forwarded headers
host = "{host}"
port = {port}

[grpc]
port = {grpc_port}             # on the same host; 0 takes a free one, without this table there is no gRPC

[store]
database = "{database}"

[root]
key_file = "root.json"         # {root}
{tcti}
[policy]
bundles = ["policy"]           # one folder for each tenant
# signers = ["ann.pub", "ben.pub"]  # without any, whoever can write that folder makes the policy
# threshold = 2                     # how many of them must have signed (cloister policy sign)

[trust]
file = "trust.json"            # what agents are given; a broker in a trust domain proves that it runs under it
{trust}

[collateral]
pcs_url = "{pcs_url}"
refresh_s = 3600

[[admins]]
name = "root"
jkt = "{jkt}"
role = "security"
"""


_BARE: Final = Keeping()
_KEPT: Final = {
    Method.KEY_FILE: "the bare key: for development only",
    Method.PASSPHRASE: "under a passphrase",
    Method.TPM: "in the TPM of this machine",
    Method.SHARES: "cut into shares; `cloister broker unseal` brings them",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What was set up."""

    folder: Path
    broker_id: str
    log_key: str
    admin_key_file: Path
    trust_file: Path
    shares: tuple[Path, ...] = ()  # each for its holder


def initialise(
    folder: Path,
    *,
    public_url: str,
    host: str,
    port: int,
    tenant: str,
    kind: str,
    profile: str,
    pcs_url: str,
    roots_file: Path | None,
    at: datetime,
    keeping: Keeping = _BARE,
) -> Initialised:
    """Raises BrokerError config.invalid, BundleError, OSError; then a folder that was new or empty is so again."""
    if (folder / SETTINGS).exists():
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{folder} holds a broker already")
    with _whole_or_not_at_all(folder):
        write(starter(kind, tenant=tenant, at=at), folder / "policy")
        jkt = admin_key(folder / "admin.pem")
        text = _TOML.format(
            profile=profile,
            public_url=public_url,
            host=host,
            port=port,
            grpc_port=port + 1 if port < 65535 else 0,
            database=DATABASE,
            root=_KEPT[keeping.method],
            tcti="" if keeping.method is not Method.TPM else f"tcti = {json.dumps(keeping.tcti)}\n",
            trust=_trust(roots_file, profile),
            pcs_url=pcs_url,
            jkt=jkt,
        )
        (folder / SETTINGS).write_text(text, encoding="utf-8")
        settings = load(folder / SETTINGS, {})
        root, shares = create(folder / "root.json", keeping)
        keyring = asyncio.run(_keys(folder / DATABASE, root, at))
        identity = Identity(keyring, issuer=settings.public_url, log_name=settings.log_name)
        (folder / VKEY).write_text(verifier_key(identity.log_name, identity.log_key) + "\n", encoding="ascii")
        (folder / "trust.json").write_bytes(_trust_file(settings, tenant, identity, jkt))
        return Initialised(
            folder=folder,
            broker_id=identity.broker_id.hex(),
            log_key=verifier_key(identity.log_name, identity.log_key),
            admin_key_file=folder / "admin.pem",
            trust_file=folder / "trust.json",
            shares=shares,
        )


@contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[None]:
    """Make the folder. Where what follows fails it is as it was, but for one with files in it, which are left alone."""
    there = folder.exists()
    ours = not there or (folder.is_dir() and not any(folder.iterdir()))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield
    except BaseException:
        if ours:
            shutil.rmtree(folder)
            if there:
                folder.mkdir(mode=0o700)
        raise


async def _keys(database: Path, root: RootKey, at: datetime) -> Keyring:
    """Draw the broker's keys into a new database."""
    store = SqlStore(database, mac_key=root.derive("marks"))
    try:
        return await Keyring.open(store, root, at=at)
    finally:
        store.close()


def _trust(roots_file: Path | None, profile: str) -> str:
    if roots_file is None:
        return "# roots_file: Intel's root unless named"
    said = "\nforeign_roots = true" if profile == "production" else ""
    return f"roots_file = {json.dumps(str(roots_file.resolve()))}{said}"


def admin_key(path: Path) -> str:
    """A fresh key in its file, mode 0600; its thumbprint. Raises OSError, where there is such a file too."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return thumbprint(key.public_key())


def _trust_file(settings: Settings, tenant: str, identity: Identity, jkt: str) -> bytes:
    """Whom agents of this broker believe, in the JSON form that `cloister run --trust` reads."""
    return render(
        tenant=tenant,
        log_key=identity.log_key,
        broker_url=settings.public_url,
        roots_pem=() if settings.roots_file is None else (settings.roots_file.read_bytes(),),
        intel=settings.roots_file is None,
        administrators=(jkt,),
    )
