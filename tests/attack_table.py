"""The table of attacks, and small ways to write one down.

An attack changes one thing in a good world (`pki_factory.World`) and re-signs what an attacker with that world's keys
could re-sign, so that only the check in question can stop it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.pki_factory import World

Change = Callable[[World], None]
Base = tuple[str, int, int]
Fields = dict[str, object]
TDX4, TDX5, TDX5EX, SGX3 = ("tdx", 4, 2), ("tdx", 5, 3), ("tdx", 5, 4), ("sgx", 3, 1)


@dataclass(frozen=True)
class Attack:
    """`code` is what the refusal must be called; "ok" where the change must be harmless."""

    name: str
    change: Change
    code: str
    base: Base = TDX4

    def world(self) -> World:
        world = World(*self.base)
        self.change(world)
        return world


TABLE: dict[str, Attack] = {}


def put(code: str, title: str, change: Change, base: Base = TDX4) -> None:
    assert title not in TABLE, f"two attacks called {title}"
    TABLE[title] = Attack(title, change, code, base)


def attack(code: str, *bases: Base) -> Callable[[Change], Change]:
    """A function's name says what it does to the world."""

    def add(change: Change) -> Change:
        for base in bases or (TDX4,):
            suffix = f" ({base[0]} v{base[1]}, body {base[2]})" if len(bases) > 1 else ""
            put(code, change.__name__.replace("_", " ") + suffix, change, base)
        return change

    return add


def bits(*which: int) -> bytes:
    """TD ATTRIBUTES with these bits set."""
    return sum(1 << bit for bit in which).to_bytes(8, "little")


def sets(*path: str, **fields: object) -> Change:
    """Set attributes of the world, or of a part of it: sets("certs", "leaf", serial=5)."""

    def change(world: World) -> None:
        part: object = world
        for step in path:
            part = part[step] if isinstance(part, dict) else getattr(part, step)
        for field, value in fields.items():
            setattr(part, field, value)

    return change


def updates(part: str, **fields: object) -> Change:
    """Set members of one of the world's dicts: updates("td", xfam=…)."""
    return lambda world: getattr(world, part).update(fields)
