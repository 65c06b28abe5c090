"""Sealed mail: sender and receiver each refuse, alone, whatever the router or another agent could try."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import AttestationError
from attestation.evidence import Binding, Role
from attestation.quote import Quote
from attestation.verdict import Verdict, sign_admission
from attestation.verifier import verify_quote
from broker.wire.bodies import peer_audience
from broker.wire.envelope import Envelope, Header
from broker.wire.errors import WireCode, WireError
from broker.wire.log import Receipt
from broker.wire.mailbox import Delivery, MailboxInfo, MailboxKey
from enclave.clock import BrokerTime
from enclave.errors import Code, EnclaveError
from enclave.keys import AgentKeys
from enclave.mailbox import EPOCH_S, MAX_PLAINTEXT, Inbox, Outbox
from enclave.session import Admission, Broker
from simulator.machine import Machine

MACHINE = Machine.create(seed="mailbox")
NOW = MACHINE.clock.now()
NOW_S = int(NOW.timestamp())
ISSUER = "http://127.0.0.1:1"


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Router:
    """A broker's keys in the hands of a test: what an honest, or a malicious, router could sign."""

    def __init__(self) -> None:
        self.identity = ec.generate_private_key(ec.SECP256R1())
        self.token = ec.generate_private_key(ec.SECP256R1())
        self.broker = Broker(
            broker_id=bytes(32),
            issuer=ISSUER,
            log_key=bytes(32),
            identity=self.identity.public_key(),
            token_keys={"one": self.token.public_key()},
        )

    def verdict(self, keys: AgentKeys, tenant: str) -> Verdict:
        domain = MACHINE.launch("mail")
        binding = Binding(
            role=Role.AGENT,
            tenant=tenant,
            broker_id=bytes(32),
            nonce=os.urandom(32),
            identity_key=keys.identity_key,
            suite=keys.suite,
            sealing_key=keys.sealing_key,
            trust_file_digest=bytes(32),
        )
        quote = Quote.parse(domain.quote(binding.report_data))
        collateral = MACHINE.as_source().fetch(quote)
        return Verdict.of(verify_quote(quote, collateral, report_data=binding, roots=MACHINE.roots, at=NOW))

    def token_for(self, verdict: Verdict, audience: str = peer_audience(ISSUER)) -> str:
        return sign_admission(
            verdict,
            key=self.token,
            kid="one",
            issuer=ISSUER,
            audience=audience,
            at=NOW,
            ttl_s=300,
            policy_digest="00" * 32,
            jti="one",
        )

    def accept(self, envelope: Envelope, mailbox: str) -> Delivery:
        from broker.wire.jose import es256_sign

        at_ms = NOW_S * 1000
        signature = es256_sign(self.identity, Delivery.message(mailbox, envelope.digest, at_ms))
        return Delivery(envelope=envelope, lease="l", attempt=1, accepted_at_ms=at_ms, acceptance=signature)


@dataclass
class Party:
    keys: AgentKeys
    verdict: Verdict
    admission: Admission
    inbox: Inbox
    outbox: Outbox
    ticks: Ticks
    token: str
    key: MailboxKey

    def info(self) -> MailboxInfo:
        return MailboxInfo(key=self.key, owner_token=self.token, next_seq=1)


def party(router: Router, name: str, tenant: str = "lab") -> Party:
    keys, ticks = AgentKeys.generate(), Ticks()
    time = BrokerTime(ticks)
    time.learn(NOW_S)
    verdict = router.verdict(keys, tenant)
    admission = Admission(
        token="",
        verdict=verdict,
        subject=verdict.subject,
        issued_at_s=NOW_S,
        expires_at_s=NOW_S + 300,
        broker=router.broker,
        receipt=Receipt(index=0, entry=b"", proof=(), checkpoint=""),
    )
    inbox = Inbox(f"{tenant}/inbox/{name}", keys, time)
    key = inbox.new_epoch(verdict.subject)
    return Party(keys, verdict, admission, inbox, Outbox(keys, time), ticks, router.token_for(verdict), key)


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def alice(router: Router) -> Party:
    return party(router, "alice")


@pytest.fixture
def bob(router: Router) -> Party:
    return party(router, "bob")


