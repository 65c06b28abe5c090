"""A witness: somebody else who remembers the newest checkpoint of this log, and vouches for each longer one.

Decides how it is asked (C2SP tlog-witness: POST add-checkpoint with the size that it is believed to know, a proof of
consistency and the note) and what its answers mean. 409 with a size says what it does know; one that knows a longer
log than ours has seen what this disk has lost. Its cosignature (C2SP tlog-cosignature, Ed25519 with a time) is checked,
and must be of now: whoever sets a disk back could play the one back that belonged to it.
"""

import asyncio
import base64
import hashlib
import http.client
import logging
import ssl
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.audit import Audit
from broker.config import Settings
from broker.errors import BrokerCode, BrokerError
from broker.ports import Clock
from broker.wire.log import Checkpoint

TIMEOUT_S: Final = 10
MAX_ANSWER: Final = 4096
COSIGNATURE: Final = b"\x04"
MAX_SKEW_S: Final = 300  # an older cosignature may be one that was recorded when this checkpoint was the newest
_STAMP: Final = 8  # bytes of the time in a cosignature
logger = logging.getLogger("cloister.broker.witness")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """One witness, by its address and its verifier key `name+hash+key`."""

    url: str
    name: str
    key: bytes

    @classmethod
    def of(cls, url: str, vkey: str) -> "Witness":
        """Raises BrokerError config.invalid."""
        try:
            name, hashed, encoded = vkey.strip().split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
            if raw[:1] != COSIGNATURE or len(raw) != 33 or _key_id(name, raw[1:]).hex() != hashed:
                raise ValueError("type, length or hash")
        except ValueError:
            detail = "witness.key must be a verifier key name+hash+key of type 0x04 (Ed25519 cosignatures)"
            raise BrokerError(BrokerCode.CONFIG_INVALID, detail) from None
        return cls(url=url.rstrip("/"), name=name, key=raw[1:])

    @classmethod
    def of_settings(cls, settings: Settings) -> "Witness | None":
        """The one that the settings want asked. Raises BrokerError config.invalid."""
        if settings.confirm != "witness" or settings.witness_url is None or settings.witness_key is None:
            return None
        return cls.of(settings.witness_url, settings.witness_key)

    async def confirm(self, audit: Audit, clock: Clock) -> str:
        """Show it the newest checkpoint; its name, once it has cosigned.

        Raises BrokerError checkpoint.rolled_back when it knows a longer or another log, store.unavailable when it does
        not answer as a witness does.
        """
        head = Checkpoint.open(audit.head().note, audit.log_key)
        status, text = await self._add(audit, head, head.size)
        if status == 409:
            known = self._known(text, head)
            status, text = await self._add(audit, head, known)
        if status == 422:
            raise BrokerError(BrokerCode.CHECKPOINT_ROLLED_BACK, f"witness {self.name} knows another log of this name")
        if status == 409:
            self._known(text, head)
        if status != 200:
            raise _odd(f"{self.name} answers {status}")
        self._check(text, head, clock().timestamp())
        return f"witness {self.name}"

    def _known(self, text: str, head: Checkpoint) -> int:
        known = text.strip()
        if not known.isdecimal() or len(known) > 18:
            raise _odd(f"{self.name} answers 409 without a size")
        if int(known) > head.size:
            detail = f"witness {self.name} knows {known} entries, this disk has {head.size}"
            raise BrokerError(BrokerCode.CHECKPOINT_ROLLED_BACK, detail)
        return int(known)

    async def _add(self, audit: Audit, head: Checkpoint, old: int) -> tuple[int, str]:
        proof = audit.consistency(old, head.size) if 0 < old < head.size else ()
        lines = [f"old {old}", *(base64.b64encode(sibling).decode("ascii") for sibling in proof)]
        body = "\n".join(lines) + "\n\n" + head.note
        return await asyncio.to_thread(_post, f"{self.url}/add-checkpoint", body.encode())

    def _check(self, text: str, head: Checkpoint, now_s: float) -> None:
        """The answer is one or more signature lines; one of them must be this witness's over this note, of now."""
        body = head.note.rpartition("\n\n")[0] + "\n"
        for line in text.splitlines():
            dash, _, rest = line.partition(" ")
            name, _, encoded = rest.partition(" ")
            try:
                blob = base64.b64decode(encoded, validate=True)
            except ValueError:
                continue
            if dash != "\u2014" or name != self.name or blob[:4] != _key_id(self.name, self.key):
                continue
            stamp, signature = blob[4 : 4 + _STAMP], blob[4 + _STAMP :]
            signed = f"cosignature/v1\ntime {int.from_bytes(stamp, 'big')}\n{body}"
            try:
                Ed25519PublicKey.from_public_bytes(self.key).verify(signature, signed.encode())
            except InvalidSignature:
                continue
            if abs(now_s - int.from_bytes(stamp, "big")) > MAX_SKEW_S:
                raise _odd(f"{self.name} cosigned at another time: replayed, or a clock is wrong")
            return
        raise _odd(f"{self.name} did not cosign")


def _key_id(name: str, key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + COSIGNATURE + key).digest()[:4]


def _odd(detail: str) -> BrokerError:
    return BrokerError(BrokerCode.STORE_UNAVAILABLE, f"witness: {detail}")


def _post(url: str, body: bytes) -> tuple[int, str]:
    """Raises BrokerError store.unavailable. Redirects are not followed."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    )
    try:
        connection.request("POST", parts.path, body=body, headers={"Content-Type": "text/plain; charset=utf-8"})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_ANSWER).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise _odd(f"{url} does not answer ({type(error).__name__})") from None
    finally:
        connection.close()
