"""Keys at rest: the root opens them, nothing else does, and nothing shows them."""

import asyncio
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import BrokerCode, BrokerError
from broker.keyring import KEEP_AFTER_S, PUBLISH_BEFORE_S, Keyring, TokenKey, published, signing
from broker.rootkey import keyfile
from broker.rootkey.root import RootKey, seal, unseal
from broker.store.memory import MemoryStore
from broker.vault import Vault, checked_name, find

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
PRIVATE = ec.derive_private_key(7, ec.SECP256R1())


def outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except BrokerError as error:
        return str(error.code)
    return "ok"


# ── root key ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_root_key_shows_itself_nowhere() -> None:
    raw = b"R" * 32
    root = RootKey(raw)
    assert "RRR" not in repr(root) + str(root)
    with pytest.raises(TypeError):
        pickle.dumps(root)


def test_each_purpose_has_its_own_key() -> None:
    root = RootKey(b"R" * 32)
    derived = {root.derive(purpose) for purpose in ("a", "b", "wrap/a", "id")}
    assert len(derived) == 4
    assert root.derive("a") == RootKey(b"R" * 32).derive("a")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_root_key_has_thirty_two_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32"):
        RootKey(bytes(length))


def test_what_is_wrapped_opens_under_its_root_purpose_and_data_alone() -> None:
    root = RootKey(b"R" * 32)
    wrapped = root.wrap("p", b"key", aad=b"a")
    assert root.unwrap("p", wrapped, aad=b"a") == b"key"
    wrong = BrokerCode.ROOT_WRONG
    assert outcome(lambda: RootKey(b"S" * 32).unwrap("p", wrapped, aad=b"a")) == wrong
    assert outcome(lambda: root.unwrap("q", wrapped, aad=b"a")) == wrong
    assert outcome(lambda: root.unwrap("p", wrapped, aad=b"b")) == wrong
    assert outcome(lambda: root.unwrap("p", wrapped[:-1], aad=b"a")) == wrong
    assert outcome(lambda: root.unwrap("p", b"", aad=b"a")) == wrong


def test_two_sealings_never_look_alike() -> None:
    assert seal(b"k" * 32, b"same", b"") != seal(b"k" * 32, b"same", b"")
    assert unseal(b"k" * 32, seal(b"k" * 32, b"same", b""), b"") == b"same"


def test_a_key_file_opens_again_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    made = keyfile.create(tmp_path / "root.json")
    assert keyfile.load(tmp_path / "root.json").id == made.id
    assert not keyfile.needs_passphrase(tmp_path / "root.json")
    assert (tmp_path / "root.json").stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keyfile.create(tmp_path / "root.json")
    (tmp_path / "root.json").chmod(0o640)
    assert outcome(lambda: keyfile.load(tmp_path / "root.json")) == BrokerCode.ROOT_FILE


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    keyfile.create(tmp_path / "root.json")
    with pytest.raises(FileExistsError):
        keyfile.create(tmp_path / "root.json")


def test_a_passphrase_opens_its_own_file_only(tmp_path: Path) -> None:
    made = keyfile.create(tmp_path / "root.json", passphrase=b"correct horse")
    assert keyfile.needs_passphrase(tmp_path / "root.json")
    assert keyfile.load(tmp_path / "root.json", passphrase=b"correct horse").id == made.id
    assert outcome(lambda: keyfile.load(tmp_path / "root.json", passphrase=b"wrong")) == BrokerCode.ROOT_PASSPHRASE
    assert outcome(lambda: keyfile.load(tmp_path / "root.json")) == BrokerCode.ROOT_PASSPHRASE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cloister_root": 1}',
        '{"cloister_root": 1, "method": "key-file", "key": "AAAA"}',
        '{"cloister_root": 1, "method": "tea", "key": "AAAA"}',
        json.dumps(
            {"cloister_root": 1, "method": "passphrase", "n": 1 << 40, "r": 8, "p": 1, "salt": "AA", "wrapped": "AA"}
        ),
        '{"cloister_root": 1, "method": "passphrase", "n": 3, "r": 8, "p": 1, "salt": "AA", "wrapped": "AA"}',
        " " * 5000,
    ],
)
def test_a_file_that_is_no_root_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "root.json"
    path.write_text(text)
    path.chmod(0o600)
    assert outcome(lambda: keyfile.load(path, passphrase=b"x")) == BrokerCode.ROOT_FILE
    assert outcome(lambda: keyfile.load(tmp_path / "none")) == BrokerCode.ROOT_FILE