def send(sender: Party, receiver: Party, plaintext: bytes = b"hello", **how: object) -> Envelope:
    return sender.outbox.seal(
        receiver.info(),
        mailbox=receiver.inbox.name,
        admission=sender.admission,
        kind="Greet",
        plaintext=plaintext,
        **how,  # type: ignore[arg-type]  # options of seal()
    )


def code_of(action: Callable[..., object], *arguments: object) -> str:
    try:
        action(*arguments)
    except (EnclaveError, WireError, AttestationError) as error:
        return str(error.code)
    return "ok"


def opened_with(router: Router, receiver: Party, envelope: Envelope, *senders: Party) -> str:
    """What the receiver says to an envelope that the router accepted and delivers with these senders' tokens."""
    tokens = {one.verdict.subject: one.token for one in senders}
    return code_of(receiver.inbox.open, router.accept(envelope, receiver.inbox.name), tokens, router.broker)


def test_what_one_seals_the_other_opens(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob, labels=frozenset({"secret"}))
    tokens = {alice.verdict.subject: alice.token}
    opened = bob.inbox.open(router.accept(envelope, bob.inbox.name), tokens, router.broker)
    assert (opened.plaintext, opened.header.labels, opened.sender.subject) == (
        b"hello",
        ("secret",),
        alice.verdict.subject,
    )


def test_nobody_else_can_open_it(router: Router, alice: Party, bob: Party) -> None:
    eve = party(router, "eve")
    eve.inbox.name = bob.inbox.name
    assert opened_with(router, eve, send(alice, bob), alice) == Code.ENVELOPE_INCARNATION


def test_lengths_are_hidden_in_buckets(alice: Party, bob: Party) -> None:
    assert len(send(alice, bob, b"").body) == len(send(alice, bob, bytes(252)).body)
    assert len(send(alice, bob, bytes(253)).body) > len(send(alice, bob, bytes(252)).body)
    send(alice, bob, bytes(MAX_PLAINTEXT)).to_bytes()
    assert code_of(lambda: send(alice, bob, bytes(MAX_PLAINTEXT + 1))) == Code.ENVELOPE_TOO_LARGE


# --- what a receiver refuses ---


def test_a_replayed_envelope_is_refused(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob)
    assert opened_with(router, bob, envelope, alice) == "ok"
    assert opened_with(router, bob, envelope, alice) == Code.ENVELOPE_IN_PROGRESS
    bob.inbox.done(Header.from_bytes(envelope.header))
    assert opened_with(router, bob, envelope, alice) == Code.ENVELOPE_REPLAYED


def test_an_envelope_for_another_mailbox_is_refused(router: Router, alice: Party, bob: Party) -> None:
    eve = party(router, "eve")
    assert opened_with(router, eve, send(alice, bob), alice) == Code.ENVELOPE_WRONG_MAILBOX


def test_a_retargeted_header_is_refused(router: Router, alice: Party, bob: Party) -> None:
    eve = party(router, "eve")
    envelope = send(alice, bob)
    header = replace(Header.from_bytes(envelope.header), mailbox=eve.inbox.name, mailbox_key=eve.key.thumbprint)
    assert opened_with(router, eve, replace(envelope, header=header.to_bytes()), alice) == WireCode.ENVELOPE_SIGNATURE


def test_a_body_under_another_header_is_refused_even_when_signed_again(
    router: Router, alice: Party, bob: Party
) -> None:
    """A thief of ciphertext may sign it as his own: it does not open, because the header is in the seal."""
    eve = party(router, "eve")
    stolen = send(alice, bob)
    header = replace(
        Header.from_bytes(stolen.header), sender=eve.verdict.subject, sender_jkt=eve.keys.jkt, seq=1
    ).to_bytes()
    envelope = eve.keys.sign_envelope(header=header, body=stolen.body)
    assert opened_with(router, bob, envelope, eve) == Code.ENVELOPE_BODY


@pytest.mark.parametrize("cut", [1, 16, 64, 1000])
def test_a_truncated_envelope_is_refused(router: Router, alice: Party, bob: Party, cut: int) -> None:
    envelope = send(alice, bob)
    assert code_of(Envelope.from_bytes, envelope.to_bytes()[:-cut]) == WireCode.ENVELOPE_MALFORMED
    shorter = replace(envelope, body=envelope.body[:-cut])
    assert opened_with(router, bob, shorter, alice) == WireCode.ENVELOPE_SIGNATURE


