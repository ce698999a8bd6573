"""The way of the OpenAI cookbook's parallel requests; `cookbook.py INPUT OUTPUT URL CONCURRENCY`.

aiohttp; a loop that wakes every millisecond, counts capacity in requests a minute and starts a task for the
next request; a queue of those to try again; every result appended by opening the file.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PROMPT = "Classify this customer question into one of 77 categories.\nQuestion: "
REQUESTS_A_MINUTE = 10_000_000.0
TRIES = 5
TURN_S = 0.001
PAUSE_S = 15.0


@dataclass
class Tally:
    """What is going on: tasks in flight, and when a refusal came last."""

    in_flight: int = 0
    refused_at: float = float("-inf")


@dataclass
class Job:
    """One request and what came of its tries."""

    record: dict[str, Any]
    left: int = TRIES
    errors: list[str] = field(default_factory=list)

    async def call(
        self, session: aiohttp.ClientSession, url: str, again: deque[Job], output: str, tally: Tally
    ) -> None:
        """Send it, then append its answer, or queue it once more."""
        messages = [{"role": "user", "content": PROMPT + self.record["text"]}]
        headers = {"Authorization": "Bearer none"}
        try:
            async with session.post(
                url, headers=headers, json={"model": "bench", "messages": messages}
            ) as reply:
                answer = await reply.json()
                if reply.status == 429:
                    tally.refused_at = time.time()
                if "error" in answer:
                    raise ValueError(str(answer["error"]))
        except (aiohttp.ClientError, ValueError, TimeoutError) as error:
            self.errors.append(str(error))
            if self.left:
                again.append(self)
            else:
                append(output, [messages, self.errors])
        else:
            append(output, [messages, answer, {"id": self.record["id"]}])
        tally.in_flight -= 1


def append(output: str, row: list[Any]) -> None:
    """One line more."""
    with Path(output).open("a") as results:
        results.write(json.dumps(row) + "\n")


async def main(given: str, output: str, url: str, concurrency: int) -> None:
    """Ask for every record."""
    tally, again, tasks = Tally(), deque[Job](), set[asyncio.Task[None]]()
    capacity, looked = REQUESTS_A_MINUTE, time.time()
    with Path(given).open() as lines:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:
            coming: Job | None = None
            done_reading = False
            while True:
                if coming is None and again:
                    coming = again.popleft()
                elif coming is None and not done_reading:
                    line = next(lines, "")
                    done_reading = not line
                    coming = Job(json.loads(line)) if line else None
                now = time.time()
                capacity = min(capacity + REQUESTS_A_MINUTE * (now - looked) / 60, REQUESTS_A_MINUTE)
                looked = now
                if coming is not None and capacity >= 1 and tally.in_flight < concurrency:
                    capacity -= 1
                    coming.left -= 1
                    tally.in_flight += 1
                    call = coming.call(session, f"{url}/chat/completions", again, output, tally)
                    task = asyncio.create_task(call)
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    coming = None
                if coming is None and done_reading and not again and not tally.in_flight:
                    return
                await asyncio.sleep(TURN_S)
                if time.time() - tally.refused_at < PAUSE_S:
                    await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
