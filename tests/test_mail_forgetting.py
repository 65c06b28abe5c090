"""What a receiver must not forget, and what it says when it cannot remember: nothing is handled twice because memory
was short, and nothing that was never handled is called done."""

import os
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey
from broker.wire.jose import b64u
from enclave import mailbox as limits
from enclave import replay
from enclave.checkpoint import Memory, decode, encode
from enclave.errors import Code
from enclave.mailbox import Inbox
from enclave.replay import SIZE, Crowd, Numbers, Window
from enclave.retired import MAX_RETIRED
from tests.test_enclave_mailbox import Router, opened_with, party, send
from tests.test_mail_attacks import KEY, DurableBox, code_of, kept


def crowd(inbox: Inbox, key: bytes, count: int) -> None:
    """So many further senders were heard under that key."""
    for _ in range(count):
        inbox._epochs[key].windows[b64u(os.urandom(32))] = Window.of(1, {1})


def thumbprints(inbox: Inbox) -> list[bytes]:
    return list(inbox._epochs)


def test_a_new_epoch_makes_nobody_forget_who_was_heard_under_the_one_before() -> None:
    box = DurableBox()
    letter = box.letter()
    assert box.code(letter) == "ok"
    box.inbox.take(kept(box.old, box.new))
    for key in thumbprints(box.inbox):
        crowd(box.inbox, key, 800)
    box.inbox.take(kept(box.old, box.new, SealingKey.generate(MLKEM768_X25519)))
    assert box.code(letter) == Code.ENVELOPE_REPLAYED


def test_a_key_under_which_too_much_was_heard_to_be_remembered_opens_nothing_any_more() -> None:
    box = DurableBox()
    letter = box.letter()
    assert box.code(letter) == "ok"
    crowd(box.inbox, thumbprints(box.inbox)[0], 2 * MAX_RETIRED)
    box.inbox.take(kept(box.new))
    box.inbox.take(kept(box.old, box.new))
    assert box.code(letter) == Code.ENVELOPE_EPOCH
    second = box.another()
    second.take(kept(box.old, box.new))
    second.restore(decode(encode(Memory(windows=box.inbox.windows()))).windows)
    assert box.code(letter, second) == Code.ENVELOPE_EPOCH


def test_a_sender_for_whom_there_is_no_room_is_refused_and_not_called_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SENDERS", 2)
    router = Router()
    bob = party(router, "bob")
    several = [party(router, name) for name in ("one", "two", "three")]
    assert [opened_with(router, bob, send(one, bob), one) for one in several] == ["ok", "ok", Code.ENVELOPE_SENDERS]


def test_who_has_many_identities_on_few_machines_shuts_a_mailbox_to_his_own_alone() -> None:
    """Of 64 that are remembered the last 8 are for senders of platforms that have none, or few."""
    crowd, heard = Crowd(), dict[str, None]()

    def speaks(jkt: str, platform: str) -> bool:
        found = crowd.hears(jkt, platform, [heard], 64)
        heard.update({jkt: None} if found else {})
        return found

    assert sum(speaks(f"noisy {number}", "one machine") for number in range(100)) == 56
    assert [speaks(f"honest {number}", f"machine {number}") for number in range(9)] == [True] * 8 + [False]
    assert not speaks("another", "yet another")
    heard.clear()  # the key has ended
    assert speaks("noisy again", "one machine")


def test_what_is_known_of_a_crowd_is_bounded() -> None:
    crowd = Crowd()
    for number in range(100):
        assert crowd.hears(str(number), "a machine", [{}], 8)
    assert len(crowd._platforms) <= 16


def test_what_was_given_back_comes_again_however_much_came_after_it() -> None:
    window = Window()
    window.begin(1, b"one")
    for seq in range(2, 3 * SIZE):
        window.begin(seq, b"%d" % seq)
        window.finish(seq)
    window.abandon(1)
    window.check(1, b"one")
    window.begin(1, b"one")
    window.finish(1)
    assert code_of(partial(window.check, 1, b"one")) == Code.ENVELOPE_REPLAYED


def test_a_number_of_which_nobody_knows_whether_it_was_handled_is_not_called_handled() -> None:
    window = Window.of(5000, set(range(5000 - SIZE, 5001)))
    assert code_of(partial(window.check, 4990, b"a")) == Code.ENVELOPE_REPLAYED
    assert code_of(partial(window.check, 3, b"b")) == Code.ENVELOPE_FORGOTTEN


def test_a_checkpoint_forgets_what_was_left_out_before_it_does_without_a_sender() -> None:
    """Numbers that a sender left out cost room; who leaves out many must not keep every checkpoint from being made."""
    windows = {
        (KEY, b64u(number.to_bytes(32, "big"))): Window.of(9, {1, 3, 5, 7, 9}) for number in range(limits.MAX_SENDERS)
    }
    restored = decode(encode(Memory(windows=windows))).windows
    assert len(restored) == limits.MAX_SENDERS
    for window in restored.values():
        assert code_of(partial(window.check, 9, b"x")) == Code.ENVELOPE_REPLAYED


def test_a_durable_mailbox_hears_no_more_senders_than_a_checkpoint_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SENDERS", 3)
    box = DurableBox()
    box.inbox.take(kept(box.new, box.old))
    one, two = thumbprints(box.inbox)
    crowd(box.inbox, one, 2)
    crowd(box.inbox, two, 1)
    assert box.code(box.letter()) == Code.ENVELOPE_SENDERS


def test_a_key_that_has_ended_is_forgotten_with_what_came_under_it() -> None:
    box = DurableBox()
    assert box.code(box.letter()) == "ok"
    box.owner.ticks.now += 8000
    box.inbox.take(kept(box.new))
    assert box.inbox.windows() == {}


@given(st.lists(st.sampled_from("abcdefg"), max_size=60))
def test_no_number_is_used_twice_however_many_mailboxes_are_written_to(written: list[str]) -> None:
    numbers, used = Numbers(), dict[str, list[int]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "MAX_COUNTED", 3)
        for mailbox in written:
            used.setdefault(mailbox, []).append(numbers.next(mailbox))
    assert all(found == sorted(set(found)) for found in used.values())
    assert len(numbers._last) <= 3


def test_whoever_is_remembered_sees_no_gap() -> None:
    numbers = Numbers()
    assert [numbers.next("a"), numbers.next("b"), numbers.next("a"), numbers.next("b")] == [1, 1, 2, 2]