def test_a_truncated_body_that_its_sender_signed_does_not_open(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob)
    cut = alice.keys.sign_envelope(header=envelope.header, body=envelope.body[:-1])
    assert opened_with(router, bob, cut, alice) == Code.ENVELOPE_BODY


def test_a_forged_sender_is_refused(router: Router, alice: Party, bob: Party) -> None:
    """Eve signs with her own key and puts Alice's name on it; the router may bring either token, under either name."""
    eve = party(router, "eve")
    honest = send(alice, bob)
    forged = eve.keys.sign_envelope(header=honest.header, body=honest.body)
    assert opened_with(router, bob, forged, alice) == WireCode.ENVELOPE_SIGNATURE
    assert opened_with(router, bob, forged, eve) == Code.ENVELOPE_SENDER
    swapped = {alice.verdict.subject: eve.token}
    delivery = router.accept(forged, bob.inbox.name)
    assert code_of(bob.inbox.open, delivery, swapped, router.broker) == Code.ENVELOPE_SENDER


def test_a_token_that_is_not_the_brokers_or_not_for_peers_is_refused(router: Router, alice: Party, bob: Party) -> None:
    delivery = router.accept(send(alice, bob), bob.inbox.name)
    stranger = Router().token_for(alice.verdict)
    for token, code in (
        (stranger, "token.signature_invalid"),
        (router.token_for(alice.verdict, audience=ISSUER), "token.audience"),
    ):
        assert code_of(bob.inbox.open, delivery, {alice.verdict.subject: token}, router.broker) == code


def test_a_senders_admission_that_has_ended_is_refused(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob, ttl_s=3600)
    bob.ticks.now = 400.0
    assert opened_with(router, bob, envelope, alice) == "token.expired"


def test_an_expired_message_is_refused(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob, ttl_s=10)
    bob.ticks.now = 11.0
    assert opened_with(router, bob, envelope, alice) == Code.ENVELOPE_EXPIRED


def test_a_message_from_the_future_is_refused(router: Router, alice: Party, bob: Party) -> None:
    alice.ticks.now = 60.0
    assert opened_with(router, bob, send(alice, bob), alice) == Code.ENVELOPE_FUTURE


def test_an_acceptance_that_the_broker_did_not_sign_is_refused(router: Router, alice: Party, bob: Party) -> None:
    delivery = Router().accept(send(alice, bob), bob.inbox.name)
    tokens = {alice.verdict.subject: alice.token}
    assert code_of(bob.inbox.open, delivery, tokens, router.broker) == Code.ENVELOPE_ACCEPTANCE


def test_mail_from_before_a_restart_never_comes_back(router: Router, alice: Party, bob: Party) -> None:
    old = send(alice, bob)
    restarted = Inbox(bob.inbox.name, bob.keys, bob.inbox._time)
    restarted.new_epoch(bob.verdict.subject)
    bob.inbox = restarted
    assert opened_with(router, bob, old, alice) == Code.ENVELOPE_INCARNATION


def test_an_envelope_for_a_key_that_the_mailbox_never_had_is_refused(router: Router, alice: Party, bob: Party) -> None:
    header = replace(Header.from_bytes(send(alice, bob).header), mailbox_key=bytes(32)).to_bytes()
    assert opened_with(router, bob, alice.keys.sign_envelope(header=header, body=b""), alice) == Code.ENVELOPE_EPOCH


def test_an_old_mailbox_key_ends_with_its_time(router: Router, alice: Party, bob: Party) -> None:
    old = send(alice, bob, ttl_s=4 * 3600)
    assert not bob.inbox.key_due()
    bob.ticks.now = EPOCH_S / 2 + 10
    assert bob.inbox.key_due()
    assert bob.inbox.new_epoch(bob.verdict.subject).epoch == 2
    assert Header.from_bytes(old.header).expires_at_ms == bob.key.not_after_s * 1000
    bob.ticks.now = EPOCH_S + 10
    bob.inbox.new_epoch(bob.verdict.subject)
    assert bob.key.thumbprint not in bob.inbox._epochs


