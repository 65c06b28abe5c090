"""The Merkle tree of RFC 6962 over stored hashes: grow it, take its root, prove inclusion and consistency.

A node (level, index) is the hash of the complete subtree over leaves index·2^level to (index+1)·2^level − 1; nodes are
written once and never change. Pure but for the two functions it is given; what an entry says is decided in audit.py.
"""

from collections.abc import Callable

from broker.wire.log import EMPTY_ROOT, leaf_hash, node_hash

GetNode = Callable[[int, int], bytes]  # (level, index) → hash of a complete subtree
PutNode = Callable[[int, int, bytes], None]
Spans = dict[tuple[int, int], bytes]  # (start, end) → hash over these leaves, of subtrees that are not complete


def grow(entry: bytes, index: int, get: GetNode, put: PutNode) -> None:
    """Add the entry as leaf `index`, the tree's size until now, and every subtree that it completes."""
    level, found = 0, leaf_hash(entry)
    put(level, index, found)
    while index & 1:
        found = node_hash(get(level, index - 1), found)
        level, index = level + 1, index >> 1
        put(level, index, found)


def span(start: int, end: int, get: GetNode, known: Spans | None = None) -> bytes:
    """The hash over leaves start to end − 1; `start` must be where RFC 6962 would split. What is `known` already is not
    computed again, and what was computed is known from then on.
    """
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return get(level, start >> level)
    found = None if known is None else known.get((start, end))
    if found is None:
        split = start + (1 << (size.bit_length() - 1))
        found = node_hash(span(start, split, get, known), span(split, end, get, known))
        if known is not None:
            known[start, end] = found
    return found


def root(size: int, get: GetNode) -> bytes:
    """The root hash of the first `size` leaves."""
    return span(0, size, get) if size else EMPTY_ROOT


def inclusion(index: int, size: int, get: GetNode, known: Spans | None = None) -> tuple[bytes, ...]:
    """RFC 6962 §2.1.1, from the leaf upwards. The index must be below the size."""
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        if index < split:
            path.append(span(split, end, get, known))
            end = split
        else:
            path.append(span(start, split, get, known))
            start = split
    return tuple(reversed(path))


def consistency(old: int, size: int, get: GetNode) -> tuple[bytes, ...]:
    """RFC 6962 §2.1.2: that the first `old` leaves are the beginning of the first `size`; 0 < old ≤ size."""
    path: list[bytes] = []
    start, end, whole = 0, size, True
    while old != end:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        if old <= split:
            path.append(span(split, end, get))
            end = split
        else:
            path.append(span(start, split, get))
            start, whole = split, False
    if not whole:
        path.append(span(start, end, get))
    return tuple(reversed(path))
