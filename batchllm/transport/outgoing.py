"""Requests that leave together: those of one turn of the loop are written in one go, at most `BURST` at once.

A write may have to wake whoever receives it, which costs more than the write; behind the first of a burst the
peer, or the network card, is awake. It holds connections for a turn and knows nothing of what they write.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

BURST = 32
"""Requests that are held at most: with more, nothing was gained, and their bytes would fill memory."""


class Holder(Protocol):
    """Something that holds what it has to write."""

    def write(self) -> None:
        """Write it now, where it is still to be written."""
        ...


class Outgoing:
    """Those that write at the loop's next turn, or when there are `BURST` of them."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: list[Holder] = []

    def add(self, holder: Holder) -> None:
        """Have it write soon, in the order in which it came."""
        holders = self._holders
        if not holders:
            asyncio.get_running_loop().call_soon(self._write)
        holders.append(holder)
        if len(holders) >= BURST:
            self._write()

    def _write(self) -> None:
        holders, self._holders = self._holders, []
        for holder in holders:
            holder.write()
