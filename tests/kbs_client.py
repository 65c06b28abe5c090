"""A guest of Confidential Containers in one file: attests to a KBS, fetches a resource, decrypts it.

Written from the protocol's description and from nothing of this project: it imports none of it. In a trust domain, real
or simulated, it takes its quote from configfs as any guest does:

    python kbs_client.py http://127.0.0.1:8443 lab/x/y > secret
"""

import base64
import hashlib
import http.client
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

TSM = Path("/sys/kernel/config/tsm/report")
OTHER_INFO = bytes.fromhex("0000000e454344482d45532b413235364b57000000000000000000000100")
Attester = Callable[[bytes], tuple[bytes, bytes | None]]  # REPORTDATA → quote, event log


def b64u(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jcs(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def ec_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    crv, width = {"secp256r1": ("P-256", 32), "secp521r1": ("P-521", 66)}[key.curve.name]
    point = key.public_numbers()
    x, y = (b64u(number.to_bytes(width, "big")) for number in (point.x, point.y))
    return {"kty": "EC", "crv": crv, "alg": "ECDH-ES+A256KW", "x": x, "y": y}


def rsa_jwk(key: rsa.RSAPublicKey) -> dict[str, str]:
    public = key.public_numbers()
    n, e = (b64u(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (public.n, public.e))
    return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": n, "e": e}


def decrypt(jwe: dict[str, str], key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Open a flattened JWE. The associated data is the protected header exactly as it came."""
    header = json.loads(unb64u(jwe["protected"]))
    wrapped = unb64u(jwe["encrypted_key"])
    if isinstance(key, rsa.RSAPrivateKey):
        assert header["alg"] == "RSA-OAEP-256"
        cek = key.decrypt(wrapped, padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None))
    else:
        assert header["alg"] == "ECDH-ES+A256KW"
        x, y = (int.from_bytes(unb64u(header["epk"][name]), "big") for name in ("x", "y"))
        ephemeral = ec.EllipticCurvePublicNumbers(x, y, key.curve).public_key()
        kek = ConcatKDFHash(SHA256(), 32, OTHER_INFO).derive(key.exchange(ec.ECDH(), ephemeral))
        cek = aes_key_unwrap(kek, wrapped)
    assert header["enc"] == "A256GCM"
    sealed = unb64u(jwe["ciphertext"]) + unb64u(jwe["tag"])
    return AESGCM(cek).decrypt(unb64u(jwe["iv"]), sealed, jwe["protected"].encode())


def configfs(report_data: bytes) -> tuple[bytes, bytes | None]:
    """A quote the way Linux gives it out, and the event log that firmware left, where there is one."""
    entry = Path(tempfile.mkdtemp(dir=TSM))
    try:
        (entry / "inblob").write_bytes(report_data)
        quote = (entry / "outblob").read_bytes()
    finally:
        entry.rmdir()
    return quote, None


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def error(self) -> str:
        """The error's name: the last part of its `type`."""
        return str(self.json["type"]).rpartition("/")[2]

    @property
    def cookie(self) -> str:
        """name=value of the cookie that was set."""
        return self.headers.get("set-cookie", "").partition(";")[0]


Send = Callable[[str, str, bytes, dict[str, str]], Answer]  # method, path, body, headers


def over_http(url: str) -> Send:
    def send(method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            got = connection.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()

    return send


@dataclass
class KbsClient:
    """One guest. Every step can be taken alone, so that a test can take one of them wrongly."""

    send: Send
    attester: Attester = configfs
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)
    cookie: str = ""
    nonce: str = ""
    token: str = ""
    handshakes: int = 0

    @property
    def jwk(self) -> dict[str, str]:
        public = self.key.public_key()
        return rsa_jwk(public) if isinstance(public, rsa.RSAPublicKey) else ec_jwk(public)

    def auth(self, **changes: Any) -> Answer:
        body = {"version": "0.4.0", "tee": "tdx", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
        answer = self.send("POST", "/kbs/v0/auth", json.dumps({**body, **changes}).encode(), {})
        if answer.status == 200:
            self.cookie, self.nonce = answer.cookie, answer.json["nonce"]
        return answer

    def report_data(
        self, additional: str = "", *, nonce: str | None = None, jwk: dict[str, str] | None = None
    ) -> bytes:
        hashed = {"additional-evidence": additional, "nonce": nonce or self.nonce, "tee-pubkey": jwk or self.jwk}
        return hashlib.sha384(jcs(hashed)).digest() + bytes(16)

    def body(self, additional: str = "", *, report_data: bytes | None = None) -> dict[str, Any]:
        quote, log = self.attester(report_data or self.report_data(additional))
        told = base64.b64encode(log).decode() if log else None
        primary = {"quote": base64.b64encode(quote).decode(), "cc_eventlog": told}
        return {
            "init-data": None,
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.jwk},
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": additional},
        }

    def attest(self, body: dict[str, Any] | None = None, *, cookie: str | None = None) -> Answer:
        self.handshakes += 1
        headers = {"Cookie": self.cookie if cookie is None else cookie}
        headers = headers if headers["Cookie"] else {}
        answer = self.send("POST", "/kbs/v0/attest", json.dumps(body or self.body()).encode(), headers)
        if answer.status == 200:
            self.token = answer.json["token"]
        return answer

    def resource(self, name: str, *, by: str = "cookie", token: str | None = None) -> Answer:
        headers = {"Cookie": self.cookie} if by in ("cookie", "both") else {}
        if by in ("bearer", "both"):
            headers["Authorization"] = f"Bearer {self.token if token is None else token}"
        return self.send("GET", f"/kbs/v0/resource/{name}", b"", headers)

    def fetch(self, name: str, *, tries: int = 3) -> bytes:
        """As guests do it: 401 means a new handshake and another try, anything else is final."""
        for _ in range(tries):
            answer = self.resource(name)
            if answer.status == 200:
                return decrypt(answer.json, self.key)
            if answer.status != 401:
                break
            self.auth()
            attested = self.attest()
            if attested.status != 200:
                raise SystemExit(f"attest: {attested.status} {attested.raw.decode()}")
        raise SystemExit(f"{name}: {answer.status} {answer.raw.decode()}")


if __name__ == "__main__":
    os.write(1, KbsClient(send=over_http(sys.argv[1])).fetch(sys.argv[2]))
