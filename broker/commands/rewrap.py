"""`cloister broker rewrap`: keep the same root key another way, while the broker is off.

Decides the order: the root key is opened and proved to belong to the database, the log gets its entry, then the file
changes in one rename. Old shares, a copy of the old file and its passphrase still give the same root key: whoever
moves a root key because one of them got about has to destroy them, or set up anew.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import final

from broker.audit import Audit, Entry, Kind
from broker.commands.setup import SETTINGS
from broker.config import Settings
from broker.config import load as load_settings
from broker.errors import BrokerCode, BrokerError
from broker.keyring import Keyring
from broker.rootkey.methods import Keeping, Method, load, method_of, migrate
from broker.rootkey.root import RootKey
from broker.rootkey.shares import Share
from broker.store.sql import SqlStore


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What was done; `shares` are the files that their holders get."""

    before: Method
    after: Method
    shares: tuple[Path, ...]


async def rewrap(
    folder: Path, wish: Keeping, brought: Sequence[Share], passphrase: Callable[[], bytes], *, at: datetime
) -> Moved:
    """Raises BrokerError config.invalid, root.*, store.*, log.tampered; OSError. `passphrase` is asked when needed."""
    settings = load_settings(folder / SETTINGS, os.environ)
    path = settings.root_key_file
    if path is None or settings.database is None:
        raise BrokerError(BrokerCode.CONFIG_INVALID, "this broker has no root key file")
    _demand_off(settings)
    before = method_of(path)
    given = passphrase() if before is Method.PASSPHRASE else None
    root = load(path, passphrase=given, tcti=settings.tcti, brought=brought)
    store = SqlStore(settings.database, mac_key=root.derive("marks"))
    try:
        await _note(store, root, settings.log_name, before, wish.method, at)
    finally:
        store.close()
    _, shares = migrate(path, wish, passphrase=given, tcti=settings.tcti, brought=brought)
    return Moved(before=before, after=wish.method, shares=shares)


def _demand_off(settings: Settings) -> None:
    """A broker that serves has the log's head in its memory. Raises BrokerError config.invalid."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            detail = f"stop the broker first: {settings.host}:{settings.port} is taken ({error.strerror})"
            raise BrokerError(BrokerCode.CONFIG_INVALID, detail) from None


async def _note(store: SqlStore, root: RootKey, origin: str, before: Method, after: Method, at: datetime) -> None:
    keyring = await Keyring.open(store, root, at=at)
    audit = Audit(store, key=keyring.log, origin=origin)
    audit.check_head()
    entry = Entry(kind=Kind.ROOT_REWRAPPED, at=at, more={"from": before, "to": after, "root": root.id})
    await audit.record(entry, lambda _: None)
