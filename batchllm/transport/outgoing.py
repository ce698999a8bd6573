"""Requests that leave together: those of one turn of the loop are written in one go, so far as that is soon.

A write may have to wake whoever receives it, which costs more than the write; behind the first of a burst the
peer, or the network card, is awake. It holds connections for a turn and knows nothing of what they write.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

BURST = 32
"""Requests that are held at most: with more, nothing was gained, and their bytes would fill memory."""
LONGEST = 0.005
"""Seconds after which the next one to come sends off those that are held: in a turn in which each record
takes long, the service would stand idle."""


class Holder(Protocol):
    """Something that holds what it has to write."""

    def write(self) -> None:
        """Write it now, where it is still to be written."""
        ...


class Outgoing:
    """Those that write at the loop's next turn, or when there are `BURST` of them, or after `LONGEST`."""

    __slots__ = ("_holders", "_since")

    def __init__(self) -> None:
        self._holders: list[Holder] = []
        self._since = 0.0

    def add(self, holder: Holder, now: float) -> None:
        """Have it write soon, in the order in which it came; `now` is monotonic, seconds."""
        holders = self._holders
        if not holders:
            self._since = now
            asyncio.get_running_loop().call_soon(self._write)
        holders.append(holder)
        if len(holders) >= BURST or now - self._since > LONGEST:
            self._write()

    def _write(self) -> None:
        holders, self._holders = self._holders, []
        for holder in holders:
            holder.write()
