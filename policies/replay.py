"""Recorded evidence under another bundle or at another time: which decisions change, and why.

Decides nothing new: each recording is verified with its own collateral at the time asked for and judged by the same
engine as live evidence. The same bundle and time always give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.errors import AttestationError
from policies.bundle import Bundle
from policies.engine import judge
from policies.errors import Reason
from policies.model import Action, Context, Facts
from policies.recording import Recording, facts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decision on one recording. `codes` holds the verifier's code where the evidence itself was refused."""

    permitted: bool
    codes: tuple[str, ...] = ()
    detail: str = ""
    reasons: tuple[Reason, ...] = ()
    rules: tuple[str, ...] = ()
    not_after: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "decision": "permit" if self.permitted else "refuse",
            "codes": list(self.codes),
            "detail": self.detail,
            "rules": list(self.rules),
            "not_after": self.not_after.isoformat() if self.not_after else None,
            "reasons": [reason.to_dict() for reason in self.reasons],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One recording and action under both bundles."""

    name: str
    action: str
    at: datetime
    old: Answer
    new: Answer

    @property
    def changed(self) -> bool:
        return (self.old.permitted, self.old.codes) != (self.new.permitted, self.new.codes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "action": self.action,
            "at": self.at.isoformat(),
            "changed": self.changed,
            "old": self.old.to_dict(),
            "new": self.new.to_dict(),
        }


def answer(bundle: Bundle, recording: Recording, action: Action, *, at: datetime, via: str = "cloister") -> Answer:
    """Verify and judge one recording at a moment. Never raises for evidence: a refusal by the verifier is an answer."""
    try:
        facts = facts_of(recording, at=at, allow=bundle.allowances(at))
    except AttestationError as error:
        return Answer(permitted=False, codes=(error.code.value,), detail=error.detail)
    return judged(bundle, facts, action, at, via)


def judged(bundle: Bundle, facts: Facts, action: Action, at: datetime, via: str) -> Answer:
    """The engine's judgement of facts as an Answer."""
    result = judge(bundle, facts, action, context=Context(at=at, via=via))
    return Answer(
        permitted=result.permitted,
        codes=tuple(dict.fromkeys(reason.code.value for reason in result.reasons)),
        reasons=result.reasons,
        rules=result.rules,
        not_after=result.not_after if result.permitted else None,
    )


def replay(
    old: Bundle,
    new: Bundle,
    recordings: Iterable[Recording],
    actions: Iterable[tuple[str, Action]],
    *,
    at: datetime | None = None,
    via: str = "cloister",
) -> Iterator[Replayed]:
    """Every recording and action under both bundles, at `at` or at the time of its recording.

    Evidence is verified once where both bundles grant the same allowances.
    """
    wanted = list(actions)
    for recording in recordings:
        moment = at or recording.at
        verified = {allow: _facts(recording, moment, allow) for allow in {b.allowances(moment) for b in (old, new)}}
        for name, action in wanted:
            pair = []
            for bundle in (old, new):
                found = verified[bundle.allowances(moment)]
                pair.append(found if isinstance(found, Answer) else judged(bundle, found, action, moment, via))
            yield Replayed(name=recording.name, action=name, at=moment, old=pair[0], new=pair[1])


def _facts(recording: Recording, at: datetime, allow: frozenset[Any]) -> Facts | Answer:
    try:
        return facts_of(recording, at=at, allow=allow)
    except AttestationError as error:
        return Answer(permitted=False, codes=(error.code.value,), detail=error.detail)
