"""A broker that is not open yet: it collects shares of its root key, then somebody's word for its newest checkpoint.

Decides what a sealed broker can do: say what it lacks, prove where it runs, take shares, take a confirmation. Whoever
could set the disk back could bring back what was revoked or destroyed since, and nothing on that disk can tell; so in
production a broker stays sealed until a witness or an operator has seen no newer checkpoint than the one it shows. The
development profile skips that, and says so in the log.
"""

import asyncio
import contextlib
import logging
import secrets
from typing import Final, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import SealingFailed
from attestation.evidence import MLKEM768_X25519
from attestation.ports import CollateralSource, TrustDomain
from attestation.sealing import SealingKey
from broker.attested import Attestor
from broker.audit import Audit
from broker.challenges import Challenges
from broker.collateral import CollateralCache
from broker.config import Admin, Settings
from broker.errors import BrokerCode, BrokerError
from broker.generation import Generation
from broker.identity import Identity
from broker.keyring import Keyring, TokenKey
from broker.ports import Clock
from broker.rights import Act
from broker.rootkey.holders import unpacked
from broker.rootkey.methods import Method, load, method_of, share_set
from broker.rootkey.root import RootKey
from broker.rootkey.shares import Share, ShareSet
from broker.store.memory import MemoryStore
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.jose import thumbprint
from broker.wire.unseal import Confirmation, ShareOffer, UnsealStatus, share_info
from broker.witness import Witness

WITNESS_RETRY_S: Final = 5
SETTLE_S: Final = 10  # from the root key to the checkpoint
SKIPPED: Final = "skipped"
logger = logging.getLogger("cloister.broker.sealed")