# ── the broker's keys ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_store_and_root_give_the_same_keys() -> None:
    store, root = MemoryStore(), RootKey.generate()
    first, second = (asyncio.run(Keyring.open(store, root, at=AT)) for _ in range(2))
    assert first.log.private_bytes_raw() == second.log.private_bytes_raw()
    assert [key.kid for key in first.tokens] == [key.kid for key in second.tokens]
    assert {key.kid for key in first.tokens}.isdisjoint(key.kid for key in first.results)


def test_another_root_does_not_open_the_store() -> None:
    store = MemoryStore()
    asyncio.run(Keyring.open(store, RootKey.generate(), at=AT))
    assert outcome(lambda: asyncio.run(Keyring.open(store, RootKey.generate(), at=AT))) == BrokerCode.ROOT_WRONG


def test_a_rotated_key_is_published_before_it_signs_and_kept_while_its_tokens_live() -> None:
    old, new = (TokenKey(kid=kid, private=PRIVATE, from_s=from_s) for kid, from_s in (("old", 0), ("new", 10_000)))
    both = (old, new)
    assert (signing(both, 9_999).kid, signing(both, 10_000).kid) == ("old", "new")
    assert [key.kid for key in published(both, 9_999)] == ["new", "old"]
    assert [key.kid for key in published(both, 10_000 + KEEP_AFTER_S - 1)] == ["new", "old"]
    assert [key.kid for key in published(both, 10_000 + KEEP_AFTER_S)] == ["new"]


def test_rotation_survives_a_restart() -> None:
    store, root = MemoryStore(), RootKey.generate()
    keyring = asyncio.run(Keyring.open(store, root, at=AT))
    first = keyring.tokens[0].kid
    tokens, results = asyncio.run(store.transact(lambda tx: keyring.draw_tokens(tx, root, at=AT)))
    again = asyncio.run(Keyring.open(store, root, at=AT))
    assert [key.kid for key in again.tokens] == [key.kid for key in tokens]
    assert [key.kid for key in again.results] == [key.kid for key in results]
    assert signing(again.tokens, AT.timestamp()).kid == first
    later = AT + timedelta(seconds=PUBLISH_BEFORE_S)
    assert signing(again.tokens, later.timestamp()).kid != first


# ── secrets at rest ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stored_secret_holds_nothing_of_its_value() -> None:
    record = Vault(RootKey.generate()).encrypt("acme/a/b", 1, b"hunter2" * 10, labels=("b", "a", "a"), at_s=1)
    assert b"hunter2" not in record.ciphertext + record.wrapped_key
    assert record.labels == ("a", "b")
    assert "ciphertext" not in repr(record)


def test_versions_count_up_and_labels_stay_unless_given() -> None:
    store, vault = MemoryStore(), Vault(RootKey.generate())

    def put(labels: tuple[str, ...] | None) -> tuple[int, tuple[str, ...]]:
        record = asyncio.run(store.transact(lambda tx: vault.put(tx, "acme/a/b", None, labels=labels, at_s=1)))
        return record.version, record.labels

    assert [put(("x",)), put(None), put(()), put(None)] == [(1, ("x",)), (2, ("x",)), (3, ()), (4, ())]


def test_an_unknown_and_a_destroyed_secret_have_codes_of_their_own() -> None:
    store, vault = MemoryStore(), Vault(RootKey.generate())
    asyncio.run(store.transact(lambda tx: vault.put(tx, "acme/a/b", b"v", labels=(), at_s=1)))
    assert outcome(lambda: store.read(lambda tx: find(tx, "acme/a/b", 2))) == BrokerCode.SECRET_UNKNOWN
    assert outcome(lambda: store.read(lambda tx: find(tx, "acme/a/c", None))) == BrokerCode.SECRET_UNKNOWN
    asyncio.run(store.transact(lambda tx: tx.secrets.destroy("acme/a/b")))
    assert outcome(lambda: store.read(lambda tx: find(tx, "acme/a/b", None))) == BrokerCode.SECRET_DESTROYED


@pytest.mark.parametrize("name", ["", "acme", "acme//b", "acme/../b", "acme/b c", "acme/b\n", "a/" * 8 + "b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert outcome(lambda: checked_name(name)) == BrokerCode.SECRET_NAME
