"""What people write: the official SDK, a semaphore, gather; `openai_sdk.py INPUT OUTPUT URL CONCURRENCY`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from openai import AsyncOpenAI

PROMPT = "Classify this customer question into one of 77 categories.\nQuestion: "


async def ask(client: AsyncOpenAI, slots: asyncio.Semaphore, record: dict[str, Any], results: TextIO) -> None:
    """One record: its question, its line."""
    async with slots:
        answer = await client.chat.completions.create(
            model="bench", messages=[{"role": "user", "content": PROMPT + record["text"]}]
        )
        output = json.loads(answer.choices[0].message.content or "")
        results.write(json.dumps({"id": record["id"], "output": output}) + "\n")


async def main(given: str, output: str, url: str, concurrency: int) -> None:
    """Ask for every record."""
    slots = asyncio.Semaphore(concurrency)
    with Path(given).open() as lines, Path(output).open("w") as results:
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=60) as client:
            await asyncio.gather(*(ask(client, slots, json.loads(line), results) for line in lines))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
