"""What a bundle says of mailboxes beyond who may use them: mail of fallen senders, who may take one over, and labels.

Decides the vocabulary and the defaults: mail of a sender who fell is held, and a mailbox goes to another agent only
when its owner is gone. Labels are a sender's words, and whoever reads a message is held to them from then on; where the
bundle lists labels, no others may be put on what goes there. The longest path that a mailbox or topic lies under
decides, all of its keys together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from attestation.names import LABEL, SEGMENT
from policies.codes import BundleCode
from policies.tables import Table

FallenSender = Literal["deliver", "hold", "drop"]
Takeover = Literal["owner_gone", "permitted"]
FALLEN_SENDER: Final[tuple[FallenSender, ...]] = ("hold", "deliver", "drop")
TAKEOVER: Final[tuple[Takeover, ...]] = ("owner_gone", "permitted")
MAX_LISTED: Final = 24  # labels: a header holds 32, and what is released needs some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class MailRule:
    """How mailboxes under a path are kept.

    fallen_sender  what becomes of waiting mail whose sender was quarantined or revoked: hold it until he passes again
                   or it expires, deliver it with his verdict of that time, or drop it with a tombstone
    takeover       when another agent that may receive there becomes the owner: when the owner is gone, or at once
    labels         what may be put on messages to mailboxes and topics there; None: anything
    """

    path: str = ""
    fallen_sender: FallenSender = "hold"
    takeover: Takeover = "owner_gone"
    labels: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MailRules:
    """The rule for all mailboxes, and those for some of them."""

    default: MailRule = MailRule()
    rules: tuple[MailRule, ...] = ()

    def of(self, mailbox: str) -> MailRule:
        """The rule for one mailbox."""
        found = [rule for rule in self.rules if mailbox == rule.path or mailbox.startswith(f"{rule.path}/")]
        return max(found, key=lambda rule: len(rule.path), default=self.default)


def read_mail_rules(table: Table, tenant: str) -> MailRules:
    """`[mail]` and its `[[mail.mailbox]]`. What a mailbox's table leaves out is as `[mail]` says."""
    default = _rule(table, "", MailRule())
    rules: list[MailRule] = []
    for item in table.tables("mailbox"):
        path = item.text("path", required=True)
        segments = path.split("/")
        if path and (segments[0] != tenant or not all(SEGMENT.fullmatch(segment) for segment in segments)):
            hint = f'write path = "{tenant}/…", as mailboxes are named'
            item.complain("path", BundleCode.VALUE, f"{item.name('path')} = {path!r} is no path of this tenant", hint)
        if path and any(rule.path == path for rule in rules):
            item.complain("path", BundleCode.DUPLICATE, f"mailbox path {path!r} stands twice", "keep one")
        rules.append(_rule(item, path, default))
        item.done()
    table.done()
    return MailRules(default=default, rules=tuple(rules))


def _rule(table: Table, path: str, default: MailRule) -> MailRule:
    fallen = table.text("fallen_sender", one_of=FALLEN_SENDER)
    takeover = table.text("takeover", one_of=TAKEOVER)
    labels = _labels(table)
    return MailRule(
        path=path,
        fallen_sender=next((word for word in FALLEN_SENDER if word == fallen), default.fallen_sender),
        takeover=next((word for word in TAKEOVER if word == takeover), default.takeover),
        labels=labels if "labels" in table.data else default.labels,
    )


def _labels(table: Table) -> frozenset[str]:
    labels = table.texts("labels")
    for label in labels:
        if not LABEL.fullmatch(label):
            hint = "letters, digits, '_', '.', ':', '-'; up to 64; no leading punctuation"
            table.complain("labels", BundleCode.VALUE, f"{table.name('labels')} holds {label[:80]!r}", hint)
    if len(labels) > MAX_LISTED:
        detail = f"{table.name('labels')} holds {len(labels)}, at most {MAX_LISTED} fit beside those of secrets"
        table.complain("labels", BundleCode.VALUE, detail, "leave some out, or list them for the paths that need them")
    return frozenset(labels)
