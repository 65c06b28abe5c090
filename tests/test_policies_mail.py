"""What a bundle says about mailboxes beyond who may use them."""

import pytest

from policies.bundle import MAIN, Bundle, bundle_of
from policies.codes import BundleCode, PolicyCode
from policies.diff import diff
from policies.engine import Judgement, judge
from policies.model import Send
from tests.policy_world import NOW, files, good_facts, mistakes

RULES = b"""
[mail]
fallen_sender = "drop"

[[mail.mailbox]]
path = "dev/alerts"
fallen_sender = "deliver"

[[mail.mailbox]]
path = "dev/alerts/quiet"
takeover = "permitted"
"""


def with_mail(text: bytes) -> dict[str, bytes]:
    made = dict(files("dev"))
    made[MAIN] += text
    return made


def test_without_a_word_mail_is_held_and_a_mailbox_stays_with_its_owner() -> None:
    rule = bundle_of(files("dev")).settings.mail.of("dev/anything")
    assert (rule.fallen_sender, rule.takeover) == ("hold", "owner_gone")


@pytest.mark.parametrize(
    ("mailbox", "words"),
    [
        ("dev/other", ("drop", "owner_gone")),
        ("dev/alerts", ("deliver", "owner_gone")),
        ("dev/alerts/loud", ("deliver", "owner_gone")),
        ("dev/alerts/quiet", ("drop", "permitted")),
        ("dev/alertsx", ("drop", "owner_gone")),
    ],
)
def test_the_longest_path_decides_and_leaves_the_rest_to_the_table_around_it(
    mailbox: str, words: tuple[str, str]
) -> None:
    rule = bundle_of(with_mail(RULES)).settings.mail.of(mailbox)
    assert (rule.fallen_sender, rule.takeover) == words


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b'"drop"', b'"dropp"', BundleCode.VALUE),
        (b'"permitted"', b'"always"', BundleCode.VALUE),
        (b"dev/alerts/quiet", b"other/alerts", BundleCode.VALUE),
        (b"dev/alerts/quiet", b"dev/alerts", BundleCode.DUPLICATE),
        (b"takeover", b"take_over", BundleCode.KEY_UNKNOWN),
        (b'path = "dev/alerts/quiet"\n', b"", BundleCode.KEY_MISSING),
    ],
)
def test_a_mistake_in_it_is_refused(old: bytes, new: bytes, code: BundleCode) -> None:
    assert old in RULES
    assert code in {item.code for item in mistakes(with_mail(RULES.replace(old, new)))}


def test_a_change_of_it_is_told_with_its_line() -> None:
    old, new = bundle_of(files("dev")), bundle_of(with_mail(RULES))
    changes = {change.what: (change.effect, change.old, change.new) for change in diff(old, new)}
    assert changes["mail.fallen_sender"] == ("changed", "hold", "drop")
    assert changes["mail.dev/alerts.fallen_sender"] == ("changed", "hold", "deliver")
    assert changes["mail.dev/alerts/quiet.takeover"] == ("wider", "owner_gone", "permitted")


# ── labels ─────────────────────────────────────────────────────────────────────────────────────────────────────────

LISTED = b"""
[mail]
labels = ["pii", "restricted"]

[[mail.mailbox]]
path = "dev/mail/open"
labels = []
"""


def asked(mailbox: str, *labels: str, text: bytes = LISTED) -> Judgement:
    made = bundle_of(with_mail(text))
    return judge(made, good_facts("dev"), Send(mailbox, "note", frozenset(labels)), context=NOW)


@pytest.mark.parametrize(
    ("mailbox", "labels", "strange"),
    [
        ("dev/mail/b", ("pii",), ""),
        ("dev/mail/b", ("pii", "restricted"), ""),
        ("dev/mail/b", ("pii", "junk-1", "junk-2"), "junk-1, junk-2"),
        ("dev/mail/open/b", ("pii",), "pii"),
        ("dev/mail/open/b", (), ""),
    ],
)
def test_only_labels_that_the_bundle_lists_are_taken(mailbox: str, labels: tuple[str, ...], strange: str) -> None:
    found = asked(mailbox, *labels)
    told = [reason.found for reason in found.reasons if reason.code is PolicyCode.LABEL]
    assert told == ([strange] if strange else [])
    assert found.permitted is not bool(strange)


def test_where_none_are_listed_any_label_is_taken() -> None:
    assert asked("dev/mail/b", "anything", text=b"").permitted


MANY = b"[%s]" % b", ".join(b'"l%d"' % number for number in range(25))


@pytest.mark.parametrize("labels", [b'["a b"]', b'["pii", "pii"]', b"[1]", MANY])
def test_a_mistake_in_labels_is_refused(labels: bytes) -> None:
    assert mistakes(with_mail(b"\n[mail]\nlabels = " + labels))


def test_a_change_of_labels_is_told() -> None:
    none, ab, bc = (
        bundle_of(with_mail(text)) for text in (b"", b'[mail]\nlabels = ["a", "b"]', b'[mail]\nlabels = ["b", "c"]')
    )

    def told(old: Bundle, new: Bundle) -> list[str]:
        return [change.effect for change in diff(old, new) if change.what == "mail.labels"]

    assert (told(none, ab), told(ab, bc), told(bc, none)) == (["narrower"], ["wider", "narrower"], ["wider"])
