"""THE MAIN PATH: reader → engine → ledger, three tasks in one anyio task group, joined by bounded streams.

Closing a stream is the only signal that there is no more. The one `Stop` closes the front: the reader ends,
the engine drops what waits and settles what is in flight, the ledger commits all that reached it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from batchllm.engine import Engine, Item
from batchllm.errors import FatalError
from batchllm.fields import frozen
from batchllm.ledger import Ledger
from batchllm.model import Note, Outcome
from batchllm.ports import Source
from batchllm.stop import Stop

INBOX, OUTBOX = 1, 1
"""Items that a stream holds: lists of at most 1,024 records and 8 MiB, and lists of outcomes like that."""


@frozen
class Parts:
    """What a run is made of, wired by `wire`."""

    source: Source
    engine: Engine
    ledger: Ledger
    stop: Stop


async def run(parts: Parts) -> None:
    """Run until the source ends and everything is settled, or the run is stopped.

    How it ended is in `parts.stop.reason` and in the ledger's state; nothing of the run's is raised.
    """
    to_engine, inbox = anyio.create_memory_object_stream[list[Item]](INBOX)
    to_ledger, outbox = anyio.create_memory_object_stream[list[Outcome | Note]](OUTBOX)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parts.ledger.drain, outbox)
        tasks.start_soon(_read, parts, to_engine)
        tasks.start_soon(parts.engine.run, inbox, to_ledger)


async def _read(parts: Parts, inbox: MemoryObjectSendStream[list[Item]]) -> None:
    """Records from the source into the inbox; a full inbox holds the reader back, up to the pipe."""
    async with inbox, anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on, parts.stop.wait, tasks.cancel_scope)
        try:
            async with aclosing(parts.source.chunks()) as chunks:
                async for chunk in chunks:
                    await parts.ledger.room(chunk[-1])
                    await inbox.send(chunk)
        except FatalError as error:
            parts.stop.set(error)
        except anyio.BrokenResourceError:
            pass  # the engine closed the inbox: it heard of the stop first
        tasks.cancel_scope.cancel()


async def _cancel_on(event: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await event()
    scope.cancel()
