"""Requests of one kind, abreast: whoever is at the same stage takes it together.

Decides nothing about requests. A handshake passes through more code and tables than a processor's nearest caches hold,
so that each stage of each handshake would have to fetch its own again: that is two fifths of its time. Between two
stages it stands back for those who have come to the first one meanwhile, and all of them find the second at hand.
Whoever is alone loses a turn of the event loop, two microseconds.

What was read before is to be looked at again behind it where that matters, as behind every wait: the generation is, in
the transaction that admits or releases.
"""

import types
from collections.abc import Generator


@types.coroutine
def abreast() -> Generator[None, None, None]:
    """The others' turn, then this one's again."""
    yield