@final
class Unsealing:
    """One start of a broker, from sealed to open."""

    def __init__(self, settings: Settings, *, clock: Clock, witness: Witness | None = None) -> None:
        """Raises BrokerError root.file_invalid."""
        self._settings = settings
        self._clock = clock
        self._witness = witness
        self._shares: dict[int, Share] = {}
        self._set: ShareSet | None = _needed(settings)
        self._complete = asyncio.Event()
        self._shown = asyncio.Event()
        self._root: RootKey | None = None
        self._audit: Audit | None = None
        self._word: asyncio.Future[str] | None = None
        self._challenges = Challenges(secrets.token_bytes(32), "unseal")
        self._identity = Identity(_passing_keys(), issuer=settings.public_url, log_name=settings.log_name)
        self._sealing = SealingKey.generate(MLKEM768_X25519)
        self._attestor: Attestor | None = None

    @property
    def waits(self) -> bool:
        """Whether anybody has to come before this broker can be opened."""
        return self._set is not None or self._settings.confirm != SKIPPED

    async def attest(self, domain: TrustDomain, trust_file_digest: bytes, source: CollateralSource) -> None:
        """Prove from now on where this process runs, under keys that it has only until it is open."""
        store = MemoryStore()
        generation = Generation(store, Audit(store, key=Ed25519PrivateKey.generate(), origin="sealed"))
        cache = CollateralCache(source, store, generation, self._clock)
        attestor = Attestor(identity=self._identity, collateral=cache, clock=self._clock)
        await attestor.begin(domain, trust_file_digest)
        self._attestor, self._sealing = attestor, attestor.sealing

    async def settled(self) -> UnsealStatus:
        """The status, once a root key that has come has opened the store: whoever asks then wants its checkpoint."""
        if self._settings.confirm != SKIPPED and (self._set is None or self._complete.is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self._shown.wait()
        return self.status()

    def status(self) -> UnsealStatus:
        kept, head = self._set, self._audit.head().note if self._audit and self._word else ""
        missing = kept is not None and not self._complete.is_set()
        return UnsealStatus(
            state="shares" if missing else "checkpoint" if self._settings.confirm != SKIPPED else "open",
            root=kept.root_id if kept else "",
            threshold=kept.threshold if kept else 0,
            count=kept.count if kept else 0,
            given=tuple(sorted(self._shares)),
            suite=self._sealing.suite,
            key=self._sealing.public,
            attested=self._attestor is not None,
            checkpoint=head,
        )

    async def challenge(self, request: ChallengeRequest) -> ChallengeResponse:
        """Where this process runs, for the caller's own nonce. Raises BrokerError broker.evidence_pending."""
        at = self._clock()
        proof = await self._attestor.proof() if self._attestor else None
        nonce = self._challenges.issue(request.client_nonce, at)
        return self._identity.answer(request, nonce=nonce, expires_s=self._challenges.life_s, at=at, proof=proof)

    def offer(self, offer: ShareOffer) -> UnsealStatus:
        """Take one share. Raises BrokerError root.share_wrong, root.wrong_key."""
        if self._set is None or self._complete.is_set():
            return self.status()
        try:
            clear = self._sealing.open(offer.sealed, share_info(self._sealing.public))
        except SealingFailed:
            raise BrokerError(BrokerCode.ROOT_SHARE, "not sealed to the key of this process") from None
        share = unpacked(clear)
        self._set.check(share)
        self._shares[share.index] = share
        logger.warning("root.share_taken", extra={"share": share.index, "given": len(self._shares)})
        if len(self._shares) >= self._set.threshold:
            brought, self._shares = tuple(self._shares.values()), {}
            self._root = RootKey(self._set.combine(brought))
            self._complete.set()
        return self.status()

    async def root_key(self, passphrase: bytes | None) -> RootKey | None:
        """The root key, as soon as it can be had; None where the settings name none. Raises BrokerError root.*"""
        if self._set is not None:
            await self._complete.wait()
            return self._root
        path = self._settings.root_key_file
        return None if path is None else load(path, passphrase=passphrase, tcti=self._settings.tcti)

    async def confirmed(self, audit: Audit) -> str:
        """Wait until somebody stands for the newest checkpoint; who did. Raises BrokerError checkpoint.rolled_back."""
        if self._settings.confirm == SKIPPED:
            return SKIPPED
        self._audit, self._word = audit, asyncio.get_running_loop().create_future()
        self._shown.set()
        logger.warning("checkpoint.unconfirmed", extra={"size": audit.head().size, "by": self._settings.confirm})
        if self._witness is None:
            return await self._word
        asking = asyncio.create_task(self._ask(self._witness, audit))
        try:
            done, _ = await asyncio.wait({asking, self._word}, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            asking.cancel()

    async def _ask(self, witness: Witness, audit: Audit) -> str:
        """Until the witness answers; meanwhile an operator may confirm as well."""
        while True:
            try:
                return await witness.confirm(audit, self._clock)
            except BrokerError as error:
                if error.code is BrokerCode.CHECKPOINT_ROLLED_BACK:
                    raise
                logger.error("witness.unreachable", extra={"why": error.detail})
            await asyncio.sleep(WITNESS_RETRY_S)

    def confirm(self, admin: Admin, confirmation: Confirmation) -> UnsealStatus:
        """An operator stands for the checkpoint. Raises BrokerError root.sealed, checkpoint.conflict, admin.role."""
        admin.require_everywhere(Act.CHECKPOINT_CONFIRM)
        if self._audit is None or self._word is None:
            raise BrokerError(BrokerCode.ROOT_SEALED, "there is no checkpoint to confirm before the root key is here")
        if confirmation.checkpoint != self._audit.head().note:
            raise BrokerError(BrokerCode.CHECKPOINT_CONFLICT, f"the newest has {self._audit.head().size} entries")
        if not self._word.done():
            logger.warning("checkpoint.confirmed", extra={"by": admin.jkt, "size": self._audit.head().size})
            self._word.set_result(f"{admin.role} {admin.jkt}")
        return self.status()

    def consistency(self, old: int) -> tuple[bytes, ...]:
        """Proof that the log of `old` entries begins this one. Raises BrokerError root.sealed, log.entry_unknown."""
        if self._audit is None:
            raise BrokerError(BrokerCode.ROOT_SEALED, "the log cannot be read yet")
        return self._audit.consistency(old, self._audit.head().size)

    def stop(self) -> None:
        if self._attestor is not None:
            self._attestor.stop()


def _needed(settings: Settings) -> ShareSet | None:
    path = settings.root_key_file
    return share_set(path) if path is not None and method_of(path) is Method.SHARES else None


def _passing_keys() -> Keyring:
    """Keys of a process that has none yet: they vouch for the quote, and end with the sealed state."""
    key = ec.generate_private_key(ec.SECP256R1())
    token = TokenKey(kid=thumbprint(key.public_key()), private=key, from_s=0)
    identity = ec.generate_private_key(ec.SECP256R1())
    return Keyring(log=Ed25519PrivateKey.generate(), identity=identity, tokens=(token,), results=(token,))
