"""Shares, holders, the TPM, and moving a root key from one way of keeping it to another."""

import itertools
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic.shamir import RawShare, _interpolate

from attestation.encoding import b64url, from_b64url
from broker.errors import BrokerCode, BrokerError
from broker.rootkey import holders, keyfile, tpm
from broker.rootkey.methods import Keeping, Method, create, load, method_of, migrate, share_set
from broker.rootkey.root import RootKey
from broker.rootkey.shares import Share, interpolate, invert, multiply, parse_spelled, share_dict, share_of, split

RAW = bytes(range(32))


def outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except BrokerError as error:
        return str(error.code)
    return "ok"


# ── shares ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_element_but_zero_has_an_inverse() -> None:
    assert all(multiply(a, invert(a)) == 1 for a in range(1, 256))
    assert invert(0) == 0


def test_products_are_those_of_the_advanced_encryption_standard() -> None:
    """FIPS 197, §4.2 and §4.2.1: the worked examples."""
    assert multiply(0x57, 0x83) == 0xC1
    assert multiply(0x57, 0x13) == 0xFE


@given(points=st.dictionaries(st.integers(0, 255), st.binary(min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_interpolation_agrees_with_an_implementation_of_slip_39(points: dict[int, bytes]) -> None:
    given = list(points.items())
    ours = interpolate(given, 0 if 0 not in points else 255)
    theirs = _interpolate([RawShare(at, value) for at, value in given], 0 if 0 not in points else 255)
    assert ours == theirs


@given(raw=st.binary(min_size=32, max_size=32), numbers=st.tuples(st.integers(2, 5), st.integers(0, 3)))
@settings(max_examples=20, deadline=None)
def test_any_k_of_n_shares_give_the_root_back_and_fewer_give_nothing(raw: bytes, numbers: tuple[int, int]) -> None:
    threshold, count = numbers[0], sum(numbers)
    kept, cut = split(raw, threshold, count)
    for some in itertools.combinations(cut, threshold):
        assert kept.combine(some) == raw
    for few in itertools.combinations(cut, threshold - 1):
        assert outcome(lambda few=few: kept.combine(few)) == BrokerCode.ROOT_SEALED  # type: ignore[misc]
        assert outcome(lambda few=few: kept.combine((*few, few[0]))) == BrokerCode.ROOT_SEALED  # type: ignore[misc]


def test_fewer_than_k_shares_fit_every_root_key() -> None:
    """T28: to k − 1 shares and any root key at all there is a share that completes them."""
    _, cut = split(RAW, 3, 5)
    held = [(share.index, share.value) for share in cut[:2]]
    for guess in (RAW, bytes(32), b"\xff" * 32):
        missing = interpolate([(0, guess), *held], 5)
        assert interpolate([*held, (5, missing)], 0) == guess


def test_a_wrong_share_is_named() -> None:
    kept, cut = split(RAW, 2, 3)
    bad = Share(set_id=cut[1].set_id, index=2, value=bytes(32))
    with pytest.raises(BrokerError) as caught:
        kept.combine([cut[0], bad])
    assert caught.value.code is BrokerCode.ROOT_SHARE
    assert "share 2" in caught.value.detail
    assert bad.value.hex() not in caught.value.detail


def test_shares_of_another_set_or_place_are_refused() -> None:
    kept, cut = split(RAW, 2, 3)
    other = split(RAW, 2, 3)[1]
    assert outcome(lambda: kept.check(other[0])) == BrokerCode.ROOT_SHARE
    moved = Share(set_id=kept.set_id, index=3, value=cut[0].value)
    assert outcome(lambda: kept.check(moved)) == BrokerCode.ROOT_SHARE
    for index in (0, 4):
        stray = Share(set_id=kept.set_id, index=index, value=cut[0].value)
        assert outcome(lambda stray=stray: kept.check(stray)) == BrokerCode.ROOT_SHARE  # type: ignore[misc]


def test_a_share_shows_itself_nowhere() -> None:
    share = Share(set_id="00" * 16, index=1, value=b"S" * 32)
    assert "SSS" not in repr(share)


@pytest.mark.parametrize("numbers", [(1, 3), (4, 3), (2, 33), (0, 0)])
def test_numbers_of_shares_are_bounded(numbers: tuple[int, int]) -> None:
    assert outcome(lambda: split(RAW, *numbers)) == BrokerCode.CONFIG_INVALID


def test_shares_are_spelled_k_of_n() -> None:
    assert parse_spelled("3/5") == (3, 5)
    for text in ("3", "0/5", "3/5/7", "3 / 5", "-1/5", "٣/٥"):
        assert outcome(lambda text=text: parse_spelled(text)) == BrokerCode.CONFIG_INVALID  # type: ignore[misc]


@pytest.mark.parametrize(
    "change", [{"value": "AA"}, {"index": 0}, {"index": "x"}, {"set": "zz"}, {"cloister_share": 2}]
)
def test_what_is_no_share_is_refused(change: dict[str, Any]) -> None:
    kept, cut = split(RAW, 2, 2)
    good = share_dict(cut[0], kept)
    assert share_of(good) == cut[0]
    assert outcome(lambda: share_of(good | change)) == BrokerCode.ROOT_SHARE


# ── holders ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_share_sealed_to_its_holder_opens_with_his_key_alone(tmp_path: Path) -> None:
    holders.create(tmp_path / "ann")
    holders.create(tmp_path / "ben")
    assert (tmp_path / "ann").stat().st_mode & 0o777 == 0o600
    kept, cut = split(RAW, 2, 2)
    holders.write_share(tmp_path / "share", cut[0], kept, holders.load_public(tmp_path / "ann.pub"))
    text = (tmp_path / "share").read_text()
    assert share_dict(cut[0], kept)["value"] not in text
    assert holders.read_share(tmp_path / "share", holders.load_private(tmp_path / "ann")) == cut[0]
    ben = holders.load_private(tmp_path / "ben")
    assert outcome(lambda: holders.read_share(tmp_path / "share", ben)) == BrokerCode.ROOT_SHARE
    assert outcome(lambda: holders.read_share(tmp_path / "share")) == BrokerCode.ROOT_SHARE


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cloister_holder": 1}', '{"cloister_holder_public": 1}', " " * 9000]
)
def test_files_that_are_not_a_holders_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    for load_it in (holders.load_public, holders.load_private, holders.read_share):
        assert outcome(lambda load_it=load_it: load_it(tmp_path / "file")) == BrokerCode.ROOT_SHARE  # type: ignore[misc]
        assert outcome(lambda load_it=load_it: load_it(tmp_path / "no")) == BrokerCode.ROOT_SHARE  # type: ignore[misc]


# ── moving from one method to another ──────────────────────────────────────────────────────────────────────────────


def brought(paths: tuple[Path, ...]) -> list[Share]:
    return [holders.read_share(path) for path in paths]


def test_shares_are_files_and_the_root_file_has_none_of_them(tmp_path: Path) -> None:
    root, paths = create(tmp_path / "root.json", Keeping(method=Method.SHARES, threshold=2, count=3))
    assert method_of(tmp_path / "root.json") is Method.SHARES
    assert len(paths) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    assert outcome(lambda: load(tmp_path / "root.json")) == BrokerCode.ROOT_SEALED
    assert load(tmp_path / "root.json", brought=brought(paths[1:])).id == root.id
    stored = keyfile.read(tmp_path / "root.json")
    assert stored["root"] == root.id
    assert not any(share_dict(s, share_set(tmp_path / "root.json"))["value"] in str(stored) for s in brought(paths))


def test_a_root_key_moves_through_every_method_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    root, _ = create(path, Keeping())
    moved, paths = migrate(path, Keeping(method=Method.SHARES, threshold=2, count=2))
    assert moved.id == root.id
    migrate(path, Keeping(method=Method.PASSPHRASE, passphrase=b"horse"), brought=brought(paths))
    assert load(path, passphrase=b"horse").derive("x") == root.derive("x")
    assert outcome(lambda: load(path)) == BrokerCode.ROOT_PASSPHRASE
    migrate(path, Keeping(), passphrase=b"horse")
    assert load(path).id == root.id
    assert [item.name for item in tmp_path.glob("root.json*")] == ["root.json"]


def test_a_migration_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    root, _ = create(path, Keeping(method=Method.PASSPHRASE, passphrase=b"a"))
    assert outcome(lambda: migrate(path, Keeping(), passphrase=b"b")) == BrokerCode.ROOT_PASSPHRASE
    wrong = Keeping(method=Method.TPM, tcti="swtpm:host=127.0.0.1,port=1")
    assert outcome(lambda: migrate(path, wrong, passphrase=b"a")) == BrokerCode.ROOT_TPM_UNAVAILABLE
    assert load(path, passphrase=b"a").id == root.id


@pytest.mark.parametrize(
    "wish",
    [
        {"method": Method.PASSPHRASE},
        {"passphrase": b"x"},
        {"method": Method.SHARES, "threshold": 2, "count": 2, "holders": 1},
        {"method": Method.SHARES, "threshold": 2, "count": 2, "holders": 2},
    ],
)
def test_a_keeping_that_contradicts_itself_is_refused(wish: dict[str, Any]) -> None:
    holder = holders.Holder(name="a", suite="mlkem768-x25519", key=b"k")
    asked = wish | {"holders": (holder,) * wish.get("holders", 0)}
    assert outcome(lambda: Keeping(**asked)) == BrokerCode.CONFIG_INVALID


@pytest.mark.parametrize("change", [{"threshold": 1}, {"count": 9}, {"set": "00"}, {"commitments": []}, {"root": None}])
def test_a_changed_set_of_shares_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "root.json"
    _, paths = create(path, Keeping(method=Method.SHARES, threshold=2, count=3))
    keyfile.write(path, keyfile.read(path) | change, replace=True)
    assert outcome(lambda: load(path, brought=brought(paths))) in (BrokerCode.ROOT_FILE, BrokerCode.ROOT_WRONG)


# ── TPM ────────────────────────────────────────────────────────────────────────────────────────────────────────────

needs_swtpm = pytest.mark.skipif(
    not (tpm.available() and shutil.which("swtpm")),
    reason="needs the package swtpm, and tpm2-pytss (libtss2-dev, then requirements/tpm.txt)",
)


@pytest.fixture
def tcti(tmp_path: Path) -> Iterator[str]:
    """A software TPM with a state of its own."""
    (tmp_path / "tpm").mkdir()
    port = _two_free_ports()
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path / 'tpm'}"),
            *("--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"),
            *("--flags", "not-need-init,startup-clear"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield f"swtpm:host=127.0.0.1,port={port}"
    finally:
        process.terminate()
        process.wait()


def _two_free_ports() -> int:
    """A port whose successor is free, too: the client takes the control port to be the next one."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports")


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until both ports take connections. Looked up, not tried: whoever connects is the TPM's one client."""
    wanted = {f"0100007F:{number:04X}" for number in (port, port + 1)}
    while process.poll() is None:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
        if wanted <= {row[1] for row in rows if row[3] == "0A"}:  # LISTEN
            return
    raise AssertionError("swtpm ended")


def extend(tcti: str, pcr: int) -> None:
    import tpm2_pytss as tss

    chip = tss.ESAPI(tcti)
    digest = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=b"x" * 32))
    chip.pcr_extend(tss.ESYS_TR(pcr), tss.TPML_DIGEST_VALUES([digest]))
    chip.close()


