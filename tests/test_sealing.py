"""Sealing: known answers, an independent reading of HPKE, and one refusal for every way to fail."""

import copy
import hashlib
import hmac
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import sealing
from attestation.errors import AttestationError, Code
from attestation.evidence import MLKEM768_X25519, SEALING_KEY_SIZES, X25519
from attestation.sealing import MAX_PLAINTEXT, Sealed, SealingKey, overhead, seal, seal_to
from tests.admitted import verdict

SUITES = (MLKEM768_X25519, X25519)
KEM_IDS = {MLKEM768_X25519: 0x647A, X25519: 0x0020}
# Seed, public key, encapsulated key and shared secret of draft-connolly-cfrg-xwing-kem; see the file's own `source`.
XWING = json.loads((Path(__file__).parent / "data" / "xwing.json").read_text())["vectors"]


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except AttestationError as error:
        return error.code
    return "ok"


# An independent HPKE, base mode, written from RFC 9180


def extract(salt: bytes, suite_id: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite_id + label + ikm, "sha256")


def expand(prk: bytes, suite_id: bytes, label: bytes, info: bytes, size: int) -> bytes:
    info = size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info
    block, out, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out, counter = out + block, counter + 1
    return out[:size]


def key_and_nonce(suite: str, secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key schedule of base mode with HKDF-SHA256 (1) and AES-256-GCM (2)."""
    suite_id = b"HPKE" + KEM_IDS[suite].to_bytes(2, "big") + b"\0\1" + b"\0\2"
    context = b"\0" + extract(b"", suite_id, b"psk_id_hash", b"") + extract(b"", suite_id, b"info_hash", info)
    prk = extract(secret, suite_id, b"secret", b"")
    return expand(prk, suite_id, b"key", context, 32), expand(prk, suite_id, b"base_nonce", context, 12)


def framed_info(suite: str, info: bytes) -> bytes:
    parts = (b"cloister/seal/v1", suite.encode(), info)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def shared_secret(suite: str, seed: bytes, encapsulated: bytes) -> bytes:
    if suite == X25519:
        private = X25519PrivateKey.from_private_bytes(seed)
        secret = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
        public = private.public_key().public_bytes_raw()
        kem = b"KEM" + KEM_IDS[suite].to_bytes(2, "big")
        return expand(extract(b"", kem, b"eae_prk", secret), kem, b"shared_secret", encapsulated + public, 32)
    expanded = hashlib.shake_256(seed).digest(96)
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    ct_m, ct_x = encapsulated[:1088], encapsulated[1088:]
    ss_m = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).decapsulate(ct_m)
    ss_x = x25519.exchange(X25519PublicKey.from_public_bytes(ct_x))
    return hashlib.sha3_256(ss_m + ss_x + ct_x + x25519.public_key().public_bytes_raw() + LABEL).digest()


LABEL = bytes.fromhex("5c2e2f2f5e5c")


def open_by_hand(suite: str, seed: bytes, blob: bytes, info: bytes) -> bytes:
    size = {X25519: 32, MLKEM768_X25519: 1120}[suite]
    key, nonce = key_and_nonce(suite, shared_secret(suite, seed, blob[:size]), framed_info(suite, info))
    return AESGCM(key).decrypt(nonce, blob[size:], b"")


@pytest.mark.parametrize("vector", XWING, ids=lambda vector: vector["seed"][:8])
def test_x_wing_keys_and_secrets_are_those_of_the_draft(vector: dict[str, str]) -> None:
    seed, encapsulated = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["encapsulated"])
    key = SealingKey.from_seed(seed)
    assert hashlib.sha256(key.public).hexdigest() == vector["public_sha256"]
    assert shared_secret(MLKEM768_X25519, seed, encapsulated).hex() == vector["shared_secret"]
    # a message sealed by hand to the draft's encapsulated key opens with ours
    aes, nonce = key_and_nonce(MLKEM768_X25519, bytes.fromhex(vector["shared_secret"]), framed_info(key.suite, b"i"))
    assert key.open(encapsulated + AESGCM(aes).encrypt(nonce, b"secret", b""), b"i") == b"secret"


@pytest.mark.parametrize("suite", SUITES)
def test_another_reading_of_the_rfc_opens_what_we_seal(suite: str) -> None:
    seed = b"\x42" * 32
    key = SealingKey.from_seed(seed, suite)
    sealed = seal_to(suite, key.public, b"model weights key", info=b"permit")
    assert open_by_hand(suite, seed, sealed.blob, b"permit") == b"model weights key"


def test_the_x25519_kem_is_that_of_rfc_9180() -> None:
    """Values of appendix A.1.1 (its KEM; its AEAD is another one)."""
    receiver = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    encapsulated = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    secret = "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    assert shared_secret(X25519, receiver, encapsulated).hex() == secret


# Ours


@settings(max_examples=25)
@given(suite=st.sampled_from(SUITES), plaintext=st.binary(max_size=200), info=st.binary(max_size=40))
def test_what_is_sealed_opens_with_the_same_key_and_context(suite: str, plaintext: bytes, info: bytes) -> None:
    key = SealingKey.generate(suite)
    sealed = seal_to(suite, key.public, plaintext, info=info)
    assert sealed.suite == suite
    assert len(key.public) == SEALING_KEY_SIZES[suite]
    assert len(sealed.blob) == len(plaintext) + overhead(suite)
    assert key.open(sealed.blob, info) == plaintext


KEYS = {suite: SealingKey.from_seed(b"k" * 32, suite) for suite in SUITES}
BLOBS = {suite: seal_to(suite, KEYS[suite].public, b"secret", info=b"info").blob for suite in SUITES}


@settings(max_examples=60)
@given(suite=st.sampled_from(SUITES), data=st.data())
def test_everything_else_is_one_refusal(suite: str, data: st.DataObject) -> None:
    blob, key, info = BLOBS[suite], KEYS[suite], b"info"
    match data.draw(st.sampled_from(["flip", "cut", "longer", "info", "key", "suite", "noise", "no info"])):
        case "flip":
            bit = data.draw(st.integers(0, len(blob) * 8 - 1))
            blob = (int.from_bytes(blob, "big") ^ 1 << bit).to_bytes(len(blob), "big")
        case "cut":
            blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
        case "longer":
            blob += data.draw(st.binary(min_size=1, max_size=20))
        case "info":
            info = data.draw(st.binary(max_size=8).filter(lambda other: other != b"info"))
        case "key":
            key = SealingKey.generate(suite)
        case "suite":
            key = KEYS[next(other for other in SUITES if other != suite)]
        case "noise":
            blob = data.draw(st.binary(max_size=2000))
        case "no info":
            info = b""
    assert code_of(lambda: key.open(blob, info)) == Code.SEALING_OPEN


def test_the_suite_is_part_of_what_is_bound() -> None:
    """The same key bytes under a suite with another name do not open."""
    key = KEYS[X25519]
    secretly = seal_to(X25519, key.public, b"secret", info=b"").blob
    assert open_by_hand(X25519, b"k" * 32, secretly, b"") == b"secret"
    aes, nonce = key_and_nonce(X25519, shared_secret(X25519, b"k" * 32, secretly[:32]), b"")
    forged = secretly[:32] + AESGCM(aes).encrypt(nonce, b"secret", b"")
    assert code_of(lambda: key.open(forged, b"")) == Code.SEALING_OPEN


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda: SealingKey.generate("x448"), Code.SEALING_SUITE),
        (lambda: SealingKey.from_seed(b"short"), Code.SEALING_KEY),
        (lambda: seal_to("", b"", b"", info=b""), Code.SEALING_SUITE),
        (lambda: seal_to(X25519, bytes(31), b"", info=b""), Code.SEALING_KEY),
        (lambda: seal_to(X25519, bytes(32), b"", info=b""), Code.SEALING_KEY),
        (lambda: seal_to(MLKEM768_X25519, KEYS[X25519].public, b"", info=b""), Code.SEALING_KEY),
        (lambda: seal_to(MLKEM768_X25519, b"\xff" * 1216, b"", info=b""), Code.SEALING_KEY),
        (lambda: seal_to(X25519, KEYS[X25519].public, bytes(MAX_PLAINTEXT + 1), info=b""), Code.SEALING_TOO_LARGE),
    ],
)
def test_what_cannot_be_sealed_has_a_code(act: Callable[[], object], code: Code) -> None:
    assert code_of(act) == code


def test_a_library_without_ml_kem_is_told_apart_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backend), "mlkem_supported", lambda _: False)
    assert code_of(lambda: sealing.require(MLKEM768_X25519)) == Code.SEALING_UNAVAILABLE
    assert code_of(lambda: SealingKey.generate()) == Code.SEALING_UNAVAILABLE
    assert code_of(lambda: seal_to(MLKEM768_X25519, KEYS[MLKEM768_X25519].public, b"", info=b"")) == (
        Code.SEALING_UNAVAILABLE
    )
    assert SealingKey.generate(X25519).suite == X25519


def test_keys_and_sealed_things_do_not_show_or_travel() -> None:
    key = SealingKey.generate()
    assert repr(key) == "<SealingKey>"
    assert "blob" not in repr(Sealed(suite=X25519, blob=b"blob"))
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            spread(key)


def test_a_secret_is_sealed_to_an_admitted_verdict_alone() -> None:
    seed = b"s" * 32  # its raw bytes stand as public key in that binding
    sealed = seal(verdict(), b"secret", context=b"permit")
    assert (sealed.suite, len(sealed.blob)) == (X25519, 6 + overhead(X25519))
    assert code_of(lambda: seal(verdict("bytes"), b"secret", context=b"")) == Code.SEALING_NOT_BOUND
    double = SimpleNamespace(admission=True, suite=X25519, sealing_key=seed)
    for no_verdict in (seed, None, "agent", double):
        with pytest.raises(TypeError):
            seal(no_verdict, b"secret", context=b"")  # type: ignore[arg-type]  # wrong on purpose
