"""The log as it travels: proofs, checkpoints and receipts, and none that is not one."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.errors import WireCode
from broker.wire.log import (
    Checkpoint,
    Receipt,
    key_hash,
    leaf_hash,
    parse_verifier_key,
    verifier_key,
    verify_consistency,
    verify_inclusion,
)
from tests.wire_world import LOG, LOG_RAW, outcome, path, receipt, tree_root


def subproof(old: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [tree_root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return [*subproof(old, leaves[:split], whole), tree_root(leaves[split:])]
    return [*subproof(old - split, leaves[split:], False), tree_root(leaves[:split])]


@pytest.mark.parametrize("size", range(1, 18))
def test_every_inclusion_proof_leads_to_the_root_and_no_other_leaf_does(size: int) -> None:
    leaves = [bytes([i]) for i in range(size)]
    root = tree_root(leaves)
    for index in range(size):
        proof = path(index, leaves)
        verify_inclusion(leaf_hash(leaves[index]), index, size, proof, root)
        wrong = WireCode.LOG_PROOF
        assert outcome(verify_inclusion, leaf_hash(b"no"), index, size, proof, root) == wrong
        assert outcome(verify_inclusion, leaf_hash(leaves[index]), index, size, [*proof, root], root) == wrong
        assert outcome(verify_inclusion, leaf_hash(leaves[index]), index, size + 1, proof, b"") == wrong


@pytest.mark.parametrize("size", range(18))
def test_t22_every_older_tree_is_the_beginning_of_the_newer_and_a_fork_is_not(size: int) -> None:
    leaves = [bytes([i]) for i in range(size)]
    root = tree_root(leaves)
    for old in range(size + 1):
        proof = subproof(old, leaves, True) if old else []
        verify_consistency(old, tree_root(leaves[:old]), size, root, proof)
        forked = tree_root([b"other", *leaves[1:old]])
        if old:
            assert outcome(verify_consistency, old, forked, size, root, proof) == WireCode.LOG_PROOF


def test_a_checkpoint_is_a_note_that_other_tools_can_read() -> None:
    note = Checkpoint.sign("broker.example/log", 7, bytes(32), LOG).note
    body, _, signature = note.partition("\n\n")
    assert body == f"broker.example/log\n7\n{base64.b64encode(bytes(32)).decode()}"
    blob = base64.b64decode(signature.split(" ")[2])
    assert signature.startswith("\u2014 broker.example/log ")
    assert blob[:4] == key_hash("broker.example/log", LOG_RAW)
    LOG.public_key().verify(blob[4:], (body + "\n").encode())
    assert parse_verifier_key(verifier_key("broker.example/log", LOG_RAW)) == ("broker.example/log", LOG_RAW)


def test_a_changed_checkpoint_is_refused() -> None:
    note = Checkpoint.sign("broker.example/log", 7, bytes(32), LOG).note
    assert Checkpoint.open(note, LOG_RAW).size == 7
    assert outcome(lambda: Checkpoint.open(note.replace("\n7\n", "\n8\n"), LOG_RAW)) == WireCode.LOG_SIGNATURE
    assert outcome(lambda: Checkpoint.open(note, b"k" * 32)) == WireCode.LOG_SIGNATURE
    assert outcome(lambda: Checkpoint.open(note.replace("\n7\n", "\n07\n"), LOG_RAW)) == WireCode.LOG_MALFORMED
    assert outcome(lambda: Checkpoint.open("", LOG_RAW)) == WireCode.LOG_MALFORMED


@given(note=st.text(max_size=120))
def test_any_text_is_a_checkpoint_or_an_error_with_a_code(note: str) -> None:
    assert outcome(lambda: Checkpoint.open(note, LOG_RAW)) in (WireCode.LOG_MALFORMED, WireCode.LOG_SIGNATURE)


def test_a_receipt_proves_its_entry_and_no_other() -> None:
    sent = Receipt.from_dict(json.loads(json.dumps(receipt().to_dict())))
    assert sent.verify(LOG_RAW).size == 3
    forged = Receipt(index=1, entry=b"B", proof=sent.proof, checkpoint=sent.checkpoint)
    assert outcome(lambda: forged.verify(LOG_RAW)) == WireCode.LOG_PROOF