@needs_swtpm
def test_the_tpm_opens_the_root_key_until_a_pcr_changes(tmp_path: Path, tcti: str) -> None:
    path = tmp_path / "root.json"
    root, _ = create(path, Keeping(method=Method.TPM, tcti=tcti, pcrs="sha256:7,16"))
    for _ in range(4):  # a session or object that stayed behind would fill the TPM
        assert load(path, tcti=tcti).id == root.id
    extend(tcti, 16)
    assert outcome(lambda: load(path, tcti=tcti)) == BrokerCode.ROOT_TPM


@needs_swtpm
def test_what_a_tpm_sealed_does_not_open_when_it_was_changed(tmp_path: Path, tcti: str) -> None:
    path = tmp_path / "root.json"
    create(path, Keeping(method=Method.TPM, tcti=tcti, pcrs="sha256:16"))
    good = keyfile.read(path)
    for change in (
        {"pcrs": "sha256:15"},
        {"private": good["public"]},
        {"public": b64url(from_b64url(good["public"])[:-8])},
    ):
        keyfile.write(path, good | change, replace=True)
        assert outcome(lambda: load(path, tcti=tcti)) == BrokerCode.ROOT_TPM
    for change in ({"pcrs": "sha1:7"}, {"private": 7}, {"public": "A" * 9000}):
        keyfile.write(path, good | change, replace=True)
        assert outcome(lambda: load(path, tcti=tcti)) == BrokerCode.ROOT_FILE


