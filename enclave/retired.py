"""What was received under mailbox keys that are not at hand now, in case one of them is handed out again.

Decides how much of that is remembered, and what follows where it is too much: the key then opens nothing any more,
since nobody knows what came under it. In checkpoints such a key has a window of nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, final

from broker.wire.envelope import MAX_LIFE_MS
from broker.wire.jose import b64u
from enclave.clock import BrokerTime
from enclave.replay import Window

MAX_RETIRED: Final = 1024  # windows
NOBODY: Final = b64u(bytes(32))


@final
class Retired:
    """Windows by key and sender, for as long as anything that came under the key could still be in time."""

    def __init__(self, time: BrokerTime) -> None:
        self._time = time
        self._keys: dict[bytes, tuple[float, dict[str, Window]]] = {}  # until when, and the windows

    def put(self, key: bytes, windows: dict[str, Window]) -> None:
        now_s = self._time.now_s()
        self._keys = {name: old for name, old in self._keys.items() if old[0] > now_s}
        if windows:
            self._keys[key] = (now_s + MAX_LIFE_MS / 1000, windows)
        held = sum(len(old) for _, old in self._keys.values())
        for name, (until_s, old) in self._keys.items():
            if held > MAX_RETIRED and NOBODY not in old:
                held -= len(old) - 1
                self._keys[name] = until_s, {NOBODY: Window()}

    def take(self, key: bytes) -> dict[str, Window] | None:
        """The key is at hand again: what came under it. None where that is not remembered, and it must not be used."""
        _, windows = self._keys.get(key, (0.0, {}))
        if NOBODY in windows:
            return None
        self._keys.pop(key, None)
        return windows

    def items(self) -> Iterator[tuple[bytes, Mapping[str, Window]]]:
        return ((key, windows) for key, (_, windows) in self._keys.items())