def test_another_tenants_mail_is_refused(router: Router, bob: Party) -> None:
    stranger = party(router, "mallory", tenant="other")
    assert code_of(lambda: send(stranger, bob)) == Code.ENVELOPE_TENANT
    header = replace(
        Header.from_bytes(send(party(router, "x"), bob).header),
        sender=stranger.verdict.subject,
        sender_jkt=stranger.keys.jkt,
        tenant="other",
    ).to_bytes()
    envelope = stranger.keys.sign_envelope(header=header, body=b"")
    assert opened_with(router, bob, envelope, stranger) == Code.ENVELOPE_TENANT


def test_a_peer_that_the_agents_own_rule_does_not_accept_is_refused(router: Router, alice: Party, bob: Party) -> None:
    envelope = send(alice, bob)
    bob.inbox._judge = lambda verdict: verdict.mr_td == "00" * 48
    assert opened_with(router, bob, envelope, alice) == Code.PEER_REFUSED
    alice.outbox._judge = lambda verdict: False
    assert code_of(lambda: send(alice, bob)) == Code.PEER_REFUSED


@pytest.mark.parametrize("part", ["header", "body", "signature"])
def test_no_bit_of_an_envelope_can_be_changed(router: Router, alice: Party, bob: Party, part: str) -> None:
    envelope = send(alice, bob)
    raw: bytes = getattr(envelope, part)
    for at in range(0, len(raw), max(1, len(raw) // 40)):
        flipped = bytes([*raw[:at], raw[at] ^ 1, *raw[at + 1 :]])
        changed = Envelope(
            **{name: getattr(envelope, name) for name in ("header", "body", "signature")} | {part: flipped}
        )
        assert opened_with(router, bob, changed, alice) != "ok"
    assert opened_with(router, bob, envelope, alice) == "ok"


# --- what a sender refuses ---


def substituted(bob: Party, key: MailboxKey, token: str) -> Callable[[Party], str]:
    found = MailboxInfo(key=key, owner_token=token, next_seq=1)
    return lambda sender: code_of(sender.outbox.verify_key, found, bob.inbox.name, sender.admission)


def test_a_substituted_mailbox_key_is_refused(router: Router, alice: Party, bob: Party) -> None:
    eve = party(router, "eve")
    in_bobs_name = Inbox(bob.inbox.name, eve.keys, eve.inbox._time).new_epoch(bob.verdict.subject)
    assert substituted(bob, in_bobs_name, bob.token)(alice) == WireCode.MAILBOX_KEY_SIGNATURE
    assert substituted(bob, in_bobs_name, eve.token)(alice) == Code.EPOCH_OWNER
    assert substituted(bob, replace(bob.key, key=eve.key.key), bob.token)(alice) == WireCode.MAILBOX_KEY_SIGNATURE


def test_a_key_of_another_of_the_owners_mailboxes_is_refused(router: Router, alice: Party, bob: Party) -> None:
    other = Inbox("lab/inbox/bob-too", bob.keys, bob.inbox._time).new_epoch(bob.verdict.subject)
    assert substituted(bob, other, bob.token)(alice) == WireCode.MAILBOX_KEY_SIGNATURE


def test_a_mailbox_key_past_its_end_is_refused(router: Router, alice: Party, bob: Party) -> None:
    later = party(router, "later")
    stale = replace(bob.key, not_after_s=bob.key.not_before_s + 1)
    assert substituted(bob, stale, bob.token)(later) == WireCode.MAILBOX_KEY_SIGNATURE


def test_an_owner_without_admission_is_refused(router: Router, alice: Party, bob: Party) -> None:
    forged = Router().token_for(bob.verdict)
    assert substituted(bob, bob.key, forged)(alice) == "token.signature_invalid"


def test_sequence_numbers_are_never_used_twice(alice: Party, bob: Party) -> None:
    numbers = [Header.from_bytes(send(alice, bob).header).seq for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]


def test_message_ids_are_uuids_of_version_7_in_time_order(alice: Party, bob: Party) -> None:
    import uuid

    first = uuid.UUID(bytes=Header.from_bytes(send(alice, bob).header).msg_id)
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert datetime.fromtimestamp((first.int >> 80) / 1000, UTC).year == NOW.year