@needs_swtpm
def test_a_root_key_moves_into_a_tpm_and_out_of_it(tmp_path: Path, tcti: str) -> None:
    path = tmp_path / "root.json"
    root, _ = create(path, Keeping())
    migrate(path, Keeping(method=Method.TPM, tcti=tcti))
    assert method_of(path) is Method.TPM
    migrate(path, Keeping(method=Method.PASSPHRASE, passphrase=b"p"), tcti=tcti)
    assert load(path, passphrase=b"p").id == root.id


def test_without_a_tpm_the_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(lambda: tpm.seal(RAW, tcti="nonsense:x")) == BrokerCode.ROOT_TPM_UNAVAILABLE
    monkeypatch.setattr(tpm, "available", lambda: False)
    keyfile.write(tmp_path / "root.json", {"method": "tpm", "pcrs": "sha256:7", "public": "AA", "private": "AA"})
    assert outcome(lambda: load(tmp_path / "root.json")) == BrokerCode.ROOT_TPM_UNAVAILABLE


@pytest.mark.parametrize("pcrs", ["", "sha1:7", "sha256:", "sha256:24", "sha256:7,", "7"])
def test_pcrs_are_named_with_their_bank(pcrs: str) -> None:
    assert outcome(lambda: tpm.seal(RAW, pcrs=pcrs)) == BrokerCode.CONFIG_INVALID


def test_a_root_key_from_shares_is_a_root_key_like_any_other() -> None:
    kept, cut = split(RAW, 2, 2)
    assert RootKey(kept.combine(cut)).id == RootKey(RAW).id == kept.root_id
