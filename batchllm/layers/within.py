"""A bound on how many requests of some are past this point at once, beside the gate's own window.

A stage that may have fewer calls in flight than its run has one, and so has a run that asks several models.
It counts and delays; it judges nothing.
"""

from __future__ import annotations

import anyio

from batchllm.model import Reply, Request, Trail
from batchllm.ports import Provider


class Within:
    """A Provider behind a window."""

    def __init__(self, inner: Provider, window: anyio.CapacityLimiter) -> None:
        self._inner = inner
        self._window = window

    async def complete(self, request: Request, trail: Trail) -> Reply:
        """Wait for a place, then ask."""
        place = object()  # one task may hold several
        await self._window.acquire_on_behalf_of(place)
        try:
            return await self._inner.complete(request, trail)
        finally:
            self._window.release_on_behalf_of(place)
