"""The other side of a sealed broker: a holder who brings a share, an operator who stands for a checkpoint.

Decides what they check first. The broker's quote, its collateral and the key inside it are judged by the holder's own
trust file, under its roots; without evidence nothing is brought unless that is said. A checkpoint is stood for only
when the log provably continues the one that was remembered.
"""

import secrets
from datetime import datetime
from pathlib import Path

from attestation.sealing import seal_to
from attestation.verifier import Verifier
from broker.commands.admin_client import REFUSED, USAGE, AdminClient, AdminError
from broker.errors import BrokerCode
from broker.rootkey.holders import load_private, packed, read_share
from broker.wire.attested import BrokerReference, judge
from broker.wire.challenge import ChallengeResponse
from broker.wire.errors import WireError
from broker.wire.fields import Reader
from broker.wire.jose import b64u
from broker.wire.log import HASH_LEN, MAX_PROOF, Checkpoint, verify_consistency
from broker.wire.trustfile import TrustFile, TrustFileFault
from broker.wire.unseal import Confirmation, ShareOffer, UnsealStatus, share_info


def bring(
    caller: AdminClient, share: Path, key: Path | None, trust: Path | None, *, unattested: bool, at: datetime
) -> UnsealStatus:
    """Judge the broker, then seal the share to it.

    Raises AdminError, BrokerError root.share_wrong; WireError challenge.*; AttestationError.
    """
    held = read_share(share, None if key is None else load_private(key))
    status = UnsealStatus.from_dict(caller.get("/v1/unseal"))
    if status.state != "shares":
        return status
    if trust is not None:
        _judge(caller, status, trust, at)
    elif not unattested:
        detail = "name --trust FILE to judge where the share goes, or say --without-evidence"
        raise AdminError("root.unattested", detail, status=USAGE)
    sealed = seal_to(status.suite, status.key, packed(held), info=share_info(status.key))
    return UnsealStatus.from_dict(caller.send("POST", "/v1/unseal", ShareOffer(sealed=sealed.blob).to_dict()))


def _judge(caller: AdminClient, status: UnsealStatus, trust: Path, at: datetime) -> None:
    """Whether the key in the status is one inside a trust domain that the trust file describes."""
    told, reference = _trust_file(trust)
    nonce = secrets.token_bytes(32)
    answer = ChallengeResponse.from_dict(caller.send("POST", "/v1/unseal:challenge", {"client_nonce": b64u(nonce)}))
    answer.verify(answer.broker_id, client_nonce=nonce)  # a sealed broker has no identity yet, only fresh keys
    if answer.evidence is None or answer.evidence.digest != answer.evidence_digest:
        raise AdminError("root.unattested", "the broker shows no evidence of where it runs", status=REFUSED)
    judge(
        answer.evidence,
        answer.keys,
        reference=reference,
        verifier=Verifier(told.roots),
        trust_file_digest=told.digest,
        at=at,
    )
    if answer.evidence.sealing_key != status.key:
        raise AdminError("root.unattested", "the quote binds another key than the one offered", status=REFUSED)


def _trust_file(path: Path) -> tuple[TrustFile, BrokerReference]:
    """A trust file that says what the broker must be. Raises AdminError trust.unreadable, trust.malformed."""
    try:
        found = TrustFile.load(path)
    except OSError as error:
        raise AdminError("trust.unreadable", f"{path}: {error.strerror}", status=USAGE) from None
    except TrustFileFault as fault:
        raise AdminError("trust.malformed", f"{path}: {fault}", status=USAGE) from None
    if found.broker_reference is None:
        detail = f"{path}: it has no [broker.reference], which says what the broker must be"
        raise AdminError("trust.malformed", detail, status=USAGE)
    return found, found.broker_reference


def compared(caller: AdminClient, log_key: bytes, known: str | None) -> Checkpoint:
    """The broker's newest checkpoint, if it continues the known one.

    Raises AdminError root.sealed, checkpoint.rolled_back; WireError log.*
    """
    status = UnsealStatus.from_dict(caller.get("/v1/unseal"))
    if not status.checkpoint:
        raise AdminError(str(BrokerCode.ROOT_SEALED), f"no checkpoint to see yet: {status.state}", status=REFUSED)
    shown = Checkpoint.open(status.checkpoint, log_key)
    if known is None:
        return shown
    old = Checkpoint.open(known, log_key)
    code = str(BrokerCode.CHECKPOINT_ROLLED_BACK)
    if old.size > shown.size:
        raise AdminError(code, f"{old.size} entries were seen before, now {shown.size}", status=REFUSED)
    proof: tuple[bytes, ...] = ()
    if 0 < old.size < shown.size:
        answer = caller.get("/v1/log/consistency", old=old.size, size=shown.size)
        proof = Reader(answer, "consistency").items("proof", _sibling, max_items=MAX_PROOF)
    try:
        verify_consistency(old.size, old.root, shown.size, shown.root, proof)
    except WireError as error:
        raise AdminError(code, f"another log than the one that was seen: {error.detail}", status=REFUSED) from None
    return shown


def _sibling(value: object) -> bytes:
    return Reader({"hash": value}, "consistency.proof").raw("hash", size=HASH_LEN)


def stand_for(caller: AdminClient, shown: Checkpoint) -> UnsealStatus:
    """Raises AdminError."""
    told = caller.send("POST", "/v1/unseal:confirm", Confirmation(checkpoint=shown.note).to_dict())
    return UnsealStatus.from_dict(told)
